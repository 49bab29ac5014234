"""Counting over packed signs: how many differ in every row, and which sign most models have, 64 elements at a time.

Bits lie as in sign_bits.py, here as 64-bit words: bit i of a tensor is bit i % 64 of word i // 64. Each compiled
function stands beside the numpy definition it must equal (`*_defined`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.kernels.sign_bits import Bytes, plain, unpack_flags

__all__ = [
    "WORD",
    "WordBits",
    "differing_in_rows",
    "differing_in_rows_defined",
    "elect_signs",
    "elect_signs_defined",
    "words_of",
]

WORD = 64

WordBits = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_PAIRS = np.uint64(0x5555555555555555)
_FOURS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTES = np.uint64(0x0101010101010101)
_MOST = 1 << 15  # models, whose counts take 16 planes


def words_of(bits: Bytes) -> WordBits:
    """View bytes of bits, a multiple of 8 of them, as 64-bit words."""
    words: WordBits = plain(bits).view(np.uint64)
    return words


def differing_in_rows(one: WordBits, other: WordBits, first: int, width: int, rows: int) -> Counts:
    """Count, for each of `rows` rows of `width` bits from bit `first` on, the bits that differ; (rows,) int64.

    ValueError if the words end before the rows do, or are not equally many.

    >>> a, b = np.array([0b0110], np.uint64), np.array([0b0011], np.uint64)
    >>> differing_in_rows(a, b, 0, 2, 2).tolist()
    [1, 1]
    """
    if one.size != other.size or first < 0 or width < 0 or one.size * WORD < first + rows * width:
        raise ValueError(f"{one.size} and {other.size} words for {rows} rows of {width} bits from {first} on")
    counts = np.zeros(rows, np.int64)
    if width:
        _differing_in_rows(one, other, first, width, counts)
    return counts


def differing_in_rows_defined(one: WordBits, other: WordBits, first: int, width: int, rows: int) -> Counts:
    """Define `differing_in_rows`."""
    flags = unpack_flags((one ^ other).view(np.uint8), first, rows * width)
    counts: Counts = flags.reshape(rows, width).sum(axis=1, dtype=np.int64)
    return counts


@njit(nogil=True, cache=True)
def _differing_in_rows(one: WordBits, other: WordBits, first: int, width: int, counts: Counts) -> None:
    for r in range(counts.size):
        low = first + r * width
        last = low + width - 1
        a, b = low >> 6, last >> 6
        head = _ALL << np.uint64(low & 63)
        tail = _ALL >> np.uint64(63 - (last & 63))
        if a == b:
            counts[r] = _ones((one[a] ^ other[a]) & head & tail)
        else:
            ends = _ones((one[a] ^ other[a]) & head) + _ones((one[b] ^ other[b]) & tail)
            counts[r] = ends + _between(one[a + 1 : b], other[a + 1 : b])


@njit(nogil=True, cache=True)
def _ones(word: Any) -> Any:
    """Count the bits of a word: sums of neighbouring 1, 2 and 4 bits, side by side, then of the bytes."""
    word -= (word >> np.uint64(1)) & _PAIRS
    word = (word & _FOURS) + ((word >> np.uint64(2)) & _FOURS)
    word = (word + (word >> np.uint64(4))) & _NIBBLES
    return np.int64((word * _BYTES) >> np.uint64(56))


@njit(nogil=True, cache=True)
def _between(one: WordBits, other: WordBits) -> Any:
    total = np.int64(0)
    for i in range(one.size):
        total += _ones(one[i] ^ other[i])
    return total


def elect_signs(
    words: WordBits, flipped: npt.NDArray[np.bool_], scales: Doubles, width: int, first: int, n: int
) -> WordBits:
    """Return the sign that most models have at each of n elements: (models, words) → (words,), padded with zeros.

    A bit of 1 is plus, or minus where the model is `flipped`. As many of each: the sign of the sum of the models'
    signs times their scales (float64, added in their order), and minus if that is 0 too. Word 0 begins with element
    `first`, a multiple of 64; element e has the scales `scales[:, e // width]`. ValueError for other shapes.

    >>> two = np.array([[0b01], [0b11]], np.uint64)
    >>> int(elect_signs(two, np.zeros(2, bool), np.array([[2.0], [1.0]]), 2, 0, 2)[0])
    1
    """
    models = len(words)
    if not 0 < models < _MOST or first % WORD or n > words.shape[1] * WORD:
        raise ValueError(f"{models} models of {words.shape[1]} words for {n} elements from {first} on")
    if scales.shape[0] != models or flipped.shape != (models,) or (n and scales.shape[1] * width < first + n):
        raise ValueError(
            f"scales of {scales.shape} for {models} models, {width} elements each, to {first + n}"
        )
    out = np.zeros(words.shape[1], np.uint64)
    masks = np.where(flipped, _ALL, np.uint64(0))
    _elect_signs(plain(words), masks, plain(scales), max(1, width), first, n, out)
    return out


def elect_signs_defined(
    words: WordBits, flipped: npt.NDArray[np.bool_], scales: Doubles, width: int, first: int, n: int
) -> WordBits:
    """Define `elect_signs`."""
    flags = np.stack([unpack_flags(row.view(np.uint8), 0, n) for row in words]) ^ flipped[:, None]
    signs = np.where(flags, 1, -1)
    weighted = np.zeros(n)
    for sign, own in zip(signs, scales, strict=True):
        weighted = weighted + sign * own[(first + np.arange(n)) // width]
    count = signs.sum(axis=0)
    plus = (count > 0) | ((count == 0) & (weighted > 0))
    out = np.zeros(words.shape[1] * 8, np.uint8)
    packed = np.packbits(plus, bitorder="little")
    out[: packed.size] = packed
    return out.view(np.uint64)


@njit(nogil=True, cache=True)
def _elect_signs(
    words: WordBits, masks: WordBits, scales: Doubles, width: int, first: int, n: int, out: WordBits
) -> None:
    """Count in binary, bit k of all 64 counts in plane k, and compare all of them with half of the models."""
    models = words.shape[0]
    half = models // 2
    planes = np.zeros(16, np.uint64)
    used = 1
    while (models >> used) > 0:
        used += 1
    for w in range(out.size):
        planes[:used] = np.uint64(0)
        for t in range(models):
            carry = words[t, w] ^ masks[t]
            for p in range(used):
                carried = planes[p] & carry
                planes[p] ^= carry
                carry = carried
        above, equal = np.uint64(0), _ALL
        for p in range(used - 1, -1, -1):
            if (half >> p) & 1:
                equal &= planes[p]
            else:
                above |= equal & planes[p]
                equal &= ~planes[p]
        valid = n - w * 64
        shown = _ALL if valid >= 64 else (np.uint64(0) if valid <= 0 else _ALL >> np.uint64(64 - valid))
        if models % 2 == 0:
            above |= _settle(words[:, w] ^ masks, equal & shown, scales, width, first + w * 64)
        out[w] = above & shown


@njit(nogil=True, cache=True)
def _settle(words: WordBits, ties: Any, scales: Doubles, width: int, first: int) -> Any:
    """Return those ties, of one word of each model, whose weighted sum is positive."""
    if ties == 0:
        return ties
    plus = np.uint64(0)
    row = first // width if scales.shape[1] > 1 else 0
    begin = 0
    while begin < 64 and row < scales.shape[1]:
        end = 64 if scales.shape[1] == 1 else min(64, (row + 1) * width - first)
        for b in range(begin, end):  # without a branch: random signs are what no processor can foresee
            total = 0.0
            for t in range(words.size):
                total += scales[t, row] * (2.0 * np.float64((words[t] >> np.uint64(b)) & np.uint64(1)) - 1.0)
            plus |= np.uint64(total > 0) << np.uint64(b)
        begin = end
        row += 1
    return plus & ties
