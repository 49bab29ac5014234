"""Codes of a few bits, of another width in each column, packed row by row; and back to values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["look_up", "look_up_reference", "pack_rows"]

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@njit(nogil=True, cache=True)
def pack_rows(codes: Bytes, offsets: Indices, out: Bytes) -> None:
    """Write each row's codes one after the other, lowest bit first, into its own whole bytes.

    `codes`: (columns, rows), column by column as they are made. `offsets`: (columns,), the bit at which a
    column's code begins in the row. `out`: (rows, bytes of a row), zeros.
    """
    for c in range(codes.shape[0]):
        byte, shift = offsets[c] >> 3, offsets[c] & 7
        for r in range(codes.shape[1]):
            word = np.uint32(codes[c, r]) << np.uint32(shift)
            out[r, byte] |= np.uint8(word & np.uint32(0xFF))
            if word > 0xFF:
                out[r, byte + 1] |= np.uint8(word >> np.uint32(8))


@njit(nogil=True, cache=True)
def look_up(
    codes: Bytes,
    first: int,
    rows: int,
    stride: int,
    widths: Bytes,
    offsets: Indices,
    books: Indices,
    codebook: Floats,
    start: int,
    out: Floats,
) -> None:
    """Write the values of elements [start, start + out.size) of stacked (experts, rows, columns) matrices.

    `codes`: the packed rows from row `first` on, `stride` bytes each. `widths`, `offsets`, `books`: (experts,
    columns), how wide a code is, the bit at which it begins in the row, and where its centroids begin in `codebook`.
    """
    columns = widths.shape[1]
    row, column = start // columns, start % columns
    at = 0
    while at < out.size:
        expert = row // rows
        origin = (row - first) * stride
        for c in range(column, min(columns, column + out.size - at)):
            width = np.int64(widths[expert, c])
            bit = offsets[expert, c]
            byte, shift = origin + (bit >> 3), bit & 7
            word = np.int64(codes[byte]) >> shift
            if shift + width > 8:
                word |= np.int64(codes[byte + 1]) << (8 - shift)
            out[at] = codebook[books[expert, c] + (word & ((1 << width) - 1))]
            at += 1
        row, column = row + 1, 0


def look_up_reference(
    packed: Bytes, widths: Bytes, offsets: Indices, books: Indices, codebook: Floats
) -> Floats:
    """Return the (rows, columns) values of one matrix: the definition of `look_up`."""
    bits = np.unpackbits(packed, axis=1, bitorder="little").astype(np.int64)
    columns = [
        codebook[book + bits[:, at : at + width] @ (1 << np.arange(width))]
        for width, at, book in zip(widths.tolist(), offsets.tolist(), books.tolist(), strict=True)
    ]
    return np.stack(columns, axis=1)
