"""Where the nonzero elements are: as one bit per element, or as one byte per nonzero. Values are of any type.

A gap is the number of zeros before a nonzero; a byte of 255 stands for 255 zeros and no element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = [
    "count",
    "find",
    "gap_bytes",
    "gaps_reference",
    "pick",
    "put",
    "read_gaps",
    "spread_mask",
    "write_gaps",
]

Values = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int32]

LONG = 255  # this many zeros, and no element


def gaps_reference(values: npt.NDArray[Any]) -> Bytes:
    """Write the gaps of 1-D `values`: the definition of `write_gaps`.

    >>> gaps_reference(np.array([0.0, 0.0, 5.0, 7.0, 0.0])).tolist()
    [2, 0]
    """
    at = np.flatnonzero(values)
    gaps = np.diff(at, prepend=-1) - 1
    written: list[int] = []
    for gap in gaps.tolist():
        written += [LONG] * (gap // LONG) + [gap % LONG]
    return np.array(written, np.uint8)


@njit(nogil=True, cache=True)
def count(values: Values) -> int:
    """Count the elements that are not zero (-0.0 is)."""
    found = 0
    for i in range(values.size):
        found += values[i] != 0
    return found


@njit(nogil=True, cache=True)
def find(values: Values, out: Places) -> None:
    """Write where the nonzero elements are into `out`, which has room for one more than there are."""
    at = 0
    for i in range(values.size):
        out[at] = i
        at += values[i] != 0


@njit(nogil=True, cache=True)
def pick(values: Values, places: Places, out: Values) -> None:
    """Copy the elements at these places."""
    for i in range(places.size):
        out[i] = values[places[i]]


@njit(nogil=True, cache=True)
def gap_bytes(places: Places) -> int:
    """Count the bytes that the gaps before these ascending places take."""
    length, before = places.size, -1
    for i in range(places.size):
        length += (places[i] - before - 1) // LONG
        before = places[i]
    return length


@njit(nogil=True, cache=True)
def write_gaps(places: Places, out: Bytes) -> None:
    """Write the gap before every place; `out` has the bytes that `gap_bytes` counted."""
    at, before = 0, -1
    for i in range(places.size):
        zeros = places[i] - before - 1
        before = places[i]
        while zeros >= LONG:
            out[at] = LONG
            at += 1
            zeros -= LONG
        out[at] = zeros
        at += 1


@njit(nogil=True, cache=True)
def read_gaps(gaps: Bytes, size: int, out: Places) -> bool:
    """Write the places that the gaps tell; False if they are not `out.size` places below `size`."""
    at, place = 0, 0
    for i in range(gaps.size):
        place += gaps[i]
        if gaps[i] != LONG:
            if at == out.size or place >= size:
                return False
            out[at] = place
            at += 1
            place += 1
    return at == out.size


@njit(nogil=True, cache=True)
def put(values: Values, places: Places, out: Values) -> None:
    """Copy the values to their places in `out`."""
    for i in range(places.size):
        out[places[i]] = values[i]


@njit(nogil=True, cache=True)
def spread_mask(mask: Bytes, values: Values, out: Values) -> bool:
    """Put `values` where bit i % 8 of byte i // 8 is set, zeros elsewhere; False if there are more or fewer bits.

    Without a branch per bit: half a mask of random bits would be mispredicted.
    """
    at, last, zero = 0, values.size - 1, out.dtype.type(0)
    if last < 0:
        return False
    for i in range(out.size):
        bit = (mask[i >> 3] >> np.uint8(i & 7)) & 1
        value = values[min(at, last)]
        out[i] = value if bit else zero
        at += bit
    return at == values.size
