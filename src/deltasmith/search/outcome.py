"""What a search has found: its trials, the best of them, and what to think of it. Plain data; nothing runs here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltasmith.search.marked import MarkedRecipe
from deltasmith.search.marks import Number
from deltasmith.search.objectives import Objective

__all__ = ["TrialResult", "Tuned", "balanced", "best_of", "front_of"]


@dataclass(frozen=True)
class TrialResult:
    """One finished trial: the values of the marks, the objectives' figures, every task's score.

    `figures` is empty where the recipe was refused with these values; `refused` then says why. `merge_seconds`
    is the part of `seconds` that making the model took.
    """

    number: int
    values: Mapping[str, Number]
    figures: tuple[float, ...]
    scores: Mapping[str, float]
    merge_seconds: float = math.nan
    seconds: float = math.nan
    refused: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the trial as plain data."""
        return {
            "number": self.number,
            "values": dict(self.values),
            "figures": list(self.figures),
            "scores": dict(self.scores),
            "merge_seconds": None if math.isnan(self.merge_seconds) else self.merge_seconds,
            "seconds": None if math.isnan(self.seconds) else self.seconds,
            "refused": self.refused or None,
        }


def best_of(trials: Sequence[TrialResult], objective: Objective) -> TrialResult | None:
    """Return the trial with the best first figure, the earliest of equal ones; None without a scored one."""
    scored = [trial for trial in trials if trial.figures]
    sign = 1.0 if objective.maximise else -1.0
    return max(scored, key=lambda t: (sign * t.figures[0], -t.number), default=None)


def front_of(trials: Sequence[TrialResult], objectives: Sequence[Objective]) -> tuple[TrialResult, ...]:
    """Return the Pareto front by number: trials that no other beats in one figure without losing in another.

    Of trials with equal figures only the first counts.
    """
    signs = [1.0 if o.maximise else -1.0 for o in objectives]
    points: dict[tuple[float, ...], TrialResult] = {}
    for trial in trials:
        if trial.figures:
            points.setdefault(tuple(s * f for s, f in zip(signs, trial.figures, strict=True)), trial)
    front = [t for p, t in points.items() if not any(_beats(other, p) for other in points)]
    return tuple(sorted(front, key=lambda t: t.number))


def balanced(front: Sequence[TrialResult], objectives: Sequence[Objective]) -> TrialResult:
    """Return the trial of a front that is furthest from the worst of it in the objective it is weakest in.

    Figures are measured from the worst to the best of the front; among equals the larger sum decides, then the
    earlier trial.
    """
    signs = [1.0 if o.maximise else -1.0 for o in objectives]
    points = [[s * f for s, f in zip(signs, t.figures, strict=True)] for t in front]
    worst, best = (
        [min(column) for column in zip(*points, strict=True)],
        [max(c) for c in zip(*points, strict=True)],
    )

    def height(point: Sequence[float]) -> tuple[float, float]:
        parts = [(p - w) / (b - w) if b > w else 1.0 for p, w, b in zip(point, worst, best, strict=True)]
        return min(parts), sum(parts)

    return max(zip(front, points, strict=True), key=lambda pair: (height(pair[1]), -pair[0].number))[0]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    `marked` is the recipe with its marks, and `best` the trial whose numbers it gets. `default` holds the
    validation scores of the recipe without its marks, `test` and `default_test` the scores on the test set,
    where there are such. `front` has the Pareto front where there are several objectives. `ran` trials were
    added by this call, the others were in the storage.
    """

    marked: MarkedRecipe
    objectives: tuple[Objective, ...]
    sampler: str
    seed: int
    best: TrialResult
    trials: tuple[TrialResult, ...]
    ran: int
    front: tuple[TrialResult, ...] = ()
    default: Mapping[str, float] | None = None
    test: Mapping[str, float] | None = None
    default_test: Mapping[str, float] | None = None
    dense: Mapping[str, float] | None = None
    importance: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the best trial's recipe as plain data with absolute paths."""
        return self.marked.mapping(self.best.values)

    def figures(self, scores: Mapping[str, float] | None) -> list[float] | None:
        """Return the objectives' figures of some scores; None for None, or where tasks are not the same."""
        if scores is None:
            return None
        try:
            return [objective.of(scores) for objective in self.objectives]
        except KeyError:
            return None

    @property
    def gaps(self) -> list[float] | None:
        """Return validation minus test for every objective: positive where validation flattered a maximum."""
        tested = self.figures(self.test)
        if tested is None:
            return None
        return [a - b for a, b in zip(self.best.figures, tested, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "recipe": self.recipe,
            "objectives": [{"name": o.name, "maximise": o.maximise} for o in self.objectives],
            "sampler": self.sampler,
            "seed": self.seed,
            "best": self.best.as_json(),
            "front": [trial.number for trial in self.front],
            "default": _scored(self.default, self.figures(self.default)),
            "test": _scored(self.test, self.figures(self.test)),
            "default_test": _scored(self.default_test, self.figures(self.default_test)),
            "gap": self.gaps,
            "dense": None if self.dense is None else dict(self.dense),
            "importance": dict(self.importance),
            "ran": self.ran,
            "trials": [trial.as_json() for trial in self.trials],
            "warnings": list(self.warnings),
        }


def _scored(scores: Mapping[str, float] | None, figures: list[float] | None) -> dict[str, Any] | None:
    return None if scores is None else {"scores": dict(scores), "figures": figures}
