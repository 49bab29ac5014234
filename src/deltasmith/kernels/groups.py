"""Sort numbers by the exponent of their prediction, and plan how each group of exponents is split into bytes and bits.

A change of the weights of one size is a distance in units in the last place that doubles with every exponent the
prediction goes down: sorted by exponent, distances have one scale per group. The distances are made in `ulp.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["count_groups", "count_lengths", "gather", "plan", "scatter", "sort_and_plan"]

Words = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Cursors = npt.NDArray[np.uint64]

_ONE = np.uint64(1)
LANES = 4  # cursors that advance side by side: one alone waits for its own last store
_SAMPLES = 1024  # values of a group whose bit lengths are counted
_FRAME = (
    2048.0  # bits that a further frame must save: its own header and table, and the time of one more call
)
_OCTAVES = 10  # of a token: 0, 1, 2-3, 4-7, …, 128-255, and what does not fit


@njit(nogil=True, cache=True)
def count_groups(predicted: Words, shift: Any, mask: Any, out: Counts) -> None:
    """Count (word >> shift) & mask in each of four equal runs of the words (the last takes the rest).

    `out`: (4, mask + 1), zeroed by the caller. The four rows are what `scatter` and `gather` walk side by side.
    """
    lane = predicted.size // LANES
    for i in range(lane):
        out[0, (predicted[i] >> shift) & mask] += 1
        out[1, (predicted[lane + i] >> shift) & mask] += 1
        out[2, (predicted[2 * lane + i] >> shift) & mask] += 1
        out[3, (predicted[3 * lane + i] >> shift) & mask] += 1
    for i in range(LANES * lane, predicted.size):
        out[3, (predicted[i] >> shift) & mask] += 1


@njit(nogil=True, cache=True)
def scatter(values: Words, predicted: Words, shift: Any, mask: Any, cursors: Cursors, out: Words) -> None:
    """Sort `values` by their prediction's exponent, stably: a counting sort.

    `cursors`: (4, mask + 1) uint64, where the first element of each exponent in each run goes; moved on by the call.
    Signed ones would be looked at for being negative.
    """
    lane = values.size // LANES
    for i in range(lane):
        e = (predicted[i] >> shift) & mask
        at = cursors[0, e]
        cursors[0, e] = at + _ONE
        out[at] = values[i]
        e = (predicted[lane + i] >> shift) & mask
        at = cursors[1, e]
        cursors[1, e] = at + _ONE
        out[at] = values[lane + i]
        e = (predicted[2 * lane + i] >> shift) & mask
        at = cursors[2, e]
        cursors[2, e] = at + _ONE
        out[at] = values[2 * lane + i]
        e = (predicted[3 * lane + i] >> shift) & mask
        at = cursors[3, e]
        cursors[3, e] = at + _ONE
        out[at] = values[3 * lane + i]
    for i in range(LANES * lane, values.size):
        e = (predicted[i] >> shift) & mask
        at = cursors[3, e]
        cursors[3, e] = at + _ONE
        out[at] = values[i]


@njit(nogil=True, cache=True)
def gather(values: Words, predicted: Words, shift: Any, mask: Any, cursors: Cursors, out: Words) -> None:
    """Undo `scatter`: put sorted `values` back to where their predictions stand."""
    lane = out.size // LANES
    for i in range(lane):
        e = (predicted[i] >> shift) & mask
        at = cursors[0, e]
        cursors[0, e] = at + _ONE
        out[i] = values[at]
        e = (predicted[lane + i] >> shift) & mask
        at = cursors[1, e]
        cursors[1, e] = at + _ONE
        out[lane + i] = values[at]
        e = (predicted[2 * lane + i] >> shift) & mask
        at = cursors[2, e]
        cursors[2, e] = at + _ONE
        out[2 * lane + i] = values[at]
        e = (predicted[3 * lane + i] >> shift) & mask
        at = cursors[3, e]
        cursors[3, e] = at + _ONE
        out[3 * lane + i] = values[at]
    for i in range(LANES * lane, out.size):
        e = (predicted[i] >> shift) & mask
        at = cursors[3, e]
        cursors[3, e] = at + _ONE
        out[i] = values[at]


@njit(nogil=True, cache=True)
def sort_and_plan(
    values: Words, predicted: Words, shift: Any, mask: Any, least: int, out: Words, planned: Counts
) -> int:
    """Sort `values` into `out` and plan their groups: `count_groups`, `scatter` and `plan`; return how many groups.

    One call instead of many: threads wait for each other at every return to Python.
    """
    counts = np.zeros((LANES, int(mask) + 1), np.int64)
    count_groups(predicted, shift, mask, counts)
    cursors = np.empty(counts.shape, np.uint64)
    totals = np.zeros(counts.shape[1], np.int64)
    at = 0
    for e in range(totals.size):
        for lane in range(LANES):
            cursors[lane, e] = at
            at += counts[lane, e]
            totals[e] += counts[lane, e]
    scatter(values, predicted, shift, mask, cursors, out)
    return plan(out, totals, out.itemsize * 8, least, planned)


@njit(nogil=True, cache=True)
def count_lengths(values: Words, step: int, out: Counts) -> None:
    """Count the bit lengths of every `step`-th value into `out` (width + 1 counters)."""
    for i in range(0, values.size, step):
        length = 0
        v = np.uint64(values[i])
        for half in (32, 16, 8, 4, 2, 1):
            if v >> np.uint64(half) != 0:
                v >>= np.uint64(half)
                length += half
        length += int(v)  # what is left of the value is its highest bit
        out[length] += 1


@njit(nogil=True, cache=True)
def plan(values: Words, totals: Counts, width: int, least: int, out: Counts) -> int:
    """Divide sorted `values` into groups of exponents; return how many.

    `totals`: values per exponent. An exponent with `least` values or more begins a group; rarer ones go with the
    exponent below. `out`: (groups, 4), one row per group: its first exponent, its values, the bits cut off below
    the token, and 1 if its tokens belong to the frame of the group before.
    """
    count = _cut(totals, least, out)
    lengths = np.zeros((count, width + 1), np.int64)
    frame = np.zeros(_OCTAVES, np.int64)
    start = 0
    for g in range(count):
        size = out[g, 1]
        step = max(1, size // _SAMPLES)
        count_lengths(values[start : start + size], step, lengths[g])
        start += size
        out[g, 2] = _cheapest(lengths[g], width)
        mine = _octaves(lengths[g], out[g, 2]) * step
        loss = _spread(frame + mine) - _spread(frame) - _spread(mine)
        out[g, 3] = 1 if g > 0 and loss < _FRAME else 0
        frame = frame + mine if out[g, 3] else mine
    return count


@njit(nogil=True, cache=True)
def _cut(totals: Counts, least: int, out: Counts) -> int:
    """Write first exponents and sizes; exponents beyond the last row stay in the last group."""
    out[0, 0], out[0, 1] = 0, 0
    count = 1
    for e in range(totals.size):
        if totals[e] >= least and count < len(out) and out[count - 1, 1] > 0:
            out[count, 0], out[count, 1] = e, 0
            count += 1
        out[count - 1, 1] += totals[e]
    return count


@njit(nogil=True, cache=True)
def _octaves(lengths: Counts, low: int) -> Counts:
    """Count the tokens by bit length when `low` bits are cut off."""
    octaves = np.zeros(_OCTAVES, np.int64)
    for b in range(lengths.size):
        octaves[min(max(b - low, 0), _OCTAVES - 1)] += lengths[b]
    return octaves


@njit(nogil=True, cache=True)
def _spread(octaves: Counts) -> float:
    """Return the bits that telling the octaves apart takes: their entropy times their number."""
    total = 0
    bits = 0.0
    for i in range(octaves.size):
        if octaves[i] > 0:
            total += octaves[i]
            bits -= octaves[i] * math.log2(octaves[i])
    return bits + total * math.log2(total) if total > 0 else 0.0


@njit(nogil=True, cache=True)
def _cheapest(lengths: Counts, width: int) -> int:
    """Return the number of low bits at which tokens, low bits and escapes together are smallest.

    Within an octave tokens count as uniform. Of equal costs the fewest low bits win.
    """
    best, cheapest = 0, np.inf
    for low in range(width - 7):
        octaves = _octaves(lengths, low)
        bits = _spread(octaves) + float(octaves[_OCTAVES - 1]) * width
        for i in range(octaves.size):
            bits += octaves[i] * (low + max(0, min(i, 8) - 1))
        if bits < cheapest:
            best, cheapest = low, bits
    return best
