"""Which columns of a matrix deserve more bits, and which of their values are kept as they are."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from deltasmith.table.checkpoint import Floats

__all__ = ["bits_of_columns", "kept_in", "outlier_counts", "tails_of_columns"]

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_ROWS = 64
"""Rows that are looked at together: a whole matrix of magnitudes would double the memory."""


def outlier_counts(matrix: Floats, threshold: float) -> Counts:
    """Count, in each column of (out, in), the values of magnitude ≥ threshold · mean magnitude of the whole matrix.

    The mean is taken in float64.

    >>> outlier_counts(np.float32([[0, 1], [9, 0], [0, 0]]), 5.0).tolist()
    [1, 0]
    """
    blocks = [matrix[at : at + _ROWS] for at in range(0, len(matrix), _ROWS)]
    total = sum(float(np.abs(block).sum(dtype=np.float64)) for block in blocks)
    bar = threshold * total / max(1, matrix.size)
    counts = np.zeros(matrix.shape[1], np.int64)
    for block in blocks:
        counts += np.count_nonzero(np.abs(block).astype(np.float64) >= bar, axis=0)
    return counts


def _first(counts: Counts, number: int) -> npt.NDArray[np.intp]:
    """Return the columns of the highest counts; of equal ones the lower."""
    return np.argsort(-counts, kind="stable")[:number]


def bits_of_columns(counts: Counts, bits: float, high: int) -> npt.NDArray[np.uint8]:
    """Return the bits of each column: `high` for those of the highest counts, ⌊bits⌋ for the rest, `bits` in the mean.

    >>> bits_of_columns(np.array([0, 7, 0, 9]), 2.5, 4).tolist()
    [2, 2, 2, 4]
    """
    low = math.floor(bits)
    found = np.full(counts.size, low, np.uint8)
    if bits > low:
        found[_first(counts, round(counts.size * (bits - low) / (high - low)))] = high
    return found


def tails_of_columns(counts: Counts, reserve: float, share: float, ratio: float) -> npt.NDArray[np.float64]:
    """Return the fraction of each column to keep at either end, such that `reserve` of the matrix is kept in all.

    The `share` of columns with the highest counts keeps `ratio` times what the others keep.

    >>> tails_of_columns(np.array([0] * 9 + [1]), 0.01, 0.1, 3.5).round(6).tolist()[-2:]
    [0.004, 0.014]
    """
    common = reserve / 2 / (1 - share + share * ratio)
    tails = np.full(counts.size, common)
    tails[_first(counts, round(counts.size * share))] = common * ratio
    return tails


def kept_in(column: Floats, tail: float) -> Mask:
    """Mark the values of a column to be kept: with m = round(n · tail), the m + 1 largest and the m or so smallest.

    The released code compares x ≥ s[m] and x ≤ s[round(n (1 − tail))], s descending: the upper end has one value
    more. Decided: exactly that many values, of equal ones the earliest (there, all of them: in a delta that is
    mostly zeros, nearly the whole column); none where m = 0 (there, an index out of range).
    """
    n = column.size
    mask = np.zeros(n, np.bool_)
    above, below = round(n * tail), n - round(n * (1 - tail))
    if above and below:
        order = np.argsort(column, kind="stable")
        mask[order[:below]] = True
        mask[np.argsort(-column, kind="stable")[: above + 1]] = True
    return mask
