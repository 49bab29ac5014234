"""From figures to a word: intervals by resampling the data, the margin, and the classes that it divides.

The paper (A Unified View of Delta Parameter Editing, arXiv 2410.13841) sorts edits into competitive, decreased and
improved ones by looking at benchmark scores, and draws no line between the classes. The lines here are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deltasmith.analysis.objective import Matrix, Vector
from deltasmith.analysis.report import Estimate, Verdict
from deltasmith.analysis.resampling import multiplicities, percentile_interval
from deltasmith.operation.randomness import cell_key

__all__ = [
    "RESAMPLES",
    "Margin",
    "default_margin",
    "given_margin",
    "interval",
    "intervals",
    "verdict",
]

RESAMPLES = 10_000
_LEAST_CHUNKS = 2
_ROOM = 1 << 21  # numbers held at once while resampling
_SHARE, _SMALLEST, _UNKNOWN = 0.02, 0.002, 0.01


@dataclass(frozen=True, slots=True)
class Margin:
    """A change of the loss that counts as none, in the unit of the loss, >= 0; and where it comes from."""

    value: float
    reason: str


def default_margin(start_loss: float, base_loss: float | None) -> Margin:
    """Take 2 % of what fine-tuning gained on the data, at least 0.002; or 0.01 where that is not known.

    `start_loss` is that of the fine-tuned model, where the path starts; `base_loss` its base's, None where the path
    starts elsewhere or there is no base. All in nats per token. Where fine-tuning gained nothing on these data, the
    smallest margin stands. A convention of ours: the paper gives none.

    >>> default_margin(1.5, 2.5), default_margin(1.5, None).value
    (Margin(value=0.02, reason='2 % of the 1.0000 that fine-tuning gained on these data'), 0.01)
    """
    if base_loss is None:
        return Margin(_UNKNOWN, "the default where it is not known what fine-tuning gained")
    gain = base_loss - start_loss
    if gain < 0:
        return Margin(
            _SMALLEST, f"the least there is: fine-tuning raised the loss on these data, by {-gain:.4f}"
        )
    if _SHARE * gain < _SMALLEST:
        return Margin(_SMALLEST, f"the least there is: fine-tuning gained only {gain:.4f} on these data")
    return Margin(_SHARE * gain, f"2 % of the {gain:.4f} that fine-tuning gained on these data")


def given_margin(value: float) -> Margin:
    """Take the user's own."""
    return Margin(value, "as asked for")


def interval(values: Vector, counts: Vector, seed: int = 0) -> Estimate:
    """Average (chunks,) values by (chunks,) counts, with the 95 % interval from resampling the chunks.

    See `intervals`.

    >>> interval(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    Estimate(value=2.0, low=1.0, high=3.0)
    """
    return intervals(values[:, None], counts, seed)[0]


def intervals(values: Matrix, counts: Vector, seed: int = 0) -> tuple[Estimate, ...]:
    """Average (chunks, quantities) by (chunks,) counts, with 95 % intervals: percentiles of 10,000 bootstrap means.

    A resample draws as many chunks as there are, with replacement, and takes the ratio of Σ counts·value to Σ counts
    over them; all quantities see the same resamples. The interval covers how far other data of the same kind would
    differ, not other seeds of a random edit. With one chunk the limits are NaN; with fewer than about eight, they
    are rough, and mostly too narrow. In float64; the same for the same seed and number of chunks.
    """
    means = counts @ values / counts.sum()
    if len(counts) < _LEAST_CHUNKS:
        return tuple(Estimate(float(mean), math.nan, math.nan) for mean in means)
    weighted = values * counts[:, None]
    block = min(RESAMPLES, max(1, _ROOM // len(counts)))
    draws = np.empty((RESAMPLES, values.shape[1]))
    for start in range(0, RESAMPLES, block):
        stop = min(RESAMPLES, start + block)
        drawn = multiplicities(len(counts), cell_key(seed, "interval", str(start)), stop - start)
        draws[start:stop] = (drawn @ weighted) / (drawn @ counts)[:, None]
    limits = (percentile_interval(column) for column in draws.T)
    return tuple(Estimate(float(mean), low, high) for mean, (low, high) in zip(means, limits, strict=True))


def verdict(change: Estimate, margin: float) -> Verdict:
    """Name the class of a change of the loss by its interval: all of it must lie on one side of the margin.

    `decreased` (performance: the loss rises) if low > margin, `improved` if high < -margin, `competitive` if
    -margin <= low and high <= margin; `undecided` where the interval crosses a line, or is none.

    >>> verdict(Estimate(0.14, 0.12, 0.17), margin=0.01), verdict(Estimate(0.01, -0.01, 0.03), margin=0.01)
    ('decreased', 'undecided')
    """
    if change.low > margin:
        return "decreased"
    if change.high < -margin:
        return "improved"
    return "competitive" if -margin <= change.low and change.high <= margin else "undecided"
