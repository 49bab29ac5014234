"""From the scores of several tasks to the figures a search climbs: their mean, the worst, one task, retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.planning.dppa_search import retention
from deltasmith.recipe.problems import listed, suggestion

__all__ = ["COMBINED", "Objective", "objectives_of"]

COMBINED = ("mean", "worst", "retention")
"""`retention` is the geometric mean of score / dense score, the dense expert's; see `plan.dppa_search`."""


@dataclass(frozen=True)
class Objective:
    """One figure to be maximised, or minimised where lower scores are better."""

    name: str
    maximise: bool
    dense: Mapping[str, float] | None = None

    def of(self, scores: Mapping[str, float]) -> float:
        """Return the figure for one model's scores."""
        if self.name == "mean":
            return sum(scores.values()) / len(scores)
        if self.name == "worst":
            return min(scores.values()) if self.maximise else max(scores.values())
        if self.name == "retention":
            dense = self.dense or {}
            return retention([scores[task] for task in dense], list(dense.values()))
        return scores[self.name]

    def measured(self, dense: Mapping[str, float]) -> Objective:
        """Return the objective with the scores that `retention` divides by.

        Raises RefusedError where one of them is not above 0.
        """
        for task, score in dense.items():
            if not score > 0:
                raise RefusedError(
                    f"the dense score of {task} is {score:g}",
                    fix="retention needs scores above 0; choose another --objective",
                )
        return Objective(self.name, self.maximise, dict(dense))


def objectives_of(names: Sequence[str], tasks: Mapping[str, bool]) -> tuple[Objective, ...]:
    """Read `mean`, `worst`, `retention` or the names of tasks; a task's own name wins.

    Raises RecipeError for an unknown or repeated name, and where `mean`, `worst` or `retention` would mix tasks
    whose higher scores are better with others whose lower ones are (`retention`: where any lower one is).
    """
    if len(set(names)) < len(names):
        raise RecipeError("an objective is named twice", fix="name each once")
    return tuple(_objective(name, tasks) for name in names)


def _objective(name: str, tasks: Mapping[str, bool]) -> Objective:
    if name in tasks:
        return Objective(name, tasks[name])
    if name not in COMBINED:
        known = (*COMBINED, *tasks)
        fix = suggestion(name, known) or f"it may be {listed(known)}"
        raise RecipeError(f"unknown objective {name!r}", fix=fix)
    directions = set(tasks.values())
    if len(directions) > 1 or (name == "retention" and directions != {True}):
        lower = ", ".join(task for task, higher in tasks.items() if not higher)
        raise RecipeError(
            f"{name} cannot be taken: lower scores are better for {lower}",
            fix="name one task as the objective",
        )
    return Objective(name, directions == {True})
