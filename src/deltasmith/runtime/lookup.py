"""Products with a matrix of signs, straight from its bits, on the CPU: the definition, and compiled kernels.

Bits are held as 32-bit words, shape (words of a row, rows): bit b of word w belongs to column 32 w + b, and is 1
for +1. Words of neighbouring rows lie side by side, which is what both a vector unit and a GPU want.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["add_products", "clear", "defined_products", "expand", "words_of"]

Bits32 = npt.NDArray[np.uint32]
_PIECE_BYTES = 1 << 22


def words_of(packed: npt.NDArray[np.uint8], rows: int, columns: int) -> Bits32:
    """Rearrange one bit per element (row-major, bit i % 8 of byte i // 8) into words, (⌈columns / 32⌉, rows).

    Columns beyond the last are 0. Raises ValueError if there are too few bytes.

    >>> words_of(np.array([0b101_011], np.uint8), rows=2, columns=3)
    array([[3, 5]], dtype=uint32)
    """
    if packed.size * 8 < rows * columns:
        raise ValueError(f"{packed.size} bytes of bits for {rows * columns} elements")
    words = -(-columns // 32)
    out = np.empty((words, rows), np.uint32)
    step = (
        max(1, _PIECE_BYTES // max(1, words * 4))
        if columns % 8 == 0
        else max(8, (1 << 19) // max(1, columns))
    )
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        out[:, start:stop] = _row_words(packed, start, stop, columns, words).T
    return out


def _row_words(packed: npt.NDArray[np.uint8], start: int, stop: int, columns: int, words: int) -> Bits32:
    """Return rows [start, stop) as (rows, words)."""
    room = np.zeros((stop - start, words * 4), np.uint8)
    if columns % 8 == 0:
        each = columns // 8
        room[:, :each] = packed[start * each : stop * each].reshape(stop - start, each)
    else:
        first, last = start * columns, stop * columns
        flat = np.unpackbits(packed[first // 8 : -(-last // 8)], bitorder="little")
        bits = flat[first % 8 : first % 8 + last - first].reshape(stop - start, columns)
        room[:, : -(-columns // 8)] = np.packbits(bits, axis=1, bitorder="little")
    return room.view("<u4").astype(np.uint32, copy=False)


def defined_products(words: Bits32, scales: Floats, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return Σ_p scales[p] · (x S_pᵀ) in float64: words (passes, w, rows), scales (passes, rows), x (n, 32 w)."""
    out = np.zeros((x.shape[0], words.shape[2]))
    for plane, scale in zip(words, scales, strict=True):
        bits = plane[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None] & np.uint32(1)
        signs = bits.reshape(-1, plane.shape[1]).astype(np.float64) * 2 - 1
        out += x.astype(np.float64) @ signs * scale
    return out


@njit(nogil=True, cache=True)
def add_products(words: Any, scales: Any, x: Any, out: Any, start: int, stop: int) -> None:
    """Add Σ_p scales[p] · (x S_pᵀ) to `out` for rows [start, stop), without expanding a sign.

    words (passes, w, rows) uint32, scales (passes, rows), x (n, 32 w) zero where there is no column, out (n, rows),
    all float32. For each byte of a row the sum of its eight ±x is looked up in a table of all 256; the tables
    belong to one word, so they stay in the fastest cache whatever the size of the matrix.
    """
    tables = np.empty(1024, np.float32)
    sums = np.empty((words.shape[0], stop - start), np.float32)
    low = np.uint32(255)
    for i in range(x.shape[0]):
        sums[:] = 0
        for w in range(words.shape[1]):
            for byte in range(4):
                at = 256 * byte
                tables[at] = 0
                for bit in range(8):
                    value = x[i, 32 * w + 8 * byte + bit]
                    tables[at] -= value
                for bit in range(8):
                    step = 2 * x[i, 32 * w + 8 * byte + bit]
                    for b in range(1 << bit):
                        tables[at + (1 << bit) + b] = tables[at + b] + step
            for p in range(words.shape[0]):
                for n in range(stop - start):
                    word = words[p, w, start + n]
                    first = tables[word & low] + tables[256 + ((word >> np.uint32(8)) & low)]
                    second = (
                        tables[512 + ((word >> np.uint32(16)) & low)] + tables[768 + (word >> np.uint32(24))]
                    )
                    sums[p, n] += first + second
        for p in range(words.shape[0]):
            for n in range(stop - start):
                out[i, start + n] += scales[p, start + n] * sums[p, n]


@njit(nogil=True, cache=True)
def expand(words: Any, start: int, stop: int, out: Any) -> None:
    """Write the signs of rows [start, stop) into `out`, (columns, stop - start) float32: +1 or -1.

    words (w, rows) uint32.
    """
    for column in range(out.shape[0]):
        shift = np.uint32(column & 31)
        w = column >> 5
        for n in range(stop - start):
            bit = (words[w, start + n] >> shift) & np.uint32(1)
            out[column, n] = np.float32(np.int32(bit) * 2 - 1)


@njit(nogil=True, cache=True)
def clear(words: Any, start: int, values: Any) -> None:
    """Set `values`, float32 (rows, columns) from row `start` on, to 0 where the bit is 0. words (w, rows) uint32."""
    for n in range(values.shape[0]):
        for w in range(words.shape[0]):
            word = words[w, start + n]
            for bit in range(min(32, values.shape[1] - 32 * w)):
                kept = (word >> np.uint32(bit)) & np.uint32(1)
                values[n, 32 * w + bit] = values[n, 32 * w + bit] if kept else np.float32(0)
