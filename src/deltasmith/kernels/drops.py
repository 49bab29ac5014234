"""Zeroing elements by their random bits, and the sums that go with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.kernels.bits import mixed, threshold_of, uniform_bits_reference
from deltasmith.table.checkpoint import Floats

__all__ = [
    "abs_sum",
    "count_above",
    "drawn",
    "drawn_by_rank",
    "drop",
    "drop_by_rank",
    "drop_partly",
    "mask_by_rank",
    "partly_rescaled",
    "rescaled",
]

Ranks = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
Line = tuple[float, float]


def rescaled(delta: Floats, kept: Mask, keep_probability: Floats | float) -> Floats:
    """Divide what is kept by the probability with which it was kept, and zero the rest; in float32."""
    divided = delta / np.asarray(keep_probability, np.float32)
    return np.where(kept, divided, np.float32(0.0)).astype(np.float32, copy=False)


def partly_rescaled(delta: Floats, kept: Mask, divisor: float, factor: float) -> Floats:
    """Divide what is kept by `divisor` and multiply the rest by `factor`; in float32. A factor of 0 gives +0."""
    if factor == 0.0:
        return rescaled(delta, kept, divisor)
    shrunk = delta * np.float32(factor)
    return np.where(kept, delta / np.float32(divisor), shrunk).astype(np.float32, copy=False)


def drawn(key: int, start: int, n: int, density: float) -> Mask:
    """Draw which of the elements start .. start + n - 1 are kept, each with probability `density`."""
    kept: Mask = uniform_bits_reference(key, start, n).astype(np.uint64) < np.uint64(threshold_of(density))
    return kept


def drawn_by_rank(key: int, start: int, probability: npt.NDArray[np.float64]) -> Mask:
    """Draw which elements are kept, each with its own probability (1-D, in index order from `start`)."""
    thresholds = (probability * 2.0**32 + 0.5).astype(np.int64).astype(np.uint64)
    kept: Mask = uniform_bits_reference(key, start, probability.size).astype(np.uint64) < thresholds
    return kept


def drop(delta: Floats, key: int, start: int, density: float, divisor: float) -> Floats:
    """Keep each element with probability `density`, divided by `divisor`, and zero the others.

    Equals `rescaled(delta, drawn(key, start, n, density), divisor)`; any shape, a new array.
    """
    flat = np.ascontiguousarray(delta).reshape(-1)
    out = np.empty_like(flat)
    threshold = np.uint64(threshold_of(density))
    _drop(flat, np.uint64(key), np.uint64(start), threshold, np.float32(divisor), out)
    return out.reshape(delta.shape)


@njit(nogil=True, cache=True)
def _drop(
    delta: Floats, key: np.uint64, start: np.uint64, threshold: np.uint64, divisor: np.float32, out: Floats
) -> None:
    for i in range(delta.size):
        divided = delta[i] / divisor
        out[i] = divided if mixed(key, start + np.uint64(i)) < threshold else np.float32(0.0)


def drop_partly(delta: Floats, key: int, start: int, density: float, divisor: float, factor: float) -> Floats:
    """Keep each element with probability `density`, divided by `divisor`; multiply the others by `factor`.

    Equals `partly_rescaled(delta, drawn(key, start, n, density), divisor, factor)`; any shape, a new array. Keeps
    the elements that `drop` keeps, and with a factor of 0 is `drop`.
    """
    if factor == 0.0:  # -d * 0 would be -0, which drop never yields
        return drop(delta, key, start, density, divisor)
    flat = np.ascontiguousarray(delta).reshape(-1)
    out = np.empty_like(flat)
    threshold = np.uint64(threshold_of(density))
    with np.errstate(over="ignore"):  # what overflows is refused when it is written
        numbers = np.array([divisor, factor], np.float64).astype(np.float32)
    _drop_partly(flat, np.uint64(key), np.uint64(start), threshold, numbers[0], numbers[1], out)
    return out.reshape(delta.shape)


# error_model="numpy": a divisor may round to 0 (an infinite multiple), and the check for it would cost.
@njit(nogil=True, cache=True, error_model="numpy")
def _drop_partly(
    delta: Floats,
    key: np.uint64,
    start: np.uint64,
    threshold: np.uint64,
    divisor: np.float32,
    factor: np.float32,
    out: Floats,
) -> None:
    for i in range(delta.size):
        kept = mixed(key, start + np.uint64(i)) < threshold
        out[i] = delta[i] / divisor if kept else delta[i] * factor


def drop_by_rank(delta: Floats, ranks: Ranks, key: int, start: int, line: Line) -> Floats:
    """Keep the element of rank r with probability p = top - slope * r, divided by p; zero the others.

    `line` is (top, slope). Equals `rescaled(delta, drawn_by_rank(key, start, p), p)`; any shape that `ranks`
    shares, a new array.
    """
    flat = np.ascontiguousarray(delta).reshape(-1)
    out = np.empty_like(flat)
    _drop_by_rank(flat, ranks.reshape(-1), np.uint64(key), np.uint64(start), line[0], line[1], out)
    return out.reshape(delta.shape)


def mask_by_rank(delta: Floats, ranks: Ranks, key: int, start: int, line: Line) -> Floats:
    """Keep the same elements as `drop_by_rank`, as they are; zero the others."""
    flat = np.ascontiguousarray(delta).reshape(-1)
    out = np.empty_like(flat)
    _mask_by_rank(flat, ranks.reshape(-1), np.uint64(key), np.uint64(start), line[0], line[1], out)
    return out.reshape(delta.shape)


# error_model="numpy": the check for division by zero would keep the loop scalar, 30 times slower.
@njit(nogil=True, cache=True, error_model="numpy")
def _drop_by_rank(
    delta: Floats, ranks: Ranks, key: np.uint64, start: np.uint64, top: float, slope: float, out: Floats
) -> None:
    for i in range(delta.size):
        keep = top - slope * np.float64(ranks[i])
        divided = delta[i] / np.float32(keep)
        threshold = np.uint64(np.int64(keep * 4294967296.0 + 0.5))
        out[i] = divided if mixed(key, start + np.uint64(i)) < threshold else np.float32(0.0)


@njit(nogil=True, cache=True)
def _mask_by_rank(
    delta: Floats, ranks: Ranks, key: np.uint64, start: np.uint64, top: float, slope: float, out: Floats
) -> None:
    for i in range(delta.size):
        keep = top - slope * np.float64(ranks[i])
        threshold = np.uint64(np.int64(keep * 4294967296.0 + 0.5))
        out[i] = delta[i] if mixed(key, start + np.uint64(i)) < threshold else np.float32(0.0)


@njit(nogil=True, cache=True)
def abs_sum(values: Floats) -> float:
    """Sum |values| (1-D, contiguous) in float64, in eight interleaved partial sums added in order."""
    a = b = c = d = e = f = g = h = 0.0
    whole = values.size - values.size % 8
    for i in range(0, whole, 8):
        a += abs(np.float64(values[i]))
        b += abs(np.float64(values[i + 1]))
        c += abs(np.float64(values[i + 2]))
        d += abs(np.float64(values[i + 3]))
        e += abs(np.float64(values[i + 4]))
        f += abs(np.float64(values[i + 5]))
        g += abs(np.float64(values[i + 6]))
        h += abs(np.float64(values[i + 7]))
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, values.size):
        total += abs(np.float64(values[i]))
    return total


@njit(nogil=True, cache=True)
def count_above(values: Floats, bound: np.float32) -> int:
    """Count the elements (1-D, contiguous) whose magnitude exceeds `bound`."""
    count = 0
    for i in range(values.size):
        count += abs(values[i]) > bound
    return count
