"""Recipe → plan: open the models' headers, bind adapters to the base, line up the table.

Reads headers and small files only. Everything that headers and recipe can show to be wrong is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deltasmith.engine.evaluator import Evaluator
from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.packed_model import PackedColumn, PackedModel
from deltasmith.formats.tokenizer import compare_templates, compare_vocabularies, padded_vocabulary
from deltasmith.planning.align import Wishes, align
from deltasmith.planning.plan import Column, EditRule, Plan
from deltasmith.recipe.model import ModelEntry, Recipe
from deltasmith.recipe.statistics import open_statistics, refuse_of_another, refuse_unfit
from deltasmith.recipe.together import reader_of
from deltasmith.table.checkpoint import Checkpoint

__all__ = ["Built", "build"]


@dataclass(frozen=True)
class Built:
    """A plan with the recipe it came from and the models it reads.

    `home` is the model whose names, element types and config the output takes: the base, or the first model.
    `side` is the model whose tokenizer files go with the output; `statistics` holds each model's file, if it has one.
    """

    recipe: Recipe
    plan: Plan
    base: OpenedModel | Built | None
    models: tuple[OpenedModel | Built, ...]
    statistics: tuple[OpenedModel | None, ...] = ()

    @property
    def home(self) -> OpenedModel:
        """Follow the base (or first model) down to a model on disk."""
        return _on_disk(self.base if self.base is not None else self.models[0])

    @property
    def side(self) -> OpenedModel:
        """Return the model that lends the tokenizer."""
        wanted = self.recipe.tokenizer
        if wanted == "base":
            return self.home
        return _on_disk(self.models[self.recipe.labels.index(wanted)])

    def opened(self) -> Iterator[tuple[str, OpenedModel]]:
        """Yield every model on disk with its label; those of a nested recipe as `label/inner`."""
        if self.base is not None:
            yield from _labelled("base", self.base)
        for label, model in zip(self.recipe.labels, self.models, strict=True):
            yield from _labelled(label, model)

    def inputs(self) -> Iterator[tuple[str, OpenedModel]]:
        """Yield everything that is read, with its label: every model on disk, then the statistics beside them."""
        yield from self.opened()
        yield from ((f"{label}/statistics", file) for label, _, file in self._statistics())

    def refuse_foreign_statistics(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Refuse statistics files of other models than the ones they stand beside; see `refuse_of_another`.

        Not part of building, which reads headers only: this may read whole models.
        """
        for label, model, file in self._statistics():
            if isinstance(model, OpenedModel):
                refuse_of_another(label, model, file, stopped)

    def _statistics(self) -> Iterator[tuple[str, OpenedModel | Built, OpenedModel]]:
        """Yield every statistics file with the label of its model, and the model."""
        for label, model, file in zip(self.recipe.labels, self.models, self.statistics, strict=True):
            if file is not None:
                yield label, model, file
            if isinstance(model, Built):
                yield from ((f"{label}/{inner}", of, read) for inner, of, read in model._statistics())
        if isinstance(self.base, Built):
            yield from ((f"base/{inner}", of, read) for inner, of, read in self.base._statistics())


def _labelled(label: str, model: OpenedModel | Built) -> Iterator[tuple[str, OpenedModel]]:
    if isinstance(model, Built):
        yield from ((f"{label}/{inner}", opened) for inner, opened in model.opened())
    else:
        yield label, model


def _on_disk(model: OpenedModel | Built) -> OpenedModel:
    return model.home if isinstance(model, Built) else model


def build(recipe: Recipe) -> Built:
    """Open every model of the recipe and decide what happens to every tensor."""
    base = None if recipe.base is None else _open(recipe.base, recipe.relative_to, "base")
    models = tuple(_open(entry.model, entry.relative_to, entry.label) for entry in recipe.models)
    ground = None if base is None else _checkpoint(base, "base")
    files = open_statistics(recipe)
    found = tuple(None if file is None else file.checkpoint for file in files)
    columns = tuple(
        replace(_column(entry, model, ground), statistics=read if reader_of(entry) else None)
        for entry, model, read in zip(recipe.models, models, found, strict=True)
    )
    home = _on_disk(base if base is not None else models[0])
    warnings = [*_warnings(base, models), *_compare(recipe, base, models)]
    wishes = Wishes(
        merge=recipe.merge,
        space=recipe.space,
        scale=recipe.scale,
        where=recipe.where,
        dtype=recipe.dtype,
        seed=recipe.seed,
        nonfinite=recipe.nonfinite,
        tied=_tied(home),
        statistics=tuple(read for read in found if read is not None)
        if "statistics" in type(recipe.merge).model_fields
        else (),
        notes=tuple(_notes(recipe, base, models)),
        warnings=tuple(dict.fromkeys(warnings)),
    )
    plan = align(ground, columns, wishes)
    refuse_unfit(plan)
    return Built(recipe, plan, base, models, files)


def _open(source: str | Recipe, folder: Path, label: str) -> OpenedModel | Built:
    """Open one model; what is wrong with it is said of its label."""
    if isinstance(source, Recipe):
        return build(source)
    try:
        return open_model(source, relative_to=folder)
    except (DamagedInputError, RefusedError) as error:
        raise type(error)(f"{printable(label)}: {error.what}", where=error.where, fix=error.fix) from error


def _checkpoint(model: OpenedModel | Built, label: str) -> Checkpoint:
    if isinstance(model, Built):
        return Evaluator(model.plan)
    if model.checkpoint is None:
        fix = "name a whole model" if label == "base" else "name the model it changes as the recipe's `base`"
        raise RefusedError(f"{model.kind} is not a model by itself", where=label, fix=fix)
    if isinstance(model.checkpoint, PackedModel):
        _ = model.checkpoint.base  # found and checked now, not when the first value is read
    return model.checkpoint


def _column(entry: ModelEntry, model: OpenedModel | Built, base: Checkpoint | None) -> Column:
    edits = tuple(EditRule(edit.record, edit.where) for edit in entry.edits)
    if isinstance(model, OpenedModel) and model.packed is not None and base is not None:
        packed = PackedModel.over(model.packed, base)
        return Column(
            entry.label, PackedColumn(packed), entry.weight, edits, packed.holds_delta, tied=_tied(model)
        )
    if isinstance(model, OpenedModel) and model.trainer is not None and base is not None:
        return Column(entry.label, model.trainer.bind(base), entry.weight, edits)
    if isinstance(model, Built) or model.adapter is None:
        tied = _tied(_on_disk(model))
        return Column(entry.label, _checkpoint(model, entry.label), entry.weight, edits, tied=tied)
    if base is None:
        raise RefusedError("an adapter needs the model it adapts", where=entry.label, fix="give a `base`")
    bound = model.adapter.bind(base.specs)
    return Column(entry.label, bound, entry.weight, edits, bound.is_delta, sparse=True)


def _tied(model: OpenedModel) -> bool | None:
    config = model.config or {}
    inner = config.get("text_config")
    values = [c.get("tie_word_embeddings") for c in (config, inner) if isinstance(c, Mapping)]
    return next((value for value in values if isinstance(value, bool)), None)


def _warnings(base: OpenedModel | Built | None, models: Iterable[OpenedModel | Built]) -> Iterator[str]:
    for model in (base, *models):
        if isinstance(model, OpenedModel):
            yield from model.warnings
        elif isinstance(model, Built):
            yield from model.plan.warnings


def _notes(
    recipe: Recipe, base: OpenedModel | Built | None, models: tuple[OpenedModel | Built, ...]
) -> Iterator[str]:
    """State what a reader of the plan might not expect."""
    places: dict[str, list[str]] = {}
    named = [("base", base), *zip(recipe.labels, models, strict=True)]
    for label, model in named:
        if isinstance(model, OpenedModel) and model.folder is not None:
            places.setdefault(str(model.folder.resolve()), []).append(label)
        elif isinstance(model, Built):
            yield f"{label} is a recipe: its values stay in float32, without the rounding a file would add"
    for labels in places.values():
        if len(labels) > 1:
            yield f"{', '.join(labels)} are the same model"


def _compare(
    recipe: Recipe, base: OpenedModel | Built | None, models: tuple[OpenedModel | Built, ...]
) -> Iterator[str]:
    """Compare what is not tensors: vocabularies (refused where they differ), templates and families (warned)."""
    home_label = "base" if base is not None else recipe.labels[0]
    home = _on_disk(base if base is not None else models[0])
    if home.folder is not None and home.checkpoint is not None:
        yield from padded_vocabulary(home.folder, home.checkpoint.specs, home_label)
    for label, model in zip(recipe.labels, models, strict=True):
        other = _on_disk(model)
        if other.folder is None or home.folder is None or other.adapter is not None or other.trainer:
            continue
        compare_vocabularies(home.folder, home_label, other.folder, label)
        yield from compare_templates(home.folder, home_label, other.folder, label)
        ours, theirs = ((m.config or {}).get("model_type") for m in (home, other))
        if ours and theirs and ours != theirs:
            yield f"{label} is a {printable(str(theirs))} model and {home_label} a {printable(str(ours))} model"
