"""Look along a delta for the place where the loss stops falling: ExPO, with the sign of the term as its guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deltasmith.analysis.objective import Matrix, Objective, Vector
from deltasmith.analysis.resampling import multiplicities, percentile_interval, resampled_mean
from deltasmith.errors import InterruptedRunError, RefusedError

__all__ = ["Evaluation", "LineSearch", "Outcome", "line_search"]

Outcome = Literal["minimum", "end", "start"]
"""`minimum`: the slope changes its sign there. `end`: it still pointed onwards there. `start`: nowhere to go."""

_FLAT = 1e-3  # a slope so much smaller than the one at 0 counts as none
_NARROW = 1e-2  # a bracket of so small a part of the range is narrow enough
_SAFE = 0.1  # no point is taken nearer to an end of the bracket than this part of it


@dataclass(frozen=True)
class Evaluation:
    """One visited point: the slope and the loss on the chunks searched on, the loss on those held out."""

    alpha: float
    slope: float
    search_loss: float
    held_out_loss: float


@dataclass(frozen=True)
class LineSearch:
    """Where along start + α · direction the slope of the loss vanishes, and what going there does.

    A local minimum, the first one found downhill of the start: another, lower one may lie beyond it or on the other
    side. `interval` says how far α would differ on other data of the same kind (95 %, chunks resampled, the slope
    interpolated between the visited points), or with one chunk to search on it is the bracket. A resample whose slope
    at 0 has the other sign counts as α = 0.
    """

    low: float
    high: float
    evaluations: tuple[Evaluation, ...]
    """All points in the order of their visit; the first is α = 0."""
    alpha: float
    outcome: Outcome
    interval: tuple[float, float]
    interval_from: Literal["resampling", "bracket"]
    predicted: float
    """The change of the loss from 0 to α: the integral of the search half's slopes, by the trapezoid rule."""
    measured: float
    """The change of the loss from 0 to α on the chunks held out."""
    measured_interval: tuple[float, float] | None
    """95 % of it from resampling the chunks held out; None where one was."""

    @property
    def advises(self) -> Literal["extrapolate", "interpolate", "stay"]:
        """Say on which side of the start α lies."""
        return "extrapolate" if self.alpha > 0 else "interpolate" if self.alpha < 0 else "stay"

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "low": self.low,
            "high": self.high,
            "alpha": self.alpha,
            "advises": self.advises,
            "outcome": self.outcome,
            "interval": list(self.interval),
            "interval_from": self.interval_from,
            "predicted": self.predicted,
            "measured": self.measured,
            "measured_interval": None if self.measured_interval is None else list(self.measured_interval),
            "evaluations": [
                {
                    "alpha": e.alpha,
                    "slope": e.slope,
                    "search_loss": e.search_loss,
                    "held_out_loss": e.held_out_loss,
                }
                for e in self.evaluations
            ],
        }


@dataclass
class _Visits:
    """The points visited so far, with every chunk's loss and slope; even chunks are searched on."""

    objective: Objective
    asked: Callable[[], bool]
    say: Callable[[float], None]
    alphas: list[float] = field(default_factory=list)
    losses: list[Vector] = field(default_factory=list)
    slopes: list[Vector] = field(default_factory=list)

    def slope(self, alpha: float) -> float:
        """Visit a point, and return the slope that the chunks searched on have there."""
        if alpha not in self.alphas:
            if self.asked():
                raise InterruptedRunError("the line search was interrupted", fix="run the same command again")
            self.objective.move(alpha)
            losses, slopes = self.objective.slopes()
            _refuse_nonfinite(losses, slopes, alpha)
            self.alphas.append(alpha)
            self.losses.append(losses)
            self.slopes.append(slopes.sum(axis=1))
            self.say(alpha)
        return self.searched(self.slopes[self.alphas.index(alpha)])

    def searched(self, per_chunk: Vector) -> float:
        return _mean(per_chunk[0::2], self.objective.counts[0::2])

    def held_out(self, per_chunk: Vector) -> float:
        return _mean(per_chunk[1::2], self.objective.counts[1::2])


def line_search(
    objective: Objective,
    low: float = -1.0,
    high: float = 1.0,
    *,
    evaluations: int = 12,
    seed: int = 0,
    asked: Callable[[], bool] = lambda: False,
    say: Callable[[float], None] = lambda alpha: None,
) -> LineSearch:
    """Find α in [low, high] where the slope of the loss along the direction vanishes, downhill of the start.

    The objective stands at the post-trained weights (α = 0), its direction is the delta of post-training. A positive
    slope at 0 says interpolate (α < 0), a negative one extrapolate. The end of the range on that side is visited
    next; if the slope still points onwards there, the point halfway is, and if it does there too, α is that end.
    Otherwise the root is bracketed and closed in on by secants (Illinois), kept off the bracket's ends, until the
    slope is a thousandth of that at 0, the bracket a hundredth of the range, or `evaluations` points are used up. α
    is a visited point, so its losses are measured.

    Chunks 0, 2, 4, … are searched on, chunks 1, 3, 5, … held out. The objective is back at 0 afterwards.

    Paper: arXiv 2410.13841, the discussion of ExPO: the sign of the term decides between interpolation and
    extrapolation. The search is ours; the paper and ExPO take α from a grid, by a benchmark.

    Raises:
        ValueError: 0 is not in [low, high], or the range is empty, or evaluations < 3. RefusedError: fewer than two
        chunks, or a loss or slope that is not finite. InterruptedRunError: asked to stop.
    """
    if not (low <= 0 <= high and low < high) or evaluations < 3:
        raise ValueError(f"cannot search from 0 in [{low:g}, {high:g}] with {evaluations} evaluations")
    if len(objective.counts) < 2:
        raise RefusedError(
            "a line search needs at least two chunks of data, one to search on and one held out",
            fix="give more documents or a smaller --batch",
        )
    visits = _Visits(objective, asked, say)
    try:
        alpha, outcome, bracket = _search(visits, low, high, evaluations)
    finally:
        objective.move(0.0)
    return _report(visits, low, high, alpha, outcome, bracket, seed)


def _search(
    visits: _Visits, low: float, high: float, evaluations: int
) -> tuple[float, Outcome, tuple[float, float]]:
    """Return the chosen point, what it is, and the last bracket."""
    first = visits.slope(0.0)
    end = low if first > 0 else high
    if first == 0.0 or end == 0.0:
        return 0.0, "minimum" if first == 0.0 else "start", (0.0, 0.0)
    for far in (end, end / 2):
        if visits.slope(far) * first <= 0:
            return _close_in(visits, far, evaluations, _NARROW * (high - low))
    return end, "end", (end, end)


def _close_in(
    visits: _Visits, far: float, evaluations: int, narrow: float
) -> tuple[float, Outcome, tuple[float, float]]:
    """Shrink a bracket between 0 and `far`: the slope of its first point is that of 0, of its second the opposite."""
    a, b = 0.0, far
    at_a, at_b = visits.slope(a), visits.slope(b)
    flat = _FLAT * abs(at_a)
    weight_a, weight_b = (
        at_a,
        at_b,
    )  # the secant's heights: halved for an end that stays twice running (Illinois)
    moved = ""
    while len(visits.alphas) < evaluations and abs(b - a) > narrow and min(abs(at_a), abs(at_b)) > flat:
        share = float(np.clip(weight_a / (weight_a - weight_b), _SAFE, 1 - _SAFE))
        middle = a + share * (b - a)
        slope = visits.slope(middle)
        if slope * at_a > 0:
            weight_b = weight_b / 2 if moved == "a" else weight_b
            a, at_a, weight_a, moved = middle, slope, slope, "a"
        else:
            weight_a = weight_a / 2 if moved == "b" else weight_a
            b, at_b, weight_b, moved = middle, slope, slope, "b"
    alpha = a if abs(at_a) < abs(at_b) else b
    return alpha, "minimum", (min(a, b), max(a, b))


def _report(
    visits: _Visits,
    low: float,
    high: float,
    alpha: float,
    outcome: Outcome,
    bracket: tuple[float, float],
    seed: int,
) -> LineSearch:
    slopes, counts = np.stack(visits.slopes), visits.objective.counts
    searched = slopes[:, 0::2]
    order = np.argsort(visits.alphas)
    between = [i for i in order if min(0.0, alpha) <= visits.alphas[i] <= max(0.0, alpha)]
    path = np.array([visits.alphas[i] for i in between])
    means = np.array([visits.searched(slopes[i]) for i in between])
    change = visits.losses[visits.alphas.index(alpha)] - visits.losses[0]
    measured, measured_interval = resampled_mean(change[1::2], counts[1::2], seed)
    several = searched.shape[1] > 1
    return LineSearch(
        low,
        high,
        tuple(
            Evaluation(at, visits.searched(s), visits.searched(loss), visits.held_out(loss))
            for at, s, loss in zip(visits.alphas, slopes, visits.losses, strict=True)
        ),
        alpha,
        outcome,
        _resampled_root(np.array(visits.alphas), searched, counts[0::2], seed) if several else bracket,
        "resampling" if several else "bracket",
        _area(path, means) * (1 if alpha >= 0 else -1),
        measured,
        measured_interval,
    )


def _area(points: Vector, heights: Vector) -> float:
    """Integrate a function that is known at ascending points, by the trapezoid rule."""
    return float(np.sum(np.diff(points) * (heights[1:] + heights[:-1])) / 2)


def _resampled_root(alphas: Vector, slopes: Matrix, counts: Vector, seed: int) -> tuple[float, float]:
    """Return what 95 % of the roots span that resampled chunks give; `slopes` is (points, chunks)."""
    drawn = multiplicities(len(counts), seed)
    weights = drawn * counts
    means = (weights @ slopes.T) / weights.sum(axis=1, keepdims=True)
    order = np.argsort(np.abs(alphas), kind="stable")  # all points lie on one side of 0: outwards from there
    return percentile_interval(np.array([_first_root(alphas[order], mean[order]) for mean in means]))


def _first_root(alphas: Vector, slopes: Vector) -> float:
    """Walk outwards from 0, and return where the interpolated slope first points back; the last point if nowhere."""
    outward = slopes * np.sign(alphas[-1])
    if outward[0] >= 0:
        return 0.0
    past = np.flatnonzero(outward >= 0)
    if not past.size:
        return float(alphas[-1])
    i = int(past[0])
    share = outward[i - 1] / (outward[i - 1] - outward[i])
    return float(alphas[i - 1] + share * (alphas[i] - alphas[i - 1]))


def _mean(values: Vector, counts: Vector) -> float:
    return float(values @ counts / counts.sum())


def _refuse_nonfinite(losses: Vector, slopes: Matrix, alpha: float) -> None:
    bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(slopes).all(axis=1)))
    if bad.size:
        raise RefusedError(
            f"the loss of chunk {bad[0]} of the data, or its slope, is not finite at {alpha:g} times the delta",
            fix="search a narrower range, or use --dtype float32 or float64",
        )
