"""The loss along a straight path, and the Riemann sums that predict its change from slopes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from deltasmith.analysis.objective import Matrix, Objective, Vector
from deltasmith.analysis.rules import Grid, points_of
from deltasmith.errors import InterruptedRunError, RefusedError

__all__ = ["Path", "Point", "walk"]


@dataclass(frozen=True)
class Point:
    """Mean losses of the chunks, (chunks,), and slopes, (chunks, tensors), or None where only the loss was asked."""

    losses: Vector
    slopes: Matrix | None


@dataclass(frozen=True)
class Path:
    """What was seen on a path from 0 (the start) to 1 (the end), chunk by chunk.

    All figures are means over the data, in the unit of the loss (nats per token). Positive changes are harm.
    """

    names: tuple[str, ...]
    counts: Vector
    points: Mapping[Fraction, Point]

    def mean(self, per_chunk: Matrix) -> Matrix:
        """Average over the chunks (first axis), each by its count."""
        averaged: Matrix = np.tensordot(self.counts, per_chunk, axes=(0, 0)) / self.counts.sum()
        return averaged

    def loss(self, t: Fraction) -> float:
        """Return the loss at a point."""
        return float(self.mean(self.points[t].losses))

    def measured_chunks(self) -> Vector:
        """Return the change of every chunk's loss from the start to the end, (chunks,)."""
        change: Vector = self.points[Fraction(1)].losses - self.points[Fraction(0)].losses
        return change

    @property
    def measured(self) -> float:
        """Return loss at the end − loss at the start."""
        return float(self.mean(self.measured_chunks()))

    def predicted_chunks(self, grid: Grid) -> Matrix:
        """Return what each tensor is predicted to add to the change of each chunk's loss, (chunks, tensors)."""
        total = np.zeros((len(self.counts), len(self.names)))
        for t, weight in grid.weights.items():
            slopes = self.points[t].slopes
            assert slopes is not None, "walk() takes slopes at every point of a grid"
            total += float(weight) * slopes
        return total

    def contributions(self, grid: Grid) -> dict[str, float]:
        """Return what each tensor is predicted to add to the change of the loss."""
        return dict(zip(self.names, self.mean(self.predicted_chunks(grid)).tolist(), strict=True))

    def predicted(self, grid: Grid) -> float:
        """Return the predicted change of the loss: the sum over all tensors."""
        return float(self.mean(self.predicted_chunks(grid)).sum())


def walk(
    objective: Objective,
    grids: Iterable[Grid],
    *,
    asked: Callable[[], bool] = lambda: False,
    say: Callable[[int, int], None] = lambda done, of: None,
) -> Path:
    """Take the slopes at all points of all grids, each once, and the losses at both ends; then return to the start.

    The data are the same at all points. `asked` says that the user wants to stop, `say` hears of finished points.

    Raises:
        RefusedError: the loss or a slope is not finite somewhere. InterruptedRunError: asked to stop.
    """
    wanted = points_of(grids)
    points: dict[Fraction, Point] = {}
    every = sorted({*wanted, Fraction(0), Fraction(1)})
    try:
        for at, t in enumerate(every):
            if asked():
                raise InterruptedRunError("the analysis was interrupted", fix="run the same command again")
            objective.move(float(t))
            found = Point(*objective.slopes()) if t in wanted else Point(objective.losses(), None)
            _refuse_nonfinite(found, t, objective.names)
            points[t] = found
            say(at + 1, len(every))
    finally:
        objective.move(0.0)
    return Path(objective.names, objective.counts, points)


def _refuse_nonfinite(point: Point, t: Fraction, names: tuple[str, ...]) -> None:
    """Refuse a point where something overflowed: a mean over it would say nothing."""
    bad = np.flatnonzero(~np.isfinite(point.losses))
    if bad.size:
        raise RefusedError(
            f"the loss of chunk {bad[0]} of the data is not finite at {float(t):g} of the path",
            fix="use a wider --dtype (float64 is the widest), or leave the documents out that it comes from",
        )
    if point.slopes is not None and not np.isfinite(point.slopes).all():
        name = names[int(np.argwhere(~np.isfinite(point.slopes))[0, 1])]
        raise RefusedError(
            f"the gradient is not finite at {float(t):g} of the path",
            where=name,
            fix="use a wider --dtype (float64 is the widest)",
        )
