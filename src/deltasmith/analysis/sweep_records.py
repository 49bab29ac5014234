"""What a sweep has found: at every point of its axes the change of the loss, measured and predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltasmith.analysis.curvature import SecondOrder
from deltasmith.analysis.objective import Matrix
from deltasmith.analysis.report import DataUsed, Estimate, Verdict, finite_or_none
from deltasmith.analysis.rules import Grid
from deltasmith.analysis.sweep_axes import Axis, Value

__all__ = ["FORMAT", "Forecast", "Sweep", "SweepPoint"]

FORMAT = "deltasmith-sweep-1"
"""What a sweep written as JSON calls itself."""


@dataclass(frozen=True)
class Forecast:
    """What one Riemann sum says of the change of the loss at a point; `error` is predicted − measured."""

    grid: Grid
    change: Estimate
    error: float
    verdict: Verdict


@dataclass(frozen=True)
class SweepPoint:
    """One point: its values by the names of the axes, and what the edit does to the loss there."""

    values: Mapping[str, Value]
    end_loss: float
    measured: Estimate
    """Loss of the edited model − loss at the start; positive is worse."""
    verdict: Verdict
    predictions: tuple[Forecast, ...]
    expected: float | None = None
    """The change on average over seeds, to second order around the mean; None where not known or not asked for."""
    expected_error: float | None = None
    """The standard error of `expected`, because probes are few."""
    refused: str = ""
    """Why there are no figures here (all are NaN), for example because the loss overflows; mostly empty."""

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "values": dict(self.values),
            "end_loss": finite_or_none(self.end_loss),
            "measured": self.measured.as_json(),
            "verdict": self.verdict,
            "predictions": [
                {
                    "rule": p.grid.rule,
                    "steps": p.grid.steps,
                    "change": p.change.as_json(),
                    "error": finite_or_none(p.error),
                    "verdict": p.verdict,
                }
                for p in self.predictions
            ],
            "expected": self.expected,
            "expected_error": self.expected_error,
            "refused": self.refused,
        }


@dataclass(frozen=True)
class Sweep:
    """The loss over one axis or several, all points on the same data, from the same start, with the same seed.

    `points` are in order, the last axis changing fastest; of an interrupted sweep, the first ones. Losses are means
    in nats, per token (or per example of a classifier).
    """

    start: str
    end: str
    axes: tuple[Axis, ...]
    data: DataUsed
    start_loss: Estimate
    base_loss: float | None
    margin: float
    margin_reason: str
    points: tuple[SweepPoint, ...]
    second_order: SecondOrder | None = None
    """The estimate behind the `expected` of the first point whose edit varies; others' are mostly multiples of it."""
    notes: tuple[str, ...] = ()

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Return the grids of the predictions, in their order."""
        told = (point.predictions for point in self.points if not point.refused)
        return tuple(p.grid for p in next(told, ()))

    @property
    def table(self) -> list[dict[str, Any]]:
        """Return a row per point: the axes' values, figures, and the class. What is not known is None."""
        return [dict(self._row(point)) for point in self.points]

    def _row(self, point: SweepPoint) -> Iterator[tuple[str, Any]]:
        yield from point.values.items()
        yield "measured", finite_or_none(point.measured.value)
        yield "low", finite_or_none(point.measured.low)
        yield "high", finite_or_none(point.measured.high)
        yield "verdict", point.verdict
        predicted = {p.grid: p.change.value for p in point.predictions}
        for grid in self.grids:
            yield grid.rule, predicted.get(grid)
        yield "expected", point.expected

    def surface(self) -> Matrix:
        """Return the measured changes of a sweep of two axes, (first axis, second axis), NaN where there is none."""
        first, second = self.axes
        values = np.full(len(first.values) * len(second.values), math.nan)
        values[: len(self.points)] = [point.measured.value for point in self.points]
        return values.reshape(len(first.values), len(second.values))

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain data; what is not a number is null."""
        return {
            "format": FORMAT,
            "start": self.start,
            "end": self.end,
            "axes": [{"name": axis.name, "values": list(axis.values)} for axis in self.axes],
            "data": self.data.as_json(),
            "start_loss": self.start_loss.as_json(),
            "base_loss": self.base_loss,
            "margin": self.margin,
            "margin_reason": self.margin_reason,
            "points": [point.as_json() for point in self.points],
            "second_order": None if self.second_order is None else self.second_order.as_json(),
            "notes": list(self.notes),
        }
