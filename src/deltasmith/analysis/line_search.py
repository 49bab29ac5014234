"""Look along a delta for the place where the loss stops falling: ExPO, with the sign of the term as its guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deltasmith.analysis.objective import Matrix, Objective, Vector
from deltasmith.analysis.resampling import multiplicities, percentile_interval, resampled_mean
from deltasmith.errors import InterruptedRunError, RefusedError

__all__ = ["Evaluation", "LineSearch", "Outcome", "line_search"]

Outcome = Literal["minimum", "end", "start"]
"""`minimum`: lowest of the visited points. `end`: it still fell there. `start`: no visited point lies lower."""

_FLAT = 1e-3  # a slope so much smaller than the one at 0 counts as none
_NARROW = 1e-2  # a bracket of so small a part of the range, or of two directions if that is longer, is narrow enough
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
    """Where along start + α · direction the loss is lowest nearby, and what going there does.

    A local minimum downhill of the start, and the lowest of the visited points on the data searched on: another, lower
    one may lie between them or on the other side. `interval` says how far α would differ on other data of the same
    kind (95 %, chunks resampled, the slope interpolated between the visited points), or with one chunk to search on
    it is the bracket. A resample whose slope at 0 has the other sign counts as α = 0.
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
    def helps(self) -> bool:
        """Tell whether going to α is shown to lower the loss: on data held out, by the whole of its interval."""
        return self.measured_interval is not None and self.measured_interval[1] < 0

    @property
    def advises(self) -> Literal["extrapolate", "interpolate", "stay"]:
        """Say on which side of the start α lies; `stay` where it is the start, or is not shown to help."""
        if self.alpha == 0 or not self.helps:
            return "stay"
        return "extrapolate" if self.alpha > 0 else "interpolate"

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "low": self.low,
            "high": self.high,
            "alpha": self.alpha,
            "advises": self.advises,
            "helps": self.helps,
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


@dataclass(frozen=True, slots=True)
class _Place:
    """A visited point, as the chunks searched on see it."""

    alpha: float
    slope: float
    loss: float


@dataclass
class _Visits:
    """The points visited so far, with every chunk's loss and slope; even chunks are searched on."""

    objective: Objective
    asked: Callable[[], bool]
    say: Callable[[float], None]
    alphas: list[float] = field(default_factory=list)
    losses: list[Vector] = field(default_factory=list)
    slopes: list[Vector] = field(default_factory=list)

    def place(self, alpha: float) -> _Place:
        """Visit a point, unless that was done, and return slope and loss of the chunks searched on."""
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
        at = self.alphas.index(alpha)
        return _Place(alpha, self.searched(self.slopes[at]), self.searched(self.losses[at]))

    def places(self) -> list[_Place]:
        return [self.place(alpha) for alpha in self.alphas]

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
    """Find α in [low, high] where the loss along the direction is lowest nearby, downhill of the start.

    The objective stands at the post-trained weights (α = 0), its direction is the delta of post-training. A positive
    slope at 0 says interpolate (α < 0), a negative one extrapolate. The end of the range on that side is visited
    next; if the slope still points onwards there and the loss is no higher, the point halfway is, and if the loss falls
    from 0 over it to the end, α is that end. Otherwise a minimum is bracketed, and closed in on by cubics through
    losses and slopes, kept off the bracket's ends, or by halves where these are slow, until the slope is a thousandth
    of that at 0, the bracket a hundredth of the range (or of 2, if that is less), or `evaluations` points are used up.
    A point whose loss is above the best one's shrinks the bracket towards that, whatever its slope. α is the visited
    point of the lowest loss on the data searched on, 0 included.

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
    first = visits.place(0.0)
    end = low if first.slope > 0 else high
    if first.slope == 0.0 or end == 0.0:
        return 0.0, "minimum" if first.slope == 0.0 else "start", (0.0, 0.0)
    last = visits.place(end)
    half = None if _closes(first, last) else visits.place(end / 2)
    if half is None:
        a, b = first, last
    elif _closes(first, half):
        a, b = first, half
    elif half.loss < last.loss:
        a, b = half, last
    else:
        return end, "end", (end, end)
    a, b = _close_in(visits, a, b, evaluations, _NARROW * min(high - low, 2.0))
    best = min(visits.places(), key=lambda place: place.loss)  # of equals the first visited
    if best.alpha == end and best.slope * first.slope > 0:
        return end, "end", (end, end)
    outcome: Outcome = "start" if best.alpha == 0.0 else "minimum"
    return best.alpha, outcome, (min(a.alpha, b.alpha), max(a.alpha, b.alpha))


def _closes(start: _Place, far: _Place) -> bool:
    """Tell whether the loss, falling from `start` towards `far`, has stopped falling before it gets there."""
    return far.slope * start.slope <= 0 or far.loss > start.loss


def _close_in(
    visits: _Visits, best: _Place, other: _Place, evaluations: int, narrow: float
) -> tuple[_Place, _Place]:
    """Shrink a bracket: the loss falls from `best` towards `other`, and stops falling in between.

    `best` is always the place of the lower loss. One of higher loss is the bracket's new other end, whatever its slope;
    one of lower loss is the new best, and what lies behind its slope is dropped.
    """
    if other.loss < best.loss and other.slope * best.slope <= 0:
        best, other = other, best
    flat = _FLAT * abs(visits.place(0.0).slope)
    width = before = math.inf
    while abs(best.slope) > flat and len(visits.alphas) < evaluations:
        width, before, oldest = abs(other.alpha - best.alpha), width, before
        if width <= narrow:
            break
        slow = width > oldest / 2  # two points ago: then in halves
        share = 0.5 if slow else _lowest_between(best, other)
        middle = visits.place(best.alpha + share * (other.alpha - best.alpha))
        if middle.loss > best.loss:
            other = middle
        elif middle.slope * best.slope > 0:
            best = middle
        else:
            best, other = middle, best
    return best, other


def _lowest_between(best: _Place, other: _Place) -> float:
    """Return how far from `best` to `other` the cubic through both losses and slopes is lowest, kept off the ends."""
    span = other.alpha - best.alpha
    falls, rises = best.slope * span, other.slope * span  # the slopes in parts of the bracket: falls < 0
    bend = falls + rises - 3 * (other.loss - best.loss)
    root = math.sqrt(max(bend * bend - falls * rises, 0.0))
    below = rises - falls + 2 * root
    share = 1 - (rises + root - bend) / below if below > 0 else 0.5
    return min(max(share, _SAFE), 1 - _SAFE)


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
    within = _resampled_root(np.array(visits.alphas), searched, counts[0::2], seed) if several else bracket
    return LineSearch(
        low,
        high,
        tuple(
            Evaluation(at, visits.searched(s), visits.searched(loss), visits.held_out(loss))
            for at, s, loss in zip(visits.alphas, slopes, visits.losses, strict=True)
        ),
        alpha,
        outcome,
        (min(within[0], alpha), max(within[1], alpha)),
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
            fix="search a narrower range, or use a wider --dtype (float64 is the widest)",
        )
