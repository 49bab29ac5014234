"""Every edit of the catalogue on every expert: what is predicted of its loss, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deltasmith.analysis.objective import Vector
from deltasmith.analysis.path import Path
from deltasmith.analysis.rules import Grid
from deltasmith.analysis.verdict import interval
from deltasmith.lab.loss.bench import Subject
from deltasmith.lab.loss.points import POINTS, Point, vision_points
from deltasmith.lab.rows import Row

__all__ = ["GRIDS", "change", "grid_name", "run", "short"]

GRIDS = tuple(
    Grid(rule, steps)
    for rule in ("left", "midpoint", "trapezoid")
    for steps in (1, 2, 5, 10)
    if (rule, steps) != ("midpoint", 10)  # ten further gradients for what five have nearly exact
)


def grid_name(grid: Grid) -> str:
    """Name a grid in the results: `left 5`."""
    return f"{grid.rule} {grid.steps}"


def short(value: float) -> float:
    """Keep six digits: what is beyond them is not worth its bytes."""
    return float(f"{value:.6g}")


def run(subject: Subject, points: Sequence[Point] | None = None) -> Iterator[Row]:
    """Walk from the expert to every edited model; begin with a row each of the base and the expert themselves.

    Predictions and `measured` are of the test items, `validation` is the change measured on the other ones.
    """
    if points is None:
        points = vision_points() if subject.keys["family"] == "vision" else POINTS
    expert, base = subject.expert, subject.base()
    for name, tensors in (("base", base), ("expert", expert)):
        loss = short(subject.ground.mean(subject.ground.losses(tensors)))
        yield Row(
            {**subject.keys, "group": name, "edit": "", "loss": loss}, subject.task, subject.marks(tensors)
        )
    for point in points:
        start = expert if point.start is None else subject.family.start(subject.task, point)
        elsewhere = subject.other.losses(start)
        for draw in range(point.draws):
            end = subject.family.end(subject.task, point, draw)
            path = subject.ground.path(start, end, GRIDS)
            keys: dict[str, Any] = {"group": point.group, "edit": point.name, "mask_seed": draw}
            keys["validation"] = short(subject.other.mean(subject.other.losses(end) - elsewhere))
            keys |= {"size": short(_length(start, end) / _length(base, expert)), **measured(path)}
            yield Row({**subject.keys, **keys}, subject.task, subject.marks(end))


def measured(path: Path) -> dict[str, float]:
    """Return the measured change with its interval, and the predicted ones by the names of their grids."""
    told = {grid_name(grid): short(path.predicted(grid)) for grid in GRIDS}
    return {**change(path.measured_chunks(), path.counts), **told}


def change(per_chunk: Vector, counts: Sequence[float] | Vector) -> dict[str, float]:
    """Return the mean change and the ends of its interval, from resampling chunks."""
    found = interval(per_chunk, np.asarray(counts, np.float64))
    return {"measured": short(found.value), "low": short(found.low), "high": short(found.high)}


def _length(a: Any, b: Any) -> float:
    return float(np.sqrt(sum(np.square(a[name] - b[name], dtype=np.float64).sum() for name in a)))
