"""A delta followed beyond its end: how far to extrapolate, or to go back, by the sign of the loss's slope (ExPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith.analysis.ends import Ends, Source, read_recipe, resolve_delta
from deltasmith.analysis.line_search import LineSearch, line_search
from deltasmith.analysis.objective import Matrix, Objective, Vector
from deltasmith.analysis.report import DataUsed
from deltasmith.analysis.requests import MOST_EVALUATIONS, Request, Say, silent
from deltasmith.analysis.run import begin
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError
from deltasmith.recipe.model import Recipe

__all__ = ["FORMAT", "Followed", "follow"]

FORMAT = "deltasmith-line-search-1"
_DIGITS = 4  # of alpha in a recipe: far finer than its interval


@dataclass(frozen=True)
class Followed:
    """A line through `start` (α = −1) and `end` (α = 0), and where along it the loss stops falling.

    `recipe` writes the model at α, as plain data, whether or not that is shown to help; None where no recipe says it
    simply.
    """

    start: str
    end: str
    data: DataUsed
    search: LineSearch
    recipe: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "format": FORMAT,
            "start": self.start,
            "end": self.end,
            "data": self.data.as_json(),
            "search": self.search.as_json(),
            "recipe": None if self.recipe is None else dict(self.recipe),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Beyond:
    """A path whose points are counted from its end, in its own length: −1 is its start."""

    path: Objective

    @property
    def names(self) -> tuple[str, ...]:
        return self.path.names

    @property
    def counts(self) -> Vector:
        return self.path.counts

    def move(self, t: float) -> None:
        self.path.move(1.0 + t)

    def losses(self) -> Vector:
        return self.path.losses()

    def slopes(self) -> tuple[Vector, Matrix]:
        return self.path.slopes()


def follow(
    recipe: Source,
    low: float = -1.0,
    high: float = 1.0,
    *,
    data: str | Path,
    start: str | None = None,
    evaluations: int = 12,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    say: Say = silent,
    stop: Stop | None = None,
    **options: Any,
) -> Followed:
    """Look for the α in [low, high] at which base + (1 + α) · delta has the lowest loss nearby.

    The delta is that of the one model of `recipe` from its base, edits left out; with several models, or a `start`,
    it leads from the start of the path to its end (`run.loss`). α = 0 is its end, −1 its start; a positive α
    extrapolates. `options` are those of `run.loss` that concern data and computing. Half of the chunks are searched
    on and half tell what it is worth: see `line_search.line_search`.

    Raises:
        RecipeError: 0 is not within [low, high], or fewer than three evaluations. What `run.loss` and
        `line_search` raise.
    """
    _check(low, high, evaluations)
    # with a margin given, the base's loss is not taken
    request = Request(data=Path(data), seed=seed or 0, margin=0.0, **options)
    made = read_recipe(recipe, overrides, seed)
    ends = resolve_delta(recipe, made, start)
    ground = begin(ends, request, stop or Stop(), say)
    line = ground.line_to(ends.end.source)
    visited: list[float] = []

    def heard(alpha: float) -> None:
        visited.append(alpha)
        say(f"points of the line search, at most {evaluations}", len(visited), evaluations)

    from deltasmith.evaluate.models.transformers_loading import memory_errors

    with memory_errors(request.batch):
        found = line_search(
            _Beyond(line.objective),
            low,
            high,
            evaluations=evaluations,
            seed=request.seed,
            asked=lambda: ground.stop.asked,
            say=heard,
        )
    notes = (*ground.loaded.notes, *line.notes, *ground.laid.notes, *_left_out(made, start))
    changed = bool(overrides) or seed is not None
    written = _recipe(recipe, made, ends, start, round(found.alpha, _DIGITS), changed=changed)
    return Followed(
        ends.start.name, ends.end.name, ground.laid.used, found, written, tuple(dict.fromkeys(notes))
    )


def _check(low: float, high: float, evaluations: int) -> None:
    if not (low <= 0 <= high and low < high):
        raise RecipeError(
            f"a line search from {low:g} to {high:g}", fix="give a range with 0 in it, -1:1 say"
        )
    if evaluations < 3:
        raise RecipeError(f"evaluations is {evaluations}", fix="give 3 or more")
    if evaluations > MOST_EVALUATIONS:
        raise RecipeError(f"evaluations is {evaluations}", fix=f"give {MOST_EVALUATIONS} or fewer")


def _left_out(recipe: Recipe | None, start: str | None) -> list[str]:
    """Say that a recipe of one model has edits or a scale that the line does not see."""
    if recipe is None or start is not None or len(recipe.models) > 1:
        return []
    (entry,) = recipe.models
    if entry.edits or recipe.scale != 1.0 or entry.weight != 1.0:
        return ["the line follows the model's own delta: the recipe's edits, weight and scale are left out"]
    return []


def _recipe(
    source: Source, recipe: Recipe | None, ends: Ends, start: str | None, alpha: float, *, changed: bool
) -> dict[str, Any] | None:
    """Write the recipe of the model at `alpha`: of one model's delta, or of what a recipe's file makes."""
    if recipe is None:
        base, model = str(start), str(source)
    elif start is None and len(recipe.models) == 1 and isinstance(recipe.base, str):
        (entry,) = recipe.models
        if not isinstance(entry.model, str):
            return None
        base, model = _written(recipe.base, recipe.relative_to), _written(entry.model, entry.relative_to)
    elif isinstance(source, str | Path) and isinstance(ends.start.source, str) and not changed:
        base, model = ends.start.source, str(source)
    else:
        return None
    return {"base": base, "models": [{"model": model}], "preset": "expo", "alpha": alpha}


def _written(source: str, folder: Path) -> str:
    """Return a model's path as it counts from here; a hub id stays."""
    return str(folder / source) if (folder / source.partition("#")[0]).exists() else source
