"""Counting what lies above, inside and below a bracket of float bit patterns: the inner loops of selection.

Non-negative float32 values order like their bit patterns read as unsigned integers, so a histogram over bit
patterns is exact: with one bin per pattern its counts determine any order statistic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["EMPTY", "MIXED", "collect", "count_equal", "histogram", "keep_above", "note_values", "tally"]

Counts = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint32]

EMPTY, MIXED = 0xFFFFFFFF, 0xFFFFFFFE


@njit(nogil=True, cache=True)
def collect(scores: Floats, low: int, span: int, inside: Bits) -> tuple[int, int]:
    """Write the offsets of |score| patterns in [low, low + span) to `inside`; return how many, and how many lie above.

    `inside` is scratch with room for one more than `scores`. The loops have no branch that depends on the data:
    which values are large is as good as random, and mispredicted branches would cost more than both loops.
    """
    bits = scores.view(np.uint32)
    mask = np.uint32(0x7FFFFFFF)
    base = np.uint32(low)
    width = np.uint32(span)
    end = np.uint32(low + span)
    above = np.uint32(0)
    for i in range(bits.size):
        above += np.uint32((bits[i] & mask) >= end)
    count = 0
    for i in range(bits.size):
        offset = (bits[i] & mask) - base  # wraps around below the bracket, to beyond its width
        inside[count] = offset
        count += offset < width
    return count, int(above)


@njit(nogil=True, cache=True)
def histogram(offsets: Bits, shift: int, bins: Bits, slots: npt.NDArray[np.int8], tied: Counts) -> None:
    """Add bins[offset >> shift] += 1; where slots[bin] >= 0, count the bin apart in `tied` as well."""
    right = np.uint32(shift)
    for j in range(offsets.size):
        index = offsets[j] >> right
        bins[index] += np.uint32(1)
        slot = slots[index]
        if slot >= 0:
            tied[slot] += 1


@njit(nogil=True, cache=True)
def note_values(offsets: Bits, shift: int, values: Bits) -> None:
    """Remember for each bin the one offset it has met: EMPTY before the first, MIXED after a different one."""
    right = np.uint32(shift)
    for j in range(offsets.size):
        index = offsets[j] >> right
        known = values[index]
        if known == np.uint32(EMPTY):
            values[index] = offsets[j]
        elif known != offsets[j]:
            values[index] = np.uint32(MIXED)


@njit(nogil=True, cache=True)
def tally(
    scores: Floats,
    block: int,
    low: int,
    span: int,
    shift: int,
    bins: Bits,
    values: Bits,
    slots: npt.NDArray[np.int8],
    tied: Counts,
    inside: Bits,
) -> int:
    """Count a tile block by block: `collect`, `histogram` and, where bins are coarse, `note_values`.

    Row b of `tied` takes block b's likely ties. Returns how many scores lie above the bracket.
    """
    above = 0
    for b in range(tied.shape[0]):
        part = scores[b * block : min(scores.size, (b + 1) * block)]
        count, more = collect(part, low, span, inside)
        above += more
        histogram(inside[:count], shift, bins, slots, tied[b])
        if shift > 0:
            note_values(inside[:count], shift, values)
    return above


@njit(nogil=True, cache=True)
def count_equal(scores: Floats, block: int, pattern: int, counts: Counts) -> None:
    """Count, for each block of a tile, the elements whose magnitude has exactly this bit pattern."""
    wanted = np.uint32(pattern)
    bits = scores.view(np.uint32)
    for b in range(counts.shape[0]):
        count = 0
        part = bits[b * block : min(bits.size, (b + 1) * block)]
        for i in range(part.size):
            count += (part[i] & np.uint32(0x7FFFFFFF)) == wanted
        counts[b, 0] = count


@njit(nogil=True, cache=True)
def keep_above(values: Floats, pattern: int, quota: int, out: Floats) -> None:
    """Copy elements whose magnitude exceeds the pattern, and the first `quota` that equal it; zero the rest."""
    cut = np.uint32(pattern)
    bits = values.view(np.uint32)
    if quota <= 0:
        for i in range(values.size):
            out[i] = values[i] if (bits[i] & np.uint32(0x7FFFFFFF)) > cut else np.float32(0.0)
        return
    if quota >= values.size:
        for i in range(values.size):
            out[i] = values[i] if (bits[i] & np.uint32(0x7FFFFFFF)) >= cut else np.float32(0.0)
        return
    left = quota
    for i in range(values.size):
        b = bits[i] & np.uint32(0x7FFFFFFF)
        take = b > cut
        if b == cut and left > 0:
            take = True
            left -= 1
        out[i] = values[i] if take else np.float32(0.0)
