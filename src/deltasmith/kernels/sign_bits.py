"""Signs of float32 → one bit each, with the sums that 1-bit codecs need on the way. The other way: sign_expand.py.

Bit i of a tensor is bit i % 8 of byte i // 8, row-major: `numpy.packbits(..., bitorder="little")`. Arrays of bits
are padded with zeros to a multiple of 8 bytes, so that they can be read as 64-bit words.

Each compiled function stands beside the numpy definition it must equal bit for bit (`*_defined`). Sums are
float64, over segments of at most PIECE elements, in an order of their own that no thread or block changes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = [
    "LANES",
    "PIECE",
    "STEP",
    "STRIP",
    "Bytes",
    "check_bits",
    "cuts_of",
    "differing",
    "differing_defined",
    "flags_of",
    "fold_lanes",
    "lane_sum",
    "pack_flags",
    "pack_signs",
    "pack_signs_defined",
    "pack_strip",
    "packed_size",
    "plain",
    "released_mask",
    "released_words",
    "unpack_flags",
]

PIECE = 1 << 16
"""Elements after which a sum starts anew, counted from the start of the tensor."""

Bytes = npt.NDArray[np.uint8]
Cuts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]

STRIP = 2048
"""Elements whose flags, a byte each, stay in the first-level cache."""

LANES = 16
"""Sums of float64 that run side by side; STEP elements go into them at once, four into each."""

STEP = 4 * LANES

_NEAREST = np.uint64(0x0102040810204080)  # times eight bytes of 0 or 1: their bits in order, uppermost
_EIGHTFOLD = np.uint64(0x0101010101010101)  # times a byte: the byte eight times
_DIAGONAL = np.uint64(0x8040201008040201)  # of eight equal bytes, bit k of byte k
_PAIRS = np.uint64(0x5555555555555555)
_FOURS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)


def packed_size(n: int) -> int:
    """Count the bytes that n bits take: whole 64-bit words.

    >>> packed_size(0), packed_size(1), packed_size(65)
    (0, 8, 16)
    """
    return -(-n // 64) * 8


def cuts_of(start: int, n: int, width: int) -> Cuts:
    """Cut n elements from `start` on where a row of `width` or a piece ends; (segments + 1,), relative to `start`.

    >>> cuts_of(4, 10, 6).tolist()
    [0, 2, 8, 10]
    """
    stop = start + n
    ends = [np.arange((start // step + 1) * step, stop, step, dtype=np.int64) for step in (width, PIECE)]
    inner = np.union1d(*ends) if len(ends[1]) else ends[0]
    return np.concatenate([[start], inner, [stop]]).astype(np.int64) - start if n else np.zeros(1, np.int64)


def pack_flags(flags: npt.NDArray[np.bool_]) -> Bytes:
    """Pack booleans, one bit each, padded to whole 64-bit words."""
    packed = np.zeros(packed_size(flags.size), np.uint8)
    packed[: -(-flags.size // 8)] = np.packbits(flags, bitorder="little")
    return packed


def unpack_flags(bits: Bytes, start: int, n: int) -> npt.NDArray[np.bool_]:
    """Return bits start .. start + n - 1 as booleans; ValueError if there are fewer."""
    check_bits(bits, start, n)
    flags = np.unpackbits(bits[start // 8 : -(-(start + n) // 8)], bitorder="little")
    return flags[start % 8 : start % 8 + n].view(np.bool_)


def pack_signs(values: Floats, cuts: Cuts, zero: int) -> tuple[Bytes, Sums]:
    """Pack x > 0 (`zero` -1) or x >= 0 (`zero` 1) of 1-D float32, and sum |x| and x² of every segment, in one pass.

    `cuts` (segments + 1,) ascends from 0 to n and contains every multiple of PIECE (`cuts_of`; `values` begins at
    a multiple of PIECE of its tensor). Returns the bits and (segments, 2) float64 sums.

    >>> bits, sums = pack_signs(np.array([1.0, -2.0, 0.0, 4.0], np.float32), cuts_of(0, 4, 2), -1)
    >>> bin(bits[0]), sums.tolist()
    ('0b1001', [[3.0, 5.0], [4.0, 16.0]])
    """
    bits = np.zeros(packed_size(values.size), np.uint8)
    sums = np.empty((len(cuts) - 1, 2), np.float64)
    if values.size:
        _pack_signs(plain(values), cuts, int(zero), bits, sums)
    return bits, sums


def pack_signs_defined(values: Floats, cuts: Cuts, zero: int) -> tuple[Bytes, Sums]:
    """Define `pack_signs`."""
    bits = pack_flags(values >= 0 if zero > 0 else values > 0)
    segments = [values[a:b] for a, b in pairwise(cuts.tolist())]
    sums = [(lane_sum(np.abs(s).astype(np.float64)), lane_sum(s.astype(np.float64) ** 2)) for s in segments]
    return bits, np.array(sums, np.float64).reshape(-1, 2)


def lane_sum(terms: Sums) -> float:
    """Add as the kernels do: four rows of 16 lanes pairwise, these in order, and the lanes pairwise at the end."""
    padded = np.zeros(-(-terms.size // STEP) * STEP, np.float64)
    padded[: terms.size] = terms
    rows = padded.reshape(-1, 4, LANES)
    lanes = np.zeros(LANES)
    for row in rows:
        lanes = lanes + ((row[0] + row[1]) + (row[2] + row[3]))
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return float(lanes[0])


@njit(nogil=True, cache=True)
def _pack_signs(values: Floats, cuts: Cuts, zero: int, bits: Bytes, sums: Sums) -> None:
    """Go piece by piece, so that the sums find in the cache what the bits were made of."""
    flags = np.zeros(STRIP, np.uint8)
    spare = np.zeros(STEP, np.float32)
    lanes = np.empty((2, LANES), np.float64)
    segment = 0
    for start in range(0, values.size, PIECE):
        stop = min(values.size, start + PIECE)
        for strip in range(start, stop, STRIP):
            part = values[strip : min(stop, strip + STRIP)]
            if part.size < STRIP:
                flags[:] = 0
            if zero > 0:
                for i in range(part.size):
                    flags[i] = part[i] >= np.float32(0)
            else:
                for i in range(part.size):
                    flags[i] = part[i] > np.float32(0)
            pack_strip(flags, bits[strip >> 3 : (strip + part.size + 7) >> 3])
        while segment < sums.shape[0] and cuts[segment + 1] <= stop:
            _sum_magnitudes(values[cuts[segment] : cuts[segment + 1]], spare, lanes)
            sums[segment, 0] = lanes[0, 0]
            sums[segment, 1] = lanes[1, 0]
            segment += 1


@njit(nogil=True, cache=True)
def pack_strip(flags: Bytes, target: Bytes) -> None:
    """Turn bytes of 0 or 1 into bits."""
    words = flags.view(np.uint64)
    for b in range(target.size):
        target[b] = (words[b] * _NEAREST) >> np.uint64(56)


@njit(nogil=True, cache=True)
def _sum_magnitudes(part: Floats, spare: Floats, lanes: Sums) -> None:
    """Leave Σ|x| in lanes[0, 0] and Σx² in lanes[1, 0]."""
    lanes[:] = 0.0
    whole = part.size - part.size % STEP
    _add_lanes(part[:whole].reshape(-1, 4, LANES), lanes[0], lanes[1])
    if whole < part.size:
        spare[:] = 0
        spare[: part.size - whole] = part[whole:]
        _add_lanes(spare.reshape(-1, 4, LANES), lanes[0], lanes[1])
    fold_lanes(lanes)


@njit(nogil=True, cache=True)
def _add_lanes(rows: Floats, total: Sums, squares: Sums) -> None:
    for r in range(rows.shape[0]):
        for j in range(LANES):
            a, b = np.float64(abs(rows[r, 0, j])), np.float64(abs(rows[r, 1, j]))
            c, d = np.float64(abs(rows[r, 2, j])), np.float64(abs(rows[r, 3, j]))
            total[j] += (a + b) + (c + d)
            squares[j] += (a * a + b * b) + (c * c + d * d)


@njit(nogil=True, cache=True)
def fold_lanes(lanes: Sums) -> None:
    """Add the lanes of every row pairwise, into the first."""
    half = LANES // 2
    while half:
        for row in range(lanes.shape[0]):
            for j in range(half):
                lanes[row, j] += lanes[row, half + j]
        half //= 2


@njit(nogil=True, cache=True)
def flags_of(bits: Bytes, at: int, n: int, flags: Bytes) -> Bytes:
    """Return a byte per bit for n bits from `at` on, not 0 where the bit is 1; scratch for n + 8 in `flags`."""
    words = flags.view(np.uint64)
    source = bits[at >> 3 : (at + n + 7) >> 3]
    for b in range(source.size):
        words[b] = (np.uint64(source[b]) * _EIGHTFOLD) & _DIAGONAL
    return flags[at & 7 : (at & 7) + n]


def differing(one: Bytes, other: Bytes) -> int:
    """Count the bits that differ, of two arrays of one length, whole 64-bit words.

    Of n signs each, the dot product is n - 2 · differing, since padding is 0 in both.

    >>> differing(pack_flags(np.array([True, False, True])), pack_flags(np.array([True, True, False])))
    2
    """
    if one.size != other.size or one.size % 8:
        raise ValueError(f"bits in {one.size} and {other.size} bytes cannot be compared")
    return int(_differing(_words(one), _words(other))) if one.size else 0


def differing_defined(one: Bytes, other: Bytes) -> int:
    """Define `differing`."""
    return int(np.unpackbits(one ^ other).sum(dtype=np.int64))


def _words(bits: Bytes) -> npt.NDArray[np.uint64]:
    words: npt.NDArray[np.uint64] = plain(bits).view(np.uint64)
    return words


@njit(nogil=True, cache=True)
def _differing(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> Any:
    total = np.uint64(0)
    for i in range(one.size):
        v = one[i] ^ other[i]  # then: sums of neighbouring 1, 2 and 4 bits, side by side in the word
        v -= (v >> np.uint64(1)) & _PAIRS
        v = (v & _FOURS) + ((v >> np.uint64(2)) & _FOURS)
        v = (v + (v >> np.uint64(4))) & _NIBBLES
        total += (v * _EIGHTFOLD) >> np.uint64(56)
    return total


def released_words(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Pack a mask as BitDelta's released code does: (in, out) → (in / 32, out), bit b of word j = row 32 j + b.

    ValueError unless `in` is a multiple of 32, as there.
    """
    rows, columns = mask.shape
    if rows % 32:
        raise ValueError(f"{rows} input rows are not a multiple of 32")
    packed = np.packbits(mask.reshape(rows // 32, 32, columns), axis=1, bitorder="little")
    words: npt.NDArray[np.int32] = np.ascontiguousarray(packed.transpose(0, 2, 1)).view("<i4")[..., 0]
    return words


def released_mask(words: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Undo `released_words`: (in / 32, out) → (in, out)."""
    count, columns = words.shape
    packed = np.ascontiguousarray(words, "<i4").view(np.uint8).reshape(count, columns, 4)
    flags = np.unpackbits(packed, axis=2, bitorder="little").view(np.bool_)
    return np.ascontiguousarray(flags.transpose(0, 2, 1)).reshape(count * 32, columns)


def plain(array: Any) -> Any:
    """Return the array if it is plain and writable, else a copy: every kernel is compiled for one kind only."""
    return np.require(array, requirements=["C", "A", "W"])


def check_bits(bits: Bytes, offset: int, n: int) -> None:
    """Raise ValueError unless there are bits offset .. offset + n - 1."""
    if offset < 0 or bits.size * 8 < offset + n:
        raise ValueError(f"{bits.size} bytes do not hold bits {offset} to {offset + n}")
