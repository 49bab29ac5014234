"""What a recipe says, once checked: frozen records, and the way back to plain mappings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltasmith.operation.protocols import Edit, Merge, Space
from deltasmith.operation.schedule import Curve, PerTensor
from deltasmith.recipe.catalogue import Dialect, name_of

__all__ = [
    "EditEntry",
    "ModelEntry",
    "Nonfinite",
    "OutputType",
    "Recipe",
    "Weight",
    "operation_mapping",
    "operation_text",
    "to_mapping",
]

Weight = float | Curve | PerTensor
OutputType = Literal["base", "float32", "bfloat16", "float16"]
Nonfinite = Literal["refuse", "keep", "zero"]


@dataclass(frozen=True)
class EditEntry:
    """One edit of one model, and the glob of the tensors it applies to; the others stay as they are."""

    record: Edit
    where: str = "*"


@dataclass(frozen=True)
class ModelEntry:
    """One column of the table.

    `model` is a path, a hub id or a recipe; a path counts from `relative_to`, the folder of the recipe that
    names it. `weight` multiplies the delta (in weight space, the weight), after the edits. `statistics` is
    the file that a merge such as `regmean` reads for this model (the merge's own field has it too), or that
    its edits read.
    """

    model: str | Recipe
    label: str
    weight: Weight = 1.0
    edits: tuple[EditEntry, ...] = ()
    statistics: str | None = None
    relative_to: Path = Path()


@dataclass(frozen=True)
class Recipe:
    """Base, models with their edits, merge, scale: one plan, before any file has been opened.

    `tokenizer` is "base" or the label of a model; without a base it is the first model unless the recipe says
    otherwise. `dtype` "base" means the element types of the base, or of the first model if there is no base.
    `dialect` has done its work by now (the records are chosen); it is kept for the manifest.
    """

    models: tuple[ModelEntry, ...]
    merge: Merge
    base: str | Recipe | None = None
    space: Space = "delta"
    scale: Weight = 1.0
    where: str = "*"
    tokenizer: str = "base"
    dtype: OutputType = "base"
    seed: int = 0
    nonfinite: Nonfinite = "refuse"
    dialect: Dialect = "paper"
    relative_to: Path = Path()

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the models in order."""
        return tuple(entry.label for entry in self.models)


def operation_mapping(record: Edit | Merge, dialect: Dialect = "paper") -> dict[str, Any]:
    """Return `{name: {fields}}` with every field written out; the dialect too where it is not the recipe's.

    Statistics files are left out: they are written beside their models.
    """
    name, own = name_of(record, dialect)
    fields = {key: _number(value) for key, value in record if value is not None and key != "statistics"}
    return {name: fields if own == dialect else {**fields, "dialect": own}}


def operation_text(record: Edit | Merge) -> str:
    """Return an operation on one line, by the name a recipe gives it: `keep_largest(density=0.2)`."""
    name, dialect = name_of(record)
    fields = ", ".join(f"{key}={_short(value)}" for key, value in record if key != "statistics")
    return f"{name}({fields})" + (f" [{dialect}]" if dialect != "paper" else "") if fields else name


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(_number(value))


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data with every default written out; reading it back gives an equal recipe.

    Paths stay as they were written: a recipe that was nested by its path loses the folder it lay in.
    """
    mapping: dict[str, Any] = {}
    if recipe.base is not None:
        mapping["base"] = _source(recipe.base)
    mapping["models"] = [_entry(entry, recipe.dialect) for entry in recipe.models]
    merge = operation_mapping(recipe.merge, recipe.dialect)
    mapping["merge"] = next((name for name, fields in merge.items() if not fields), merge)
    mapping["space"] = recipe.space
    if recipe.space == "delta":
        mapping["scale"] = _number(recipe.scale)
    for key in ("where", "tokenizer", "dtype", "seed", "dialect", "nonfinite"):
        mapping[key] = getattr(recipe, key)
    return mapping


def _entry(entry: ModelEntry, dialect: Dialect) -> dict[str, Any]:
    mapping = {"model": _source(entry.model), "label": entry.label, "weight": _number(entry.weight)}
    if entry.statistics is not None:
        mapping["statistics"] = entry.statistics
    if entry.edits:
        mapping["edits"] = [{**operation_mapping(e.record, dialect), "where": e.where} for e in entry.edits]
    return mapping


def _source(source: str | Recipe) -> str | dict[str, Any]:
    return to_mapping(source) if isinstance(source, Recipe) else source


def _number(value: Any) -> Any:
    """Write a field's value as a recipe would: schedules as mappings and lists, tuples as lists."""
    if isinstance(value, Curve):
        return {"layers": list(value.layers)}
    if isinstance(value, PerTensor):
        return [{"where": choice.where, "value": _number(choice.value)} for choice in value.choices]
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    return [_number(item) for item in value] if isinstance(value, tuple) else value
