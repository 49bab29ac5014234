"""One pass over a tile of deltas: the sums that `diff` reports."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["measure_column", "measure_pair"]

Sums = npt.NDArray[np.float64]


@njit(nogil=True, cache=True)
def measure_column(delta: Floats) -> Sums:
    """Return (count of zeros, sum |δ|, sum δ², max |δ|) of one column's tile."""
    zeros = 0
    total = 0.0
    squares = 0.0
    largest = np.float32(0.0)
    for i in range(delta.size):
        a = abs(delta[i])
        zeros += a == np.float32(0.0)
        total += a
        squares += np.float64(a) * np.float64(a)
        largest = max(largest, a)
    return np.array([zeros, total, squares, largest], dtype=np.float64)


@njit(nogil=True, cache=True)
def measure_pair(first: Floats, second: Floats) -> Sums:
    """Return (dot product, count both non-zero, count of opposite signs) of two columns' tiles."""
    dot = 0.0
    both = 0
    opposed = 0
    for i in range(first.size):
        a = first[i]
        b = second[i]
        dot += np.float64(a) * np.float64(b)
        moved = (a != np.float32(0.0)) and (b != np.float32(0.0))
        both += moved
        opposed += moved and ((a > np.float32(0.0)) != (b > np.float32(0.0)))
    return np.array([dot, both, opposed], dtype=np.float64)
