"""Counting what lies above, inside and below a bracket of float bit patterns: the inner loops of selection.

Non-negative float32 values order like their bit patterns read as unsigned integers, so a histogram over bit
patterns is exact: with one bin per pattern its counts determine any order statistic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["count_equal", "histogram", "keep_above"]

Counts = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint32]

_SIGNLESS = np.uint32(0x7FFFFFFF)


@njit(nogil=True, cache=True)
def histogram(
    scores: Floats,
    low: int,
    span: int,
    shift: int,
    bins: npt.NDArray[np.uint32],
    slots: npt.NDArray[np.int8],
    tied: npt.NDArray[np.int64],
    inside: npt.NDArray[np.uint32],
) -> int:
    """Count |score| patterns in [low, low + span): bins[(bits - low) >> shift] += 1; return how many lie above.

    `slots[bin]` >= 0 names a value whose occurrences are counted apart in `tied`, for tie-breaking. `inside` is
    scratch with room for one more than `scores`. The two loops over all scores have no branch that depends on the
    data: which of them are large is as good as random, and a mispredicted branch costs more than both loops.
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
    right = np.uint32(shift)
    for j in range(count):
        index = inside[j] >> right
        bins[index] += np.uint32(1)
        slot = slots[index]
        if slot >= 0:
            tied[slot] += 1
    return above


@njit(nogil=True, cache=True)
def count_equal(scores: Floats, pattern: int) -> int:
    """Count the elements whose magnitude has exactly this bit pattern."""
    wanted = np.uint32(pattern)
    count = 0
    bits = scores.view(np.uint32)
    for i in range(bits.size):
        count += (bits[i] & np.uint32(0x7FFFFFFF)) == wanted
    return count


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
