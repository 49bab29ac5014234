"""How well predictions agree with what was measured: signs, ranks and sizes, with intervals from resampling edits.

A resample is a row of multiplicities: how often each pair occurs in it. Statistics take many rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltasmith.analysis.report import Estimate
from deltasmith.analysis.resampling import multiplicities, percentile_interval

__all__ = ["Pairs", "Statistic", "estimate", "median_error", "signs", "spearman"]

Values = npt.NDArray[np.float64]
Statistic = Callable[[Values, Values, Values], Values]
"""From predicted and measured, each (n,), and multiplicities, (resamples, n), to one figure for each resample."""
By = Literal["edits", "experts"]
RESAMPLES = 1_000


@dataclass(frozen=True)
class Pairs:
    """Predicted and measured changes, (n,), with the expert that each was taken of."""

    predicted: Values
    measured: Values
    experts: Sequence[str]

    def where(self, chosen: npt.NDArray[np.bool_]) -> Pairs:
        """Return the pairs that are chosen."""
        kept = [expert for expert, one in zip(self.experts, chosen, strict=True) if one]
        return Pairs(self.predicted[chosen], self.measured[chosen], kept)


def estimate(pairs: Pairs, statistic: Statistic, by: By = "edits") -> Estimate:
    """Return a statistic of all pairs, and its 95 % interval; NaN where there are too few to say it.

    `edits`: pairs are drawn anew within each expert, which says how much hangs on the choice of edits. `experts`:
    experts are drawn first, which says how much hangs on theirs; of three experts that interval is rough, and
    rather too narrow.
    """
    size = len(pairs.measured)
    if not size:
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = float(statistic(pairs.predicted, pairs.measured, np.ones((1, size)))[0])
    draws = statistic(pairs.predicted, pairs.measured, _drawn(pairs.experts, by))
    draws = draws[np.isfinite(draws)]
    if size < 2 or not draws.size:
        return Estimate(value, float("nan"), float("nan"))
    return Estimate(value, *percentile_interval(draws))


def _drawn(experts: Sequence[str], by: By) -> Values:
    names = sorted(set(experts))
    clusters = multiplicities(len(names), len(experts), RESAMPLES)
    found = np.zeros((RESAMPLES, len(experts)))
    for at, name in enumerate(names):
        own = np.flatnonzero(np.array(experts) == name)
        within = multiplicities(own.size, at + 1, RESAMPLES)
        found[:, own] = within * clusters[:, [at]] if by == "experts" else within
    return found


def signs(predicted: Values, measured: Values, counts: Values) -> Values:
    """Return the share of pairs whose signs agree; a zero agrees with a zero alone."""
    share: Values = counts @ (np.sign(predicted) == np.sign(measured)) / counts.sum(axis=1)
    return share


def spearman(predicted: Values, measured: Values, counts: Values) -> Values:
    """Return the correlation of ranks, ties sharing theirs; NaN where one side has no spread.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 30.0, 4.0]), np.ones((1, 3))).round(6).tolist()
    [0.5]
    """
    size = counts.sum(axis=1, keepdims=True)
    x, y = (_ranks(values, counts) for values in (predicted, measured))
    x, y = (ranks - (counts * ranks).sum(axis=1, keepdims=True) / size for ranks in (x, y))
    with np.errstate(invalid="ignore"):
        found: Values = (counts * x * y).sum(axis=1) / np.sqrt(
            (counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1)
        )
    return found


def _ranks(values: Values, counts: Values) -> Values:
    """Return the mean rank of each value in every resample, (resamples, n)."""
    different, inverse = np.unique(values, return_inverse=True)
    together = np.zeros((len(values), len(different)))
    together[np.arange(len(values)), inverse.reshape(-1)] = 1
    tied = counts @ together
    ranks: Values = (np.cumsum(tied, axis=1) - (tied - 1) / 2)[:, inverse.reshape(-1)]
    return ranks


def median_error(predicted: Values, measured: Values, counts: Values) -> Values:
    """Return the (lower) median of |predicted − measured| / |measured|; no measured value may be zero."""
    errors = np.abs(predicted - measured) / np.abs(measured)
    order = np.argsort(errors, kind="stable")
    passed = np.cumsum(counts[:, order], axis=1) >= counts.sum(axis=1, keepdims=True) / 2
    found: Values = errors[order][passed.argmax(axis=1)]
    return found
