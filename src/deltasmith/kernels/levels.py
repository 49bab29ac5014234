"""Magnitudes sorted into blocks, and block numbers ↔ bit planes. What a block stands for is a codec's business.

Each compiled function stands beside the numpy definition it must equal (`*_defined`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.kernels.sign_bits import (
    PIECE,
    STRIP,
    Bytes,
    check_bits,
    flags_of,
    packed_size,
    plain,
    unpack_flags,
)
from deltasmith.table.checkpoint import Floats

__all__ = [
    "equal_count_levels",
    "equal_count_levels_defined",
    "equal_width_levels",
    "expand_levels",
    "expand_levels_defined",
    "level_means",
    "pack_levels",
]

Levels = npt.NDArray[np.uint16]
Classes = npt.NDArray[np.uint16]
Patterns = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

_BINS = (
    1 << 15
)  # magnitudes share a bin if the upper 15 bits after the sign are equal: exponent, 7 of fraction
_FEW = 32  # bounds up to which comparing with all of them beats a binary search


def equal_count_levels(magnitudes: Floats, count: int) -> Levels:
    """Sort 1-D magnitudes, ascending and stable, into `count` blocks as equal as can be; return each one's block.

    The first n mod count blocks have one element more. Of equal magnitudes the first come first. Only what shares a
    histogram bin with a bound is sorted. Scratch: at most 4 bytes per element. `count` is at most 4096.

    >>> equal_count_levels(np.array([3.0, 1.0, 1.0, 9.0, 1.0], np.float32), 2).tolist()
    [1, 0, 0, 1, 0]
    """
    n = magnitudes.size
    sizes = np.full(count, n // count, np.int64)
    sizes[: n % count] += 1
    starts = np.cumsum(sizes)[:-1]
    starts = starts[starts < n]  # a block that begins at the end is empty
    if not starts.size:
        return np.zeros(n, np.uint16)
    bounds = _select(magnitudes, starts)
    classes = np.empty(n, np.uint16)
    counts = np.zeros(2 * bounds.size + 1, np.int64)
    _classify(magnitudes, bounds, classes, counts)
    _number(classes, np.concatenate([[0], np.cumsum(counts)]), starts)
    return classes


def equal_count_levels_defined(magnitudes: Floats, count: int) -> Levels:
    """Define `equal_count_levels`."""
    levels = np.empty(magnitudes.size, np.uint16)
    for block, members in enumerate(np.array_split(np.argsort(magnitudes, kind="stable"), count)):
        levels[members] = block
    return levels


def _select(magnitudes: Floats, ranks: Counts) -> Floats:
    """Return the distinct magnitudes of these ranks, ascending."""
    patterns = magnitudes.view(np.uint32)
    counts = np.zeros(_BINS, np.int64)
    _count_bins(patterns, counts)
    below = np.cumsum(counts) - counts
    bins = np.searchsorted(below + counts, ranks, side="right")
    wanted = np.zeros(_BINS, np.uint8)
    wanted[bins] = 1
    taken = np.where(wanted, counts, 0)
    inside = np.empty(int(taken.sum()) + 1, np.uint32)
    _gather(patterns, wanted, inside)
    chosen = np.sort(inside[:-1])[(np.cumsum(taken) - taken - below)[bins] + ranks]
    return np.unique(chosen).view(np.float32)


@njit(nogil=True, cache=True)
def _count_bins(patterns: Patterns, counts: Counts) -> None:
    for i in range(patterns.size):
        counts[patterns[i] >> np.uint32(16)] += 1


@njit(nogil=True, cache=True)
def _gather(patterns: Patterns, wanted: Bytes, inside: Patterns) -> None:
    """Copy what lies in wanted bins; `inside` has room for one more, so that no branch depends on the data."""
    count = 0
    for i in range(patterns.size):
        inside[count] = patterns[i]
        count += wanted[patterns[i] >> np.uint32(16)]


@njit(nogil=True, cache=True)
def _classify(magnitudes: Floats, bounds: Floats, classes: Classes, counts: Counts) -> None:
    """Give class 2 i + 1 to what equals bound i, and class 2 i to what lies below it and above the one before."""
    patterns, limits = magnitudes.view(np.uint32), bounds.view(np.uint32)
    # Bin b holds the bounds first[b] to first[b + 1].
    first = np.searchsorted(limits >> np.uint32(16), np.arange(_BINS + 1))
    for start in range(0, magnitudes.size, STRIP):
        part = magnitudes[start : start + STRIP]
        mine = classes[start : start + STRIP]
        if bounds.size <= _FEW:
            mine[:] = 0
            for b in range(bounds.size):
                bound = bounds[b]
                for i in range(part.size):
                    mine[i] += np.uint16(part[i] > bound) + np.uint16(part[i] >= bound)
        else:
            for i in range(part.size):
                pattern = patterns[start + i]
                place, last = first[pattern >> np.uint32(16)], first[(pattern >> np.uint32(16)) + 1]
                end = last
                while place < last:
                    middle = (place + last) >> 1
                    if limits[middle] < pattern:
                        place = middle + 1
                    else:
                        last = middle
                mine[i] = np.uint16(2 * place + (place < end and limits[place] == pattern))
        for i in range(part.size):
            counts[mine[i]] += 1


@njit(nogil=True, cache=True)
def _number(classes: Classes, below: Counts, starts: Counts) -> None:
    """Replace classes by blocks: an element's rank is that of its class and, among equals, of its index.

    `below[c]` is how many elements have a lower class. Classes between bounds lie in one block as a whole.
    """
    last = below.size - 1
    block = np.empty(last, np.int64)
    for c in range(last):
        block[c] = np.searchsorted(starts, below[c], side="right")
    seen = below.copy()
    for i in range(classes.size):
        c = classes[i]
        if c & 1:
            rank = seen[c]
            seen[c] = rank + 1
            while block[c] < starts.size and starts[block[c]] <= rank:
                block[c] += 1
        classes[i] = block[c]


def equal_width_levels(magnitudes: Floats, count: int) -> Levels:
    """Cut the range from the smallest to the largest magnitude into `count` equal intervals; return each one's.

    An element on a bound belongs to the interval above it, the largest to the last. If all are equal they are in the
    first.
    """
    if not magnitudes.size:
        return np.zeros(0, np.uint16)
    low, high = float(magnitudes.min()), float(magnitudes.max())
    levels = np.zeros(magnitudes.size, np.uint16)
    if high == low:
        return levels
    factor = count / (high - low)
    for start in range(0, magnitudes.size, PIECE):
        part = (magnitudes[start : start + PIECE].astype(np.float64) - low) * factor
        levels[start : start + part.size] = np.minimum(part, count - 1)
    return levels


def level_means(magnitudes: Floats, levels: Levels, count: int) -> Floats:
    """Return the mean magnitude of every block (count,), added in index order in float64; 0 for an empty one."""
    sums, members = np.zeros(count, np.float64), np.zeros(count, np.int64)
    _sum_levels(magnitudes, levels, sums, members)
    return np.asarray(sums / np.maximum(members, 1), np.float32)


@njit(nogil=True, cache=True)
def _sum_levels(magnitudes: Floats, levels: Levels, sums: npt.NDArray[np.float64], members: Counts) -> None:
    for i in range(magnitudes.size):
        sums[levels[i]] += np.float64(magnitudes[i])
        members[levels[i]] += 1


def pack_levels(levels: Levels, planes: int) -> Bytes:
    """Pack numbers below 2^planes as bit planes, (planes, bytes): row b holds bit b of every number."""
    packed = np.zeros((planes, packed_size(levels.size)), np.uint8)
    for at in range(0, levels.size, PIECE):
        part = levels[at : at + PIECE]
        for b in range(planes):
            bits = np.packbits((part & np.uint16(1 << b)) != 0, bitorder="little")
            packed[b, at // 8 : at // 8 + bits.size] = bits
    return packed


def expand_levels(signs: Bytes, planes: Bytes, offset: int, magnitudes: Floats, out: Floats) -> None:
    """Write ± the magnitude of every element's block over 1-D `out`; `out[0]` has bit `offset` of signs and planes.

    `signs` (bytes,), `planes` (planes, bytes). ValueError if an element is in a block that has no magnitude.
    """
    for bits in (signs, *planes):
        check_bits(bits, offset, out.size)
    if not out.size:
        return
    highest = _expand_levels(plain(signs), plain(planes), offset, _padded(magnitudes, len(planes)), out)
    if highest >= magnitudes.size:
        raise ValueError(f"an element is in a block beyond the {magnitudes.size} that there are")


def expand_levels_defined(signs: Bytes, planes: Bytes, offset: int, magnitudes: Floats, out: Floats) -> None:
    """Define `expand_levels`."""
    level = np.zeros(out.size, np.int64)
    for b in range(len(planes)):
        level += unpack_flags(planes[b], offset, out.size).astype(np.int64) << b
    if out.size and level.max() >= magnitudes.size:
        raise ValueError(f"an element is in a block beyond the {magnitudes.size} that there are")
    chosen = magnitudes[level]
    out[:] = np.where(unpack_flags(signs, offset, out.size), chosen, -chosen)


def _padded(magnitudes: Floats, planes: int) -> Floats:
    """Return a magnitude for every number that so many planes can hold."""
    table = np.zeros(1 << planes, np.float32)
    table[: magnitudes.size] = magnitudes[: table.size]
    return table


@njit(nogil=True, cache=True)
def _expand_levels(signs: Bytes, planes: Bytes, offset: int, table: Floats, out: Floats) -> int:
    """Fill `out`, and return the highest block number met."""
    flags = np.empty(STRIP + 8, np.uint8)
    level = np.empty(STRIP, np.uint16)
    highest = np.uint16(0)
    for start in range(0, out.size, STRIP):
        part = out[start : start + STRIP]
        mine = level[: part.size]
        mine[:] = 0
        for b in range(planes.shape[0]):
            shown = flags_of(planes[b], offset + start, part.size, flags)
            value = np.uint16(1 << b)
            for i in range(part.size):
                mine[i] |= value if shown[i] != 0 else np.uint16(0)
        for i in range(part.size):
            highest = max(highest, mine[i])
        shown = flags_of(signs, offset + start, part.size, flags)
        for i in range(part.size):
            part[i] = table[mine[i]]
        for i in range(part.size):
            part[i] = part[i] if shown[i] != 0 else -part[i]
    return int(highest)
