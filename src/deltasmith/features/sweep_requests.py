"""What is asked of a sweep: the axis through the recipe, the parents, the place of the result. Nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltasmith.analysis.ends import End, Source, resolve
from deltasmith.analysis.sweep_axes import Plane, read_plane
from deltasmith.errors import DamagedInputError, RecipeError, RefusedError, printable
from deltasmith.evaluate.models.opening import is_recipe
from deltasmith.features.study import Study
from deltasmith.features.sweep_records import read_sweep
from deltasmith.recipe.problems import RecipeProblems
from deltasmith.recipe.tree import Mark

__all__ = ["ParentSource", "check_place", "name_of", "parents_of", "read_axis"]


@dataclass(frozen=True)
class ParentSource:
    """A parent to be opened: what it is called until then, and whether the user says it is the study's model."""

    label: str
    end: End
    promised: bool


def read_axis(recipe: Source, vary: str, overrides: Sequence[str]) -> Plane:
    """Read the one axis through a recipe, NAME=LOW:HIGH:STEP or NAME=A|B; RecipeError with all that is wrong."""
    if not is_recipe(recipe):
        raise RecipeError(
            f"{printable(str(recipe))} is a model, and has nothing to vary", fix="give a recipe (*.yaml)"
        )
    try:
        plane = read_plane(recipe, vary, overrides)
    except RecipeProblems as error:  # which call the option by the name it has elsewhere
        problems = [
            replace(p, mark=Mark(p.mark.source.replace("--sweep", "--vary"), p.mark.line, p.mark.column))
            for p in error.problems
        ]
        raise RecipeProblems(problems) from error
    if len(plane.axes) != 1:
        raise RecipeError(
            f"{len(plane.axes)} parameters vary", where="--vary", fix="give one, and make a sweep for each"
        )
    return plane


def parents_of(study: Study, plane: Plane, models: Sequence[str]) -> list[ParentSource]:
    """List the parents to look at: those named, else the recipe's models as they are before their edits.

    RecipeError where `models` are no LABEL=SOURCE of the study's labels; what `open_model` raises of the recipe's.
    """
    if not models:
        recipe = plane.recipe(next(plane.points()))
        ends = ((entry.label, resolve(recipe, recipe, entry.label).start) for entry in recipe.models)
        return [ParentSource(label, end, False) for label, end in ends]
    found: dict[str, ParentSource] = {}
    for word in models:
        label, sign, source = word.partition("=")
        if not sign or not source or label not in study.graph.by_label:
            known = ", ".join(map(printable, study.graph.by_label))
            raise RecipeError(
                f"{printable(word, 80)!r} names no model of the study", fix=f"write LABEL=SOURCE, of {known}"
            )
        if label in found:
            raise RecipeError(f"{printable(label, 60)!r} is named twice", fix="name it once")
        found[label] = ParentSource(label, End(source, label), True)
    return list(found.values())


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file, unless it may be replaced and is an earlier sweep."""
    where = printable(str(out))
    if not out.exists():
        return
    if not overwrite:
        raise RefusedError(
            "the output exists", where=where, fix="choose another output, or replace it with --overwrite"
        )
    try:
        read_sweep(out)
    except DamagedInputError as cause:
        raise RefusedError(
            "the output to be replaced is no sweep of features", where=where, fix="choose another output"
        ) from cause


def name_of(recipe: Source) -> str:
    """Return what may be written down of a recipe: its file's name."""
    return printable(Path(recipe).name) if isinstance(recipe, str | Path) else "recipe"
