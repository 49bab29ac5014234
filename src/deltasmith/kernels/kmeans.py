"""The best k centroids of one column of numbers, exactly: k-means on a line, where it is not a heuristic.

On a line the clusters of an optimal k-means are intervals of the sorted values, so dynamic programming over the
positions of the cuts finds them. The best last cut moves to the right as the prefix grows, which brings each
of the k layers from n² to n log n comparisons.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["assign", "centroids", "centroids_reference", "inertia"]

Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int32]


def centroids_reference(values: Floats, k: int) -> Doubles:
    """Return the means of the k intervals of sorted `values` with the least squared error: the definition.

    Compares all cuts of all prefixes, in O(k n²). Fewer than k distinct values: the largest is repeated.
    """
    found, counts = np.unique(values.astype(np.float64), return_counts=True)
    n = found.size
    if n <= k:
        return np.concatenate([found, np.full(k - n, found[-1] if n else 0.0)])
    weight = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum((found - found.mean()) * counts)])
    best = np.full((k + 1, n + 1), -np.inf)
    best[0, 0] = 0.0
    cut = np.zeros((k + 1, n + 1), np.int64)
    for c in range(1, k + 1):
        for j in range(c, n + 1):
            i = np.arange(c - 1, j)
            gains = best[c - 1, i] + (total[j] - total[i]) ** 2 / (weight[j] - weight[i])
            cut[c, j] = i[np.argmax(gains)]
            best[c, j] = gains.max()
    result, stop = np.empty(k), n
    for c in range(k, 0, -1):
        start = cut[c, stop]
        result[c - 1] = np.average(found[start:stop], weights=counts[start:stop])
        stop = start
    return result


@njit(nogil=True, cache=True)
def _sums(ordered: Floats, weight: Doubles, total: Doubles) -> tuple[int, float]:
    """Write prefix counts and sums over the distinct values; return their number and the value they are less."""
    # Sums of deviations from the middle value: the squares below would cancel if the values lay far from zero.
    middle = np.float64(ordered[ordered.size // 2])
    n = 0
    weight[0] = total[0] = 0.0
    for i in range(ordered.size):
        x = np.float64(ordered[i]) - middle
        if i == 0 or ordered[i] != ordered[i - 1]:
            n += 1
            weight[n], total[n] = weight[n - 1], total[n - 1]
        weight[n] += 1.0
        total[n] += x
    return n, middle


@njit(nogil=True, cache=True)
def _best_cut(
    before: Doubles, weight: Doubles, total: Doubles, j: int, low: int, high: int
) -> tuple[int, float]:
    """Return where in [low, high] the last of the clusters that hold the first j values begins, and the gain."""
    at, top = low, -1.0
    for i in range(low, high + 1):
        d = total[j] - total[i]
        gain = before[i] + d * d / (weight[j] - weight[i])
        if gain > top:
            at, top = i, gain
    return at, top


@njit(nogil=True, cache=True)
def _layer(
    before: Doubles, weight: Doubles, total: Doubles, c: int, n: int, after: Doubles, cut: Indices
) -> None:
    """Extend the best c − 1 clusters of every prefix to the best c, coarse positions first.

    The cut of a position lies between those of its two neighbours on the next coarser grid.
    """
    length = n - c + 1
    stride = 1
    while 2 * stride <= length:
        stride *= 2
    while stride:
        for p in range(stride - 1, length, 2 * stride):
            j = p + c
            low = cut[j - stride] if p >= stride else c - 1
            high = min(cut[j + stride], j - 1) if p + stride < length else j - 1
            cut[j], after[j] = _best_cut(before, weight, total, j, low, high)
        stride //= 2


@njit(nogil=True, cache=True)
def _centroids(ordered: Floats, out: Doubles) -> None:
    k = out.size
    weight, total = np.empty(ordered.size + 1), np.empty(ordered.size + 1)
    n, middle = _sums(ordered, weight, total)
    if n <= k:
        for c in range(k):
            j = min(c, n - 1)
            out[c] = middle + (total[j + 1] - total[j]) / (weight[j + 1] - weight[j])
        return
    gains = np.empty((2, n + 1))
    cuts = np.zeros((k + 1, n + 1), np.int32)
    gains[1, 0] = 0.0
    for j in range(1, n + 1):
        gains[1, j] = total[j] * total[j] / weight[j]
    for c in range(2, k):
        _layer(gains[(c - 1) % 2], weight, total, c, n, gains[c % 2], cuts[c])
    stop = n
    for c in range(k, 0, -1):
        start = 0
        if c == k and k > 1:
            start, _ = _best_cut(gains[(k - 1) % 2], weight, total, n, k - 1, n - 1)
        elif c > 1:
            start = cuts[c, stop]
        out[c - 1] = middle + (total[stop] - total[start]) / (weight[stop] - weight[start])
        stop = start


def centroids(values: Floats, k: int) -> Doubles:
    """Return the k centroids of least squared error of `values` (any order), ascending, in float64.

    Exact up to float64 rounding, O(n log n) for the sort and for each of k − 2 layers; a value that occurs often
    costs no more than one that occurs once. Of equally good cuts the leftmost is taken. Fewer than k distinct
    values: the largest is repeated; no values: zeros. k ≥ 1. 4 · k bytes of scratch a value.

    The published quantisers call a k-means that starts at random and ends in a local optimum.

    >>> centroids(np.float32([5, 1, 1, 6, 20]), 3).tolist()
    [1.0, 5.5, 20.0]
    """
    out = np.zeros(k)
    if values.size:
        _centroids(np.sort(values.reshape(-1)).astype(np.float32, copy=False), out)
    return out


@njit(nogil=True, cache=True)
def _count_above(values: Floats, borders: Floats, out: Codes) -> None:
    for i in range(values.size):
        out[i] = 0
    # One pass for each border: passes without a branch run on whole vectors, a search for each value does not.
    for t in range(borders.size):
        border = borders[t]
        for i in range(values.size):
            out[i] += np.uint8(values[i] > border)


def assign(values: Floats, codebook: Floats, out: Codes) -> None:
    """Write the index of the nearest of at most 256 ascending float32 centroids for each value; ties go down.

    numpy: `np.abs(values[:, None] - codebook).argmin(1)`, exactly computed.
    """
    exact = codebook.astype(np.float64)
    middles = (exact[:-1] + exact[1:]) / 2  # exact in float64, so that float32 values compare exactly
    borders = middles.astype(np.float32)
    above = borders > middles
    borders[above] = np.nextafter(borders[above], np.float32(-np.inf))
    _count_above(values, borders, out)


def inertia(values: Floats, codebook: Doubles) -> float:
    """Return the sum of squared distances to the nearest centroid, in float64."""
    distances = np.abs(values.astype(np.float64)[:, None] - np.asarray(codebook, np.float64))
    return float((distances.min(axis=1) ** 2).sum())
