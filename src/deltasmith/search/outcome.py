"""What a search has found: its trials, the best of them, and what to think of it. Plain data; nothing runs here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltasmith.search.answers import Interval
from deltasmith.search.marked import MarkedRecipe
from deltasmith.search.marks import Number
from deltasmith.search.objectives import Objective

__all__ = ["TrialResult", "Tuned", "balanced", "best_of", "front_of"]


@dataclass(frozen=True)
class TrialResult:
    """One finished trial: its number, from 1, the values of the marks, the objectives' figures, the tasks' scores.

    `figures` is empty where the recipe was refused with these values; `refused` then says why. `merge_seconds`
    is the part of `seconds` that making the model took. `shares` names the tasks whose score is a share of right
    answers.
    """

    number: int
    values: Mapping[str, Number]
    figures: tuple[float, ...]
    scores: Mapping[str, float]
    merge_seconds: float = math.nan
    seconds: float = math.nan
    refused: str = ""
    shares: frozenset[str] = frozenset()

    def is_share(self, name: str) -> bool:
        """Tell whether the figure of a task, of `mean` or of `worst` is a share, to be shown in per cent."""
        if name in self.scores:
            return name in self.shares
        return name in ("mean", "worst") and self.shares == set(self.scores)

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
    where there are such; `test_intervals` and `default_test_intervals` are the 95 % intervals of those (under
    `mean` that of the mean over tasks), where the scorer's answers allow them. `front` has the Pareto front
    where there are several objectives. `ran` trials were added by this call, the others were in the storage.
    `digest` is the search's own name.
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
    test_intervals: Mapping[str, Interval] = field(default_factory=dict)
    default_test_intervals: Mapping[str, Interval] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    digest: str = ""

    @property
    def overtaken(self) -> bool:
        """Tell whether the recipe without its marks beats the best trial on validation.

        With several objectives: is better in one of them, and worse in none.
        """
        untuned = self.figures(self.default)
        if untuned is None:
            return False
        signs = [1.0 if o.maximise else -1.0 for o in self.objectives]
        one, other = (
            tuple(s * f for s, f in zip(signs, figures, strict=True))
            for figures in (untuned, self.best.figures)
        )
        return _beats(one, other)

    def is_share(self, name: str) -> bool:
        """Tell whether the figures of an objective or a task are shares in all trials."""
        return all(trial.is_share(name) for trial in self.trials if trial.figures)

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
            "digest": self.digest,
            "sampler": self.sampler,
            "seed": self.seed,
            "best": self.best.as_json(),
            "front": [trial.number for trial in self.front],
            "default": _scored(self.default, self.figures(self.default)),
            "test": _scored(self.test, self.figures(self.test), self.test_intervals),
            "default_test": _scored(
                self.default_test, self.figures(self.default_test), self.default_test_intervals
            ),
            "gap": self.gaps,
            "overtaken": self.overtaken,
            "dense": None if self.dense is None else dict(self.dense),
            "importance": dict(self.importance),
            "ran": self.ran,
            "trials": [trial.as_json() for trial in self.trials],
            "warnings": list(self.warnings),
        }


def _scored(
    scores: Mapping[str, float] | None,
    figures: list[float] | None,
    intervals: Mapping[str, Interval] | None = None,
) -> dict[str, Any] | None:
    if scores is None:
        return None
    told: dict[str, Any] = {"scores": dict(scores), "figures": figures}
    if intervals is not None:
        told["intervals"] = {name: list(interval) for name, interval in intervals.items()}
    return told
