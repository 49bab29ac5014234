"""What the loss analysis has found, as plain records: estimates, predictions, contributions, and how to group them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deltasmith.analysis.curvature import Expansion, SecondOrder
from deltasmith.analysis.objective import Matrix
from deltasmith.analysis.rules import RECORDS, Grid, Rule
from deltasmith.table.names import group_of, layer_of

__all__ = [
    "FORMAT",
    "DataUsed",
    "Estimate",
    "Group",
    "Heat",
    "LossReport",
    "Prediction",
    "Verdict",
    "finite_or_none",
]

FORMAT = "deltasmith-loss-1"
"""What a report written as JSON calls itself."""

Group = Literal["tensor", "layer", "projection", "model"]
Verdict = Literal["competitive", "decreased", "improved", "undecided"]
"""The paper's three classes of edits, by what becomes of the performance, and what the data leave open."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over the data with its 95 % interval from resampling chunks; NaN limits where there is one chunk."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Return plain data; what is not a number is null."""
        return {
            "value": finite_or_none(self.value),
            "low": finite_or_none(self.low),
            "high": finite_or_none(self.high),
        }


@dataclass(frozen=True, slots=True)
class DataUsed:
    """Which data the losses are means over.

    `file` is a name without its folder; `tokens` counts what is predicted, which for a classifier is an example:
    `unit` says which of the two a loss is a mean over.
    """

    file: str
    sha256: str
    documents: int
    examples: int
    tokens: int
    chunks: int
    unit: Literal["token", "example"] = "token"

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "documents": self.documents,
            "examples": self.examples,
            "tokens": self.tokens,
            "chunks": self.chunks,
            "unit": self.unit,
        }


@dataclass(frozen=True)
class Prediction:
    """What one Riemann sum says of the change of the loss, and which tensors it comes from."""

    grid: Grid
    change: Estimate
    error: float
    """Predicted − measured, on the same data."""
    verdict: Verdict
    """What one would conclude from the prediction alone."""
    contributions: Mapping[str, float]
    """What each tensor adds to `change.value`; positive is harm."""


@dataclass(frozen=True)
class Heat:
    """A matrix of contributions for a picture: (layers, projections), NaN where there is no such tensor.

    A layer is named by its stack and number, a projection by what follows them; tensors outside every stack have
    their own names as layer, and the projection "".
    """

    layers: tuple[str, ...]
    projections: tuple[str, ...]
    values: Matrix


@dataclass(frozen=True)
class LossReport:
    """What an edit or a merge does to the loss: measured, predicted by each rule, and taken apart by tensors.

    Losses are means per token (or per example of a classifier), in nats; changes are end − start: positive is worse.
    `start` and `end` name the models, `verdict` is that of `measured` against `margin`.
    """

    start: str
    end: str
    data: DataUsed
    start_loss: Estimate
    end_loss: Estimate
    base_loss: float | None
    """The base's loss on the same data, where the margin needed it."""
    measured: Estimate
    verdict: Verdict
    margin: float
    margin_reason: str
    predictions: tuple[Prediction, ...]
    along: tuple[tuple[float, float], ...]
    """(t, loss) at every point that was visited, from 0, the start, to 1, the end."""
    expansion: Expansion | None = None
    """What gradient and curvature at the start alone foretell of this edit."""
    second_order: SecondOrder | None = None
    """What a random edit costs on average over its seeds."""
    notes: tuple[str, ...] = ()
    changes: tuple[float, ...] = ()
    """The measured change of every chunk's mean loss, in the order of the data; `measured` is their weighted mean.

    Two reports on the same data from the same start can be compared chunk by chunk.
    """
    weights: tuple[float, ...] = ()
    """What each chunk weighs: its tokens, or its examples."""

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Return the grids of all predictions, in their order."""
        return tuple(prediction.grid for prediction in self.predictions)

    def prediction(self, which: Grid | Rule | None = None) -> Prediction:
        """Return the prediction of a grid or a rule; by default the most exact of those that were asked for.

        Which that is, the rules' records say (`rules.RiemannRule.trust`). KeyError if it was not asked for.
        """
        by_rule = {p.grid.rule: p for p in self.predictions}
        if which is None:
            return by_rule[min(by_rule, key=lambda rule: RECORDS[rule].trust)]
        rule = which.rule if isinstance(which, Grid) else which
        found = by_rule[rule]
        if isinstance(which, Grid) and found.grid != which:
            raise KeyError(which)
        return found

    def by(self, group: Group, grid: Grid | Rule | None = None) -> dict[str, float]:
        """Add the contributions up per "tensor", "layer", "projection" or "model", in the order of the network."""
        sums: dict[str, float] = {}
        for name, value in self.prediction(grid).contributions.items():
            key = name if group == "tensor" else group_of(name, group)
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def table(self, grid: Grid | Rule | None = None) -> Heat:
        """Lay the contributions out as layers × projections."""
        cells: dict[tuple[str, str], float] = {}
        for name, value in self.prediction(grid).contributions.items():
            layer = group_of(name, "layer")
            cell = (layer, name[len(layer) :].lstrip("._:/") if layer_of(name) else "")
            cells[cell] = cells.get(cell, 0.0) + value
        layers = tuple(dict.fromkeys(layer for layer, _ in cells))
        projections = tuple(dict.fromkeys(projection for _, projection in cells))
        values = np.full((len(layers), len(projections)), np.nan)
        for (layer, projection), value in cells.items():
            values[layers.index(layer), projections.index(projection)] = value
        return Heat(layers, projections, values)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain data; what is not a number is null."""
        return {
            "format": FORMAT,
            "start": self.start,
            "end": self.end,
            "data": self.data.as_json(),
            "start_loss": self.start_loss.as_json(),
            "end_loss": self.end_loss.as_json(),
            "base_loss": self.base_loss,
            "measured": self.measured.as_json(),
            "verdict": self.verdict,
            "margin": self.margin,
            "margin_reason": self.margin_reason,
            "predictions": [self._prediction(p) for p in self.predictions],
            "along": [{"t": t, "loss": loss} for t, loss in self.along],
            "expansion": None if self.expansion is None else self.expansion.as_json(),
            "second_order": None if self.second_order is None else self.second_order.as_json(),
            "notes": list(self.notes),
            "changes": list(self.changes),
            "weights": list(self.weights),
        }

    def _prediction(self, found: Prediction) -> dict[str, Any]:
        return {
            "rule": found.grid.rule,
            "steps": found.grid.steps,
            "change": found.change.as_json(),
            "error": found.error,
            "verdict": found.verdict,
            "contributions": {
                "layer": self.by("layer", found.grid),
                "projection": self.by("projection", found.grid),
                "tensor": dict(found.contributions),
            },
        }


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None
