"""Sums, elections, medians over models, position by position: one pass, no array of temporaries.

Each compiled function stands beside the numpy definition it must equal bit for bit (`*_defined`). Both round
weights to float32 once, and add the models in column order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = [
    "elect_max",
    "elect_max_defined",
    "elect_mean",
    "elect_mean_defined",
    "elect_sum",
    "elect_sum_defined",
    "median",
    "median_defined",
    "sign_balance",
    "sign_balance_defined",
    "unify",
    "weighted_sum",
    "weighted_sum_defined",
]

Weights = Sequence[float] | npt.NDArray[np.floating]

_STRIP = 2048  # elements whose few scratch rows stay in the first-level cache


def _rows(cells: Floats) -> Floats:
    """View (models, ...) as contiguous (models, n)."""
    return np.ascontiguousarray(cells, dtype=np.float32).reshape(cells.shape[0], -1)


def _single(weights: Weights) -> Floats:
    return np.ascontiguousarray(weights, dtype=np.float32)


def weighted_sum(cells: Floats, weights: Weights) -> Floats:
    """Add w · cell over the models, (models, ...) → (...): a new array."""
    rows = _rows(cells)
    out = np.empty(rows.shape[1], np.float32)
    _weighted_sum(rows, _single(weights), out)
    return out.reshape(cells.shape[1:])


def weighted_sum_defined(cells: Floats, weights: Weights) -> Floats:
    """Define `weighted_sum`."""
    w = _single(weights)
    total: Floats = cells[0] * w[0]
    for t in range(1, len(cells)):
        total = total + cells[t] * w[t]
    return np.asarray(total, np.float32)


@njit(nogil=True, cache=True)
def _weighted_sum(cells: Floats, weights: Floats, out: Floats) -> None:
    for start in range(0, cells.shape[1], _STRIP):
        _add_up(cells, weights, start, out[start : start + _STRIP])


def elect_mean(cells: Floats, votes: Weights, shares: Weights, zero: int) -> Floats:
    """Average, by `shares`, the cells whose vote has the elected sign: Σ share · cell / Σ share.

    The elected sign is that of Σ vote · cell; where that sum is exactly 0 it is `zero` (-1, 0 or 1; 0 elects
    nothing). Cells that are 0 never agree. A divisor of 0 counts as 1.
    """
    rows = _rows(cells)
    out = np.empty(rows.shape[1], np.float32)
    _elect_mean(rows, _single(votes), _single(shares), np.float32(zero), out)
    return out.reshape(cells.shape[1:])


def elect_mean_defined(cells: Floats, votes: Weights, shares: Weights, zero: int) -> Floats:
    """Define `elect_mean`."""
    agree = _agreeing(cells, votes, zero)
    w = _single(shares)
    total = np.zeros(cells.shape[1:], np.float32)
    divisor = np.zeros(cells.shape[1:], np.float32)
    for t in range(len(cells)):
        total = total + np.where(agree[t], cells[t] * w[t], np.float32(0))
        divisor = divisor + np.where(agree[t], w[t], np.float32(0))
    return np.asarray(total / np.where(divisor == 0, np.float32(1), divisor), np.float32)


# error_model="numpy": the check for division by zero would keep the loop scalar.
@njit(nogil=True, cache=True, error_model="numpy")
def _elect_mean(cells: Floats, votes: Floats, shares: Floats, zero: np.float32, out: Floats) -> None:
    nought = np.float32(0.0)
    one = np.float32(1.0)
    scratch = np.empty((2, _STRIP), np.float32)
    for start in range(0, cells.shape[1], _STRIP):
        total = out[start : start + _STRIP]
        elected, divisor = scratch[0, : total.size], scratch[1, : total.size]
        _elect(cells, votes, zero, start, elected)
        total[:] = nought
        divisor[:] = nought
        for t in range(cells.shape[0]):
            cell = cells[t, start : start + _STRIP]
            vote, share = votes[t], shares[t]
            for i in range(total.size):
                agree = _same_sign(vote * cell[i], elected[i])
                total[i] += share * cell[i] if agree else nought
                divisor[i] += share if agree else nought
        for i in range(total.size):
            total[i] /= one if divisor[i] == nought else divisor[i]


def elect_sum(cells: Floats, weights: Weights, zero: int) -> Floats:
    """Add w · cell over the models whose w · cell has the elected sign (see `elect_mean`)."""
    rows = _rows(cells)
    out = np.empty(rows.shape[1], np.float32)
    _elect_sum(rows, _single(weights), np.float32(zero), out)
    return out.reshape(cells.shape[1:])


def elect_sum_defined(cells: Floats, weights: Weights, zero: int) -> Floats:
    """Define `elect_sum`."""
    agree = _agreeing(cells, weights, zero)
    w = _single(weights)
    total = np.zeros(cells.shape[1:], np.float32)
    for t in range(len(cells)):
        total = total + np.where(agree[t], cells[t] * w[t], np.float32(0))
    return np.asarray(total, np.float32)


@njit(nogil=True, cache=True)
def _elect_sum(cells: Floats, weights: Floats, zero: np.float32, out: Floats) -> None:
    nought = np.float32(0.0)
    scratch = np.empty(_STRIP, np.float32)
    for start in range(0, cells.shape[1], _STRIP):
        total = out[start : start + _STRIP]
        elected = scratch[: total.size]
        _elect(cells, weights, zero, start, elected)
        total[:] = nought
        for t in range(cells.shape[0]):
            cell = cells[t, start : start + _STRIP]
            w = weights[t]
            for i in range(total.size):
                vote = w * cell[i]
                total[i] += vote if _same_sign(vote, elected[i]) else nought


def elect_max(cells: Floats, weights: Weights, zero: int) -> Floats:
    """Take, of the w · cell that have the elected sign, the one of largest magnitude (see `elect_mean`).

    Positions where nothing is elected are +0.
    """
    rows = _rows(cells)
    out = np.empty(rows.shape[1], np.float32)
    _elect_max(rows, _single(weights), np.float32(zero), out)
    return out.reshape(cells.shape[1:])


def elect_max_defined(cells: Floats, weights: Weights, zero: int) -> Floats:
    """Define `elect_max`."""
    agree = _agreeing(cells, weights, zero)
    w = _single(weights)
    best = np.zeros(cells.shape[1:], np.float32)
    for t in range(len(cells)):
        vote = cells[t] * w[t]
        best = np.where(agree[t] & (np.abs(vote) > np.abs(best)), vote, best)
    return np.asarray(best, np.float32)


@njit(nogil=True, cache=True)
def _elect_max(cells: Floats, weights: Floats, zero: np.float32, out: Floats) -> None:
    scratch = np.empty(_STRIP, np.float32)
    for start in range(0, cells.shape[1], _STRIP):
        best = out[start : start + _STRIP]
        elected = scratch[: best.size]
        _elect(cells, weights, zero, start, elected)
        best[:] = np.float32(0.0)
        for t in range(cells.shape[0]):
            cell = cells[t, start : start + _STRIP]
            w = weights[t]
            for i in range(best.size):
                vote = w * cell[i]
                larger = _same_sign(vote, elected[i]) & (abs(vote) > abs(best[i]))
                best[i] = vote if larger else best[i]


def unify(cells: Floats, weights: Weights) -> Floats:
    """Build EMR's unified vector: `elect_max` with a zero sum counting as negative."""
    return elect_max(cells, weights, -1)


def sign_balance(cells: Floats, weights: Weights) -> int:
    """Count the positions whose Σ w · cell is positive, less those where it is negative."""
    rows = _rows(cells)
    return int(_sign_balance(rows, _single(weights)))


def sign_balance_defined(cells: Floats, weights: Weights) -> int:
    """Define `sign_balance`."""
    return int(np.sign(weighted_sum_defined(cells, weights)).sum(dtype=np.int64))


@njit(nogil=True, cache=True)
def _sign_balance(cells: Floats, weights: Floats) -> int:
    scratch = np.empty(_STRIP, np.float32)
    balance = 0
    for start in range(0, cells.shape[1], _STRIP):
        elected = scratch[: min(_STRIP, cells.shape[1] - start)]
        _add_up(cells, weights, start, elected)
        for i in range(elected.size):
            balance += (elected[i] > 0) - (elected[i] < 0)
    return balance


def median(cells: Floats) -> Floats:
    """Take the middle value over the models, the mean of the middle two where their number is even."""
    rows = _rows(cells)
    out = np.empty(rows.shape[1], np.float32)
    _median(rows, out)
    return out.reshape(cells.shape[1:])


def median_defined(cells: Floats) -> Floats:
    """Define `median`."""
    return np.asarray(np.median(cells, axis=0), np.float32)


@njit(nogil=True, cache=True)
def _median(cells: Floats, out: Floats) -> None:
    models = cells.shape[0]
    scratch = np.empty((models, _STRIP), np.float32)
    for start in range(0, cells.shape[1], _STRIP):
        middle = out[start : start + _STRIP]
        # An insertion sort of whole strips: every exchange is a vector minimum and maximum.
        for t in range(models):
            scratch[t, : middle.size] = cells[t, start : start + _STRIP]
            for u in range(t, 0, -1):
                low, high = scratch[u - 1, : middle.size], scratch[u, : middle.size]
                for i in range(middle.size):
                    a, b = low[i], high[i]
                    low[i] = b if b < a else a
                    high[i] = a if b < a else b
        below, above = scratch[(models - 1) // 2], scratch[models // 2]
        if models % 2:
            middle[:] = above[: middle.size]
        else:
            for i in range(middle.size):
                middle[i] = (below[i] + above[i]) / np.float32(2.0)


def _agreeing(cells: Floats, votes: Weights, zero: int) -> npt.NDArray[np.bool_]:
    """Mark which cells voted for the elected sign."""
    w = _single(votes)
    total = weighted_sum_defined(cells, votes)
    elected = np.where(total == 0, np.float32(zero), total)
    marks = [_agree_defined(cells[t] * w[t], elected) for t in range(len(cells))]
    return np.stack(marks)


def _agree_defined(vote: Floats, elected: Floats) -> npt.NDArray[np.bool_]:
    both: npt.NDArray[np.bool_] = ((vote > 0) & (elected > 0)) | ((vote < 0) & (elected < 0))
    return both


@njit(nogil=True, cache=True)
def _same_sign(vote: float, elected: float) -> bool:
    return ((vote > 0) & (elected > 0)) | ((vote < 0) & (elected < 0))


# Loops run over slices, not over `start + i`: only then does the compiler see that no index is negative
# and vectorise them (a factor of 8).
@njit(nogil=True, cache=True)
def _add_up(cells: Floats, weights: Floats, start: int, total: Floats) -> None:
    """Fill `total` with Σ w · cell from `start` on."""
    first = cells[0, start : start + total.size]
    w = weights[0]
    for i in range(total.size):
        # The first product is stored, not added to zero: -0.0 survives in a sum of one.
        total[i] = w * first[i]
    for t in range(1, cells.shape[0]):
        cell = cells[t, start : start + total.size]
        w = weights[t]
        for i in range(total.size):
            total[i] += w * cell[i]


@njit(nogil=True, cache=True)
def _elect(cells: Floats, votes: Floats, zero: np.float32, start: int, elected: Floats) -> None:
    """Fill `elected` with numbers that have the elected signs: Σ vote · cell, `zero` where that is 0."""
    _add_up(cells, votes, start, elected)
    for i in range(elected.size):
        elected[i] = zero if elected[i] == 0 else elected[i]
