"""One search under way: ask for numbers, make the model, score it, tell; and where grid and DPPA's search look."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, MissingExtraError, RecipeError
from deltasmith.search.dpa import Climb, Factors
from deltasmith.search.marked import MarkedRecipe, Values
from deltasmith.search.marks import Number
from deltasmith.search.objectives import Objective
from deltasmith.search.outcome import TrialResult
from deltasmith.search.scoring import Scored, Scorer, UnfitError
from deltasmith.search.settings import Settings

if TYPE_CHECKING:
    from deltasmith.search.study import Asked, Trials

__all__ = ["Listener", "Notice", "Search", "grid"]

_MOST_POINTS = 100_000

Listener = Callable[[TrialResult], None]

Notice = Callable[[str], None]


class _SpentError(Exception):
    """All trials are used up."""


def grid(marked: MarkedRecipe, count: int, seed: int) -> list[dict[str, Number]]:
    """List a grid's points in an order that the seed decides, so that a part of them is spread as well.

    `count` points of every mark without steps or choices. Raises RecipeError for more than 100,000 points.
    """
    axes = [d.span.points(count) for d in marked.dimensions]
    size = math.prod(len(axis) for axis in axes)
    if size > _MOST_POINTS:
        raise RecipeError(
            f"the grid has {size:,} points", fix="use fewer --grid-points, or another --sampler"
        )
    names = [d.name for d in marked.dimensions]
    points = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]
    order = sorted(range(size), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    return [points[i] for i in order]


@dataclass
class Search:
    """Trials in their storage, a scorer, and what they are scored for.

    `ran` counts the trials of this run; `settled` holds the factors that the released DPA search ended with.
    """

    marked: MarkedRecipe
    scorer: Scorer
    goals: tuple[Objective, ...]
    trials: Trials
    settings: Settings
    stop: Stop = field(default_factory=Stop)
    listener: Listener | None = None
    notice: Notice | None = None
    ran: int = 0
    settled: Factors | None = None
    dense: Mapping[str, float] | None = None
    warnings: list[str] = field(default_factory=list)

    def run(self, climb: Climb | None) -> None:
        """Bring the search to the number of trials asked for."""
        if any(goal.name == "retention" for goal in self.goals):
            dense = self.dense = self.kept("dense", self._measure_dense)
            self.goals = tuple(g.measured(dense) if g.name == "retention" else g for g in self.goals)
        if climb is not None:
            self._climb(climb)
            return
        settings, points = self.settings, None
        if settings.sampler == "grid":
            points = grid(self.marked, settings.grid_points, settings.seed)
            if settings.trials < len(points):
                self.warn(
                    f"the grid has {len(points):,} points, and {settings.trials:,} of them are visited; for all"
                    f" of them: --trials {len(points)}"
                )
        total = settings.trials if points is None else min(settings.trials, len(points))
        for number in range(len(self.trials.finished), total):
            self._try(None if points is None else points[number])

    def warn(self, words: str) -> None:
        """Keep a warning for the end, and say it at once to whoever listens."""
        self.warnings.append(words)
        if self.notice is not None:
            self.notice(words)

    def kept(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what an earlier run has kept under a key, or make and keep it."""
        found = self.trials.note(key)
        if found is None:
            found = make()
            self.trials.keep(key, found)
        return found

    def scores(self, scorer: Scorer, recipe: Mapping[str, Any]) -> dict[str, float]:
        """Return a recipe's scores outside the trials."""
        return dict(self.scored(scorer, recipe).scores)

    def scored(self, scorer: Scorer, recipe: Mapping[str, Any]) -> Scored:
        """Score a recipe outside the trials."""
        self._refuse_stopped()
        return scorer.score(recipe)

    def _measure_dense(self) -> dict[str, float]:
        """Score every model of the recipe as it is, and take the best score of each task."""
        whole = self.marked.mapping(self.marked.inside())
        plain: dict[str, Any] = {key: whole[key] for key in ("base", "dtype") if key in whole}
        merge = "sum" if "base" in whole else "linear"
        scores = [
            self.scores(self.scorer, {**plain, "models": [_bare(entry)], "merge": merge})
            for entry in whole["models"]
        ]
        return {task: max(one[task] for one in scores) for task in self.scorer.tasks}

    def _climb(self, climb: Climb) -> None:
        """Let DPPA's search choose; points that have been scored before are not scored again."""
        names = [d.name for d in self.marked.dimensions]
        known = {tuple(t.values[n] for n in names): t for t in self.trials.finished}

        def score(factors: Factors) -> float:
            point = climb.built(factors)
            if point not in known:
                if len(known) >= self.settings.trials:
                    raise _SpentError
                known[point] = self._try(dict(zip(names, point, strict=True)))
            figures = known[point].figures
            return figures[0] if figures else -math.inf

        try:
            for visit in climb.visits(score):
                if climb.released and visit.score is None:
                    self.settled = climb.built(visit.factors)
        except _SpentError:
            self.settled = None
            self.warnings.append(f"the DPA search had not ended after {len(known)} trials; raise --trials")

    def _try(self, point: Values | None) -> TrialResult:
        """Carry out one trial; what stops it leaves it in the storage, to be taken up again."""
        self._refuse_stopped()
        asked = self.trials.ask(point)
        began = time.perf_counter()
        try:
            self.marked.check(asked.values)
            scored = self.scorer.score(self.marked.mapping(asked.values))
        except MissingExtraError:
            raise
        except (RecipeError, UnfitError) as error:
            self.trials.refuse(asked, str(error))
        else:
            self._tell(asked, scored, time.perf_counter() - began)
        self.ran += 1
        result = self.trials.finished[asked.number - 1]
        if self.listener is not None:
            self.listener(result)
        return result

    def _tell(self, asked: Asked, scored: Scored, seconds: float) -> None:
        figures = [goal.of(scored.scores) for goal in self.goals]
        if all(math.isfinite(figure) for figure in figures):
            self.trials.tell(asked, figures, scored, seconds)
        else:
            self.trials.refuse(asked, f"its score is {', '.join(map(str, figures))}")

    def _refuse_stopped(self) -> None:
        if self.stop.asked:
            raise InterruptedRunError(
                f"stopped after {len(self.trials.finished)} of {self.settings.trials} trials",
                fix="run the same command again to go on",
            )


def _bare(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("model", "label") if key in entry}
