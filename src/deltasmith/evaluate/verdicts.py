"""What a comparison says: estimates, differences and their verdicts, as records and as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltasmith.evaluate.statistics import Difference, holm

__all__ = ["Comparison", "Estimate", "Forgetting", "Normalised", "Row", "Verdict", "Versus", "judge"]

Verdict = Literal["better", "worse", "tie"]
"""`tie`: no difference was shown; which is not to say that there is none."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hold one model's score and its interval; NaN where no interval can be given."""

    value: float
    interval: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"score": _plain(self.value), "interval": _ends(self.interval)}


@dataclass(frozen=True, slots=True)
class Versus:
    """Hold a model's difference to another, its interval, its p-value before and after Holm, and the verdict."""

    estimate: float
    interval: tuple[float, float]
    p_value: float
    adjusted: float
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "estimate": _plain(self.estimate),
            "interval": _ends(self.interval),
            "p": self.p_value,
            "p_holm": self.adjusted,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one task: each model's score, and its difference to the reference (None for the reference itself).

    `proportion`: scores are shares of right in [0, 1], higher better.
    """

    name: str
    metric: str
    items: int
    asked: int
    higher_is_better: bool
    proportion: bool
    scores: tuple[Estimate, ...]
    versus: tuple[Versus | None, ...]

    def as_json(self, models: Sequence[str]) -> dict[str, Any]:
        """Return plain data, models by name."""
        return {
            "metric": self.metric,
            "items": self.items,
            "asked": self.asked,
            "higher_is_better": self.higher_is_better,
            "models": {
                name: score.as_json() | {"difference": versus and versus.as_json()}
                for name, score, versus in zip(models, self.scores, self.versus, strict=True)
            },
        }


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Hold what each model has lost, or won, against the base on one task.

    `kind` is `difference` (score − base score) or `ratio` (perplexity / base perplexity; 1 is no change). The base
    itself, where it is among the models, has None.
    """

    task: str
    kind: Literal["difference", "ratio"]
    proportion: bool
    base: float
    versus: tuple[Versus | None, ...]

    def as_json(self, models: Sequence[str]) -> dict[str, Any]:
        """Return plain data, models by name."""
        found = {name: one and one.as_json() for name, one in zip(models, self.versus, strict=True)}
        return {"kind": self.kind, "base": _plain(self.base), "models": found}


@dataclass(frozen=True, slots=True)
class Normalised:
    """Hold a model's scores divided by the experts', by task, and their mean (NaN without any task)."""

    shares: Mapping[str, float]
    mean: float

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"mean": _plain(self.mean), "tasks": dict(self.shares)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold everything a comparison found. `worst` is each model's worst task of those averaged."""

    models: tuple[str, ...]
    reference: int
    level: float
    resamples: int
    seed: int
    rows: tuple[Row, ...]
    average: Row | None
    averaged: tuple[str, ...]
    worst: tuple[tuple[str, float] | None, ...]
    normalised: tuple[Normalised, ...]
    forgetting: tuple[Forgetting, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain data; shares are fractions, and what is not known is null."""
        worst = {
            name: None if one is None else {"task": one[0], "score": one[1]}
            for name, one in zip(self.models, self.worst, strict=True)
        }
        normalised = {name: one.as_json() for name, one in zip(self.models, self.normalised, strict=False)}
        return {
            "format": 1,
            "models": list(self.models),
            "reference": self.models[self.reference],
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
            "tasks": {row.name: row.as_json(self.models) for row in self.rows},
            "average": self.average and (self.average.as_json(self.models) | {"tasks": list(self.averaged)}),
            "worst": worst,
            "normalised": normalised or None,
            "forgetting": {one.task: one.as_json(self.models) for one in self.forgetting} or None,
            "notes": list(self.notes),
        }


def judge(
    table: Sequence[Sequence[Difference | None]], higher_is_better: Sequence[bool], level: float
) -> list[tuple[Versus | None, ...]]:
    """Correct the p-values of a whole table together and word a verdict for every difference.

    Not a tie: the interval excludes zero, and the adjusted p-value is below 1 − level.
    """
    adjusted = iter(holm([one.p_value for row in table for one in row if one is not None]))
    return [
        tuple(None if one is None else _versus(one, next(adjusted), up, level) for one in row)
        for row, up in zip(table, higher_is_better, strict=True)
    ]


def _versus(found: Difference, adjusted: float, up: bool, level: float) -> Versus:
    low, high = found.interval
    # 1 - 0.95 is a little above 0.05 in binary; a p-value of 0.05 is not below it.
    shown = (low > 0 or high < 0) and adjusted < round(1 - level, 12)
    verdict: Verdict = "tie" if not shown else "better" if (low > 0) == up else "worse"
    return Versus(found.estimate, found.interval, found.p_value, adjusted, verdict)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ends(interval: tuple[float, float]) -> list[float] | None:
    return list(interval) if all(math.isfinite(end) for end in interval) else None
