"""Where a path begins and ends: from a recipe, or a model, to the two things that must be loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltasmith.analysis.requests import listed
from deltasmith.errors import DamagedInputError, RecipeError, printable
from deltasmith.evaluate.models.opening import is_recipe
from deltasmith.formats.opening import open_model
from deltasmith.merges.sum import Sum
from deltasmith.recipe.checks import from_dict, load
from deltasmith.recipe.model import ModelEntry, Recipe

__all__ = [
    "End",
    "Ends",
    "Source",
    "is_random",
    "mean_of",
    "plain",
    "read_recipe",
    "resolve",
    "resolve_delta",
]

Source = str | Path | Mapping[str, Any] | Recipe

_AUTOMATIC = re.compile(r"m\d+")


@dataclass(frozen=True)
class End:
    """Something that `networks.load` loads, and a name for it without an absolute path."""

    source: str | Recipe
    name: str


@dataclass(frozen=True)
class Ends:
    """A path from one model to another.

    `base` is what the start was fine-tuned from, where the recipe tells: its loss says what fine-tuning gained.
    `recipe` is the one that makes the end, None where the end is a model.
    """

    start: End
    end: End
    base: End | None = None
    recipe: Recipe | None = None


def read_recipe(source: Source, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe | None:
    """Read a recipe file or mapping with its changes; None for what is a model.

    Raises:
        RecipeError: the recipe does not hold together, or there are changes and no recipe.
    """
    if not is_recipe(source):
        if overrides:
            raise RecipeError(f"{printable(str(source))} is no recipe, so no value of it can be set")
        return None
    if isinstance(source, Recipe):
        recipe = source
    elif isinstance(source, Mapping):
        recipe = from_dict(source, Path(), overrides)
    else:
        recipe = load(source, overrides)
    return recipe if seed is None else replace(recipe, seed=seed)


def resolve(source: Source, recipe: Recipe | None, start: str | None) -> Ends:
    """Find both ends: `source` (read as `recipe`, if it is one) is the end, `start` says where the path begins.

    `start` is "base", the label of one of the recipe's models, the name of its folder if no other model has that, or a
    model's path; a label wins over a folder's name and over a path. By default an edit of one model is explained on
    top of that model, and a merge of several on top of their base.

    Raises:
        RecipeError: there is no such start, or none can be guessed. What `open_model` raises of a model.
    """
    if recipe is None:
        end = plain(source)
        if start is None:
            raise RecipeError(
                f"{printable(str(source))} is a model, and says nothing of where the path starts",
                fix="give --from MODEL, its base for example",
            )
        if start == "base" and not Path(start).exists():
            raise RecipeError(
                f"{printable(str(source))} is a model, and has no recipe that names its base",
                fix="give the base's folder: --from FOLDER",
            )
        return Ends(_start_of_plain(start), end)
    end = End(recipe, Path(source).stem if isinstance(source, str | Path) else "the recipe")
    if start is None and len(recipe.models) > 1:
        start = "base"
    entry = _entry(recipe, start)
    if entry is not None:
        base = None if recipe.base is None else _base(recipe)
        return Ends(_model(recipe, entry), end, base, recipe)
    if start == "base":
        return Ends(_base(recipe), end, None, recipe)
    assert start is not None
    return Ends(_other(recipe, start), end, None, recipe)


def resolve_delta(source: Source, recipe: Recipe | None, start: str | None) -> Ends:
    """Find the ends of a delta that is to be followed further: from a recipe's base to its one model as it is.

    With a `start`, or several models, the ends are those of `resolve`. Raises what that raises.
    """
    if recipe is None or start is not None or len(recipe.models) > 1:
        return resolve(source, recipe, start)
    return Ends(_base(recipe), _model(recipe, recipe.models[0]), None, recipe)


def is_random(recipe: Recipe) -> bool:
    """Tell whether an edit of a recipe is random and leaves the delta as it is on average: one with a `variance`."""
    return any(hasattr(edit.record, "variance") for entry in recipe.models for edit in entry.edits)


def mean_of(ends: Ends, recipe: Recipe) -> End:
    """Return the mean over seeds of what a recipe makes: the recipe without its random edits, which are unbiased.

    That holds for recipes whose `variances` are known. It is `ends.start` itself where nothing but random edits tells
    the recipe from the one model that the path starts from.
    """
    entries = tuple(
        replace(entry, edits=tuple(edit for edit in entry.edits if not hasattr(edit.record, "variance")))
        for entry in recipe.models
    )
    mean = replace(recipe, models=entries, seed=0)  # nothing is left that a seed would change
    first = entries[0]
    plain = not first.edits and first.weight == recipe.scale == 1.0 and recipe.where == "*"
    if len(entries) == 1 and plain and ends.start.source == _model(recipe, first).source:
        return ends.start
    return End(mean, f"{ends.end.name} without its random edits")


def _entry(recipe: Recipe, start: str | None) -> ModelEntry | None:
    """Return the model that the path starts from, None if it is none of the recipe's."""
    if start is None:
        return recipe.models[0]
    labelled = next((entry for entry in recipe.models if entry.label == start), None)
    return labelled if labelled is not None or start == "base" else _entry_in(recipe, start)


def _entry_in(recipe: Recipe, name: str) -> ModelEntry | None:
    """Return the one model of a recipe whose folder is called `name`; None if there is none, or `name` is a path."""
    if "/" in name:
        return None
    places = {id(entry): place for entry in recipe.models if (place := _folder(entry)) is not None}
    found = [entry for entry in recipe.models if (place := places.get(id(entry))) and place.name == name]
    if not found:
        return None
    choices = [f"{entry.label} ({printable(str(entry.model), 80)})" for entry in found]
    here = Path(name)
    if here.exists() and any(here.resolve() != places[id(entry)] for entry in found):
        choices.append(f"./{name} (the one that lies here)")
    if len(choices) > 1:
        raise RecipeError(
            f"more than one model is called {printable(name, 80)!r}", fix=f"use --from {listed(choices)}"
        )
    return found[0]


def _folder(entry: ModelEntry) -> Path | None:
    """Return where a model of a recipe lies; None for a nested recipe, or what does not lie here."""
    if isinstance(entry.model, Recipe):
        return None
    place = entry.relative_to / entry.model
    return place.resolve() if place.exists() else None


def _choices(recipe: Recipe) -> list[str]:
    """Return a word for every model of a recipe that `--from` takes: its folder's name where its label is automatic."""
    folders = [_folder(entry) for entry in recipe.models]
    names = [folder.name if folder else "" for folder in folders]
    return [
        name if name and _AUTOMATIC.fullmatch(entry.label) and names.count(name) == 1 else entry.label
        for entry, name in zip(recipe.models, names, strict=True)
    ]


def _base(recipe: Recipe) -> End:
    if recipe.base is None:
        raise RecipeError(
            "the recipe has no base for the path to start from",
            fix=f"give --from {listed(_choices(recipe))}, or a model's folder",
        )
    if isinstance(recipe.base, Recipe):
        return End(recipe.base, "base")
    return _located(recipe.base, recipe.relative_to, "base")


def _model(recipe: Recipe, entry: ModelEntry) -> End:
    """Return one model of a recipe as it is before its edits: a delta without a base of its own over the recipe's."""
    name = "the model" if _AUTOMATIC.fullmatch(entry.label) else entry.label
    if isinstance(entry.model, Recipe):
        return End(entry.model, name)
    opened = open_model(entry.model, relative_to=entry.relative_to)
    whole = opened.checkpoint is not None and opened.packed is None and opened.config is not None
    if whole or recipe.base is None:
        return _located(entry.model, entry.relative_to, name)
    alone = ModelEntry(entry.model, entry.label, relative_to=entry.relative_to)
    unedited = Recipe(
        (alone,),
        Sum(),
        recipe.base,
        dtype=recipe.dtype,
        nonfinite=recipe.nonfinite,
        relative_to=recipe.relative_to,
    )
    return End(unedited, opened.name if name == "the model" else name)


def _located(source: str, folder: Path, label: str) -> End:
    """Name a model by what it lies under now: relative paths count from the recipe's folder."""
    opened = open_model(source, relative_to=folder)
    place = source if opened.folder is None or opened.packed is not None else str(opened.folder)
    if place is source and (folder / source.partition("#")[0]).exists():
        place = str(folder / source)
    return End(place, opened.name if label == "the model" else label)


def plain(source: Source) -> End:
    """Return a model that is no recipe, by its own name.

    Raises:
        RecipeError: a file that is neither. What `open_model` raises of a model, or of nothing.
    """
    try:
        return End(str(source), open_model(str(source)).name)
    except DamagedInputError as error:
        if "not read as a model" not in error.what:
            raise
        raise RecipeError(
            "it is neither a recipe (*.yaml) nor a model",
            where=printable(str(source)),
            fix="give a recipe, or a model's folder",
        ) from error


def _start_of_plain(source: str) -> End:
    return plain(source) if not is_recipe(source) else End(source, Path(source).stem)


def _other(recipe: Recipe, start: str) -> End:
    """Return a start that the recipe does not name; a word that is no path is probably a label spelled wrongly."""
    if "/" not in start and not Path(start.partition("#")[0]).exists():
        raise RecipeError(
            f"there is no model {printable(start, 80)!r} in the recipe to start from",
            fix=f"use --from {listed(('base', *_choices(recipe)))}, or a model's folder",
        )
    return _start_of_plain(start)
