"""Stored words ↔ distances in units in the last place ↔ one byte and a few bits each.

The integers that order floats by value make neighbours differ by 1, through zero and to infinity; the wrapped
difference to the prediction, folded so that small distances of either sign are small numbers, is what a lossless
codec stores. Its upper part is a byte that can be compressed, its lowest bits are noise and are packed. Sorting by
scale is in `groups.py`; nothing is compressed here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = [
    "different",
    "escapes",
    "low_bits",
    "raise_low",
    "split",
    "to_distances",
    "to_distances_reference",
    "to_tokens",
    "to_words",
    "to_words_reference",
]

Words = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

ESCAPE = 255  # the token of a distance whose upper part does not fit a byte
_SCAN = 256  # values whose largest is looked at first


def to_distances_reference(words: Words, predicted: Words, floating: bool) -> Words:
    """Fold the signed distance of each word from its prediction: 0, -1, 1, -2 and so on become 0, 1, 2, 3.

    `words` and `predicted`: 1-D of one unsigned type. `floating` says that they are floats' bits, whose order is
    sign and magnitude; otherwise they are integers and wrap. -0.0 comes right before 0.0.

    >>> two = np.array([0x3F80, 0x8000], np.uint16)  # 1.0 and -0.0 as bfloat16
    >>> to_distances_reference(two, np.array([0x3F81, 0x0000], np.uint16), True).tolist()
    [1, 1]
    """
    width = words.dtype.itemsize * 8
    kind = words.dtype.type
    with np.errstate(over="ignore"):
        if floating:
            words, predicted = _ordered(words), _ordered(predicted)
        difference = words - predicted
        negative = (difference >> kind(width - 1)).astype(words.dtype)
        folded: Words = (difference << kind(1)) ^ (kind(0) - negative)
    return folded


def to_words_reference(distances: Words, predicted: Words, floating: bool) -> Words:
    """Return the words at these distances from their predictions: undo `to_distances_reference`."""
    width = distances.dtype.itemsize * 8
    kind = distances.dtype.type
    half = kind(1 << (width - 1))
    with np.errstate(over="ignore"):
        difference = (distances >> kind(1)) ^ (kind(0) - (distances & kind(1)))
        ordered: Words = difference + (_ordered(predicted) if floating else predicted)
    return np.where(ordered >= half, ordered & ~half, ~ordered) if floating else ordered


def _ordered(words: Words) -> Words:
    half = words.dtype.type(1 << (words.dtype.itemsize * 8 - 1))
    return np.where(words >= half, ~words, words | half)


def to_distances(words: Words, predicted: Words, floating: bool, out: Words) -> None:
    """Write what `to_distances_reference` returns into `out`."""
    kind = words.dtype.type
    bits = words.dtype.itemsize * 8
    if floating and bits == 16:
        _to_distances_16(words.view(np.int16), predicted.view(np.int16), out.view(np.int16))
        return
    _to_distances(words, predicted, kind(bits - 1), kind(1 << (bits - 1) if floating else 0), kind(1), out)


def to_words(distances: Words, predicted: Words, floating: bool, out: Words) -> None:
    """Write what `to_words_reference` returns into `out`.

    `out` is not `distances`: in place the loop is five times slower.
    """
    kind = distances.dtype.type
    bits = distances.dtype.itemsize * 8
    if floating and bits == 16:
        _to_words_16(distances.view(np.int16), predicted.view(np.int16), out.view(np.int16))
        return
    _to_words(distances, predicted, kind(bits - 1), kind(1 << (bits - 1) if floating else 0), kind(1), out)


@njit(nogil=True, cache=True)
def _to_distances(words: Words, predicted: Words, last: Any, half: Any, one: Any, out: Words) -> None:
    """Order, subtract, fold. `half` is the sign bit, 0 for integers; all arithmetic is cut back to the width.

    A set sign bit flips all bits, a clear one is set: one exclusive or with (all ones or the sign bit).
    """
    kind = out.dtype.type
    for i in range(out.size):
        w, p = words[i], predicted[i]
        w = kind(w ^ (kind(kind(0) - kind((w & half) >> last)) | half))
        p = kind(p ^ (kind(kind(0) - kind((p & half) >> last)) | half))
        d = kind(w - p)
        out[i] = kind(kind(d << one) ^ kind(kind(0) - kind(d >> last)))


@njit(nogil=True, cache=True)
def _to_distances_16(words: Words, predicted: Words, out: Words) -> None:
    """Do the same for the bits of two-byte floats as signed numbers: shifts by constants are four times faster."""
    kind = np.int16
    for i in range(out.size):
        w, p = words[i], predicted[i]
        w = kind(w ^ kind(kind(w >> kind(15)) | kind(-32768)))
        p = kind(p ^ kind(kind(p >> kind(15)) | kind(-32768)))
        d = kind(w - p)
        out[i] = kind(kind(d << kind(1)) ^ kind(d >> kind(15)))


@njit(nogil=True, cache=True)
def _to_words_16(distances: Words, predicted: Words, out: Words) -> None:
    """Undo `_to_distances_16`. A number in order that is negative stands for a positive float."""
    kind = np.int16
    for i in range(out.size):
        z, p = distances[i], predicted[i]
        p = kind(p ^ kind(kind(p >> kind(15)) | kind(-32768)))
        d = kind(kind(kind(z >> kind(1)) & kind(0x7FFF)) ^ kind(kind(0) - kind(z & kind(1))))
        w = kind(d + p)
        out[i] = kind(w ^ kind(kind(kind(-1) - kind(w >> kind(15))) | kind(-32768)))


@njit(nogil=True, cache=True)
def _to_words(distances: Words, predicted: Words, last: Any, half: Any, one: Any, out: Words) -> None:
    kind = out.dtype.type
    for i in range(out.size):
        z, p = distances[i], predicted[i]
        p = kind(p ^ (kind(kind(0) - kind((p & half) >> last)) | half))
        w = kind(kind(kind(z >> one) ^ kind(kind(0) - kind(z & one))) + p)
        # An ordered word with its top bit clear stands for a negative float: flip all; else drop the top bit.
        flip = kind(kind(kind(w & half) >> last) - kind(one & kind(half >> last)))
        out[i] = kind(w ^ (flip | half))


@njit(nogil=True, cache=True)
def different(words: Words, predicted: Words) -> int:
    """Count the words that are not as predicted."""
    found = 0
    for i in range(words.size):
        found += words[i] != predicted[i]
    return found


@njit(nogil=True, cache=True)
def to_tokens(values: Words, shift: Any, out: Bytes) -> int:
    """Write the upper part of each value, value >> shift, as a byte, 255 where it is that or more; count those."""
    kind = values.dtype.type
    limit = kind(ESCAPE)
    count = 0
    for i in range(values.size):
        upper = min(kind(values[i] >> shift), limit)
        out[i] = upper
        count += upper == limit
    return count


@njit(nogil=True, cache=True)
def escapes(values: Words, shift: Any, out: Words) -> None:
    """Write the upper parts that are 255 or more, in order. Strips without one are passed over at vector speed."""
    kind = values.dtype.type
    limit = kind(ESCAPE)
    at = 0
    for start in range(0, values.size, _SCAN):
        strip = values[start : start + _SCAN]
        largest = kind(0)
        for i in range(strip.size):
            largest = max(largest, strip[i])
        if kind(largest >> shift) < limit:
            continue
        for i in range(strip.size):
            upper = kind(strip[i] >> shift)
            if upper >= limit:
                out[at] = upper
                at += 1


@njit(nogil=True, cache=True)
def low_bits(values: Words, count: int, out: Bytes) -> None:
    """Pack the lowest `count` bits of n values: bit j of value t * m + i is bit t of byte j * m + i, m = ceil(n/8).

    `out`: count * m bytes. Neighbouring bytes come from neighbouring values, so loops run over vectors.
    """
    n = values.size
    m = (n + 7) // 8
    kind = values.dtype.type
    for j in range(count):
        plane = out[j * m : (j + 1) * m]
        plane[:] = 0
        for t in range(8):
            part = values[min(n, t * m) : min(n, (t + 1) * m)]
            for i in range(part.size):
                plane[i] |= np.uint8(kind(kind(part[i] >> kind(j)) & kind(1)) << kind(t))


@njit(nogil=True, cache=True)
def split(values: Words, groups: Any, tokens: Bytes, planes: Bytes, upper: Words, counts: Any) -> None:
    """Write tokens, low bits and escapes of one group of values after the other, and how many of each escape.

    `groups`: a row per group, the number of its values second and its low bits third. `planes` has room for the bit
    planes of all groups, `upper` for as many escapes as values; what lies behind them stays as it was. One call
    instead of many: threads wait for each other at every return to Python.
    """
    kind = values.dtype.type
    at = plane = high = 0
    for g in range(len(groups)):
        size, low = groups[g, 1], groups[g, 2]
        part = values[at : at + size]
        counts[g] = to_tokens(part, kind(low), tokens[at : at + size])
        nbytes = low * ((size + 7) // 8)
        low_bits(part, low, planes[plane : plane + nbytes])
        if counts[g] > 0:
            escapes(part, kind(low), upper[high : high + counts[g]])
        at += size
        plane += nbytes
        high += counts[g]


@njit(nogil=True, cache=True)
def raise_low(tokens: Bytes, planes: Bytes, count: int, upper: Words, out: Words) -> bool:
    """Put tokens, their `count` low bits and their escapes together again.

    `upper` holds the escapes' upper parts. Returns False if there are not as many as tokens of 255.
    """
    n = out.size
    m = (n + 7) // 8
    kind = out.dtype.type
    found = 0
    for i in range(n):
        out[i] = kind(tokens[i]) << kind(count)
        found += tokens[i] == ESCAPE
    if found != upper.size:
        return False
    if found > 0:
        at = 0
        for i in range(n):
            if tokens[i] == ESCAPE:
                out[i] = upper[at] << kind(count)
                at += 1
    for j in range(count):
        plane = planes[j * m : (j + 1) * m]
        for t in range(8):
            part = out[min(n, t * m) : min(n, (t + 1) * m)]
            for i in range(part.size):
                part[i] |= kind(kind(kind(plane[i]) >> kind(t)) & kind(1)) << kind(j)
    return True
