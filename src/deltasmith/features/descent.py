"""What a model tells of its own descent: a merged folder, a recipe, a packed delta. Graphs are made in `lineage`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.hub import looks_like_id
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.manifest import shown_source
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.recipe.catalogue import name_of
from deltasmith.recipe.checks import is_recipe_file, load
from deltasmith.recipe.model import Recipe, to_mapping
from deltasmith.table.checkpoint import SourceFile

__all__ = ["Descent", "Given", "descent_of"]

_MANIFEST = "manifest.json"
_JSON_LIMIT = 1 << 29  # the manifest of 100,000 tensors has 20 MB


@dataclass(frozen=True)
class Descent:
    """Whom a model descends from, by the labels of given models, and what a reader should know of it."""

    parents: tuple[str, ...]
    base: str | None = None
    method: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """One model as it was given: its label, and what the user calls it. Opened when first asked for."""

    label: str
    source: str

    @property
    def shown(self) -> str:
        """Return what may be written down of the source: no absolute path."""
        return shown_source(self.source)

    @cached_property
    def recipe(self) -> Recipe | None:
        """Read the recipe, if this is one."""
        return load(self.source) if is_recipe_file(self.source) else None

    @cached_property
    def opened(self) -> OpenedModel:
        """Open the model; what is wrong with it is said of its label."""
        try:
            return open_model(self.source)
        except (DamagedInputError, RefusedError) as error:
            raise type(error)(
                f"{printable(self.label)}: {error.what}", where=error.where, fix=error.fix
            ) from error

    @cached_property
    def files(self) -> tuple[SourceFile, ...]:
        """List the files that tell this model from others; none for a recipe."""
        if self.recipe is not None:
            return ()
        packed = self.opened.packed
        return self.opened.files if packed is None else tuple(packed.packed.sources)

    def same_place(self, source: str, relative_to: Path) -> bool:
        """Tell whether a source that a recipe names is this model, by its place alone."""
        here, there = Path(self.source).expanduser(), relative_to / Path(source).expanduser()
        if here.exists() and there.exists():
            return here.resolve() == there.resolve()
        return self.source == source and looks_like_id(source)

    def has_files(self, wanted: Mapping[str, tuple[int, str | None]]) -> bool:
        """Tell whether this model consists of files of these sizes and hashes, whatever their names.

        A packed delta may be recorded with the files of its base beside its own; no other model has too few.
        """
        if not self.files or any(sha is None for _, sha in wanted.values()):
            return False
        sizes = sorted(size for size, _ in wanted.values())
        ours = sorted(file.nbytes for file in self.files)
        if ours != sizes and (self.opened.packed is None or not set(ours) <= set(sizes)):
            return False
        hashes = {sha for _, sha in wanted.values()}
        return all(sha256_of(file.path, file.nbytes) in hashes for file in self.files)


def descent_of(model: Given, others: Sequence[Given]) -> Descent | None:
    """Find whom among the others a model descends from; None where it says nothing, or names none of them.

    Raises:
        DamagedInputError: a model or recipe cannot be read. RecipeError: a recipe is wrong.
    """
    if model.recipe is not None:
        return _of_recipe(model, model.recipe, others)
    opened = model.opened
    if opened.packed is not None:
        return _of_packed(model, others)
    if opened.folder is not None and (opened.folder / _MANIFEST).is_file():
        return _of_manifest(model, opened.folder / _MANIFEST, others)
    return None


def _of_recipe(model: Given, recipe: Recipe, others: Sequence[Given]) -> Descent | None:
    """Compare the models a recipe names with the given ones: by place, then by hash."""
    base = None if recipe.base is None else _named(recipe.base, recipe.relative_to, others)
    parents = [(entry.label, _named(entry.model, entry.relative_to, others)) for entry in recipe.models]
    return _descent(
        model.label, parents, ("base" if recipe.base is not None else None, base), name_of(recipe.merge)[0]
    )


def _named(source: str | Recipe, relative_to: Path, others: Sequence[Given]) -> str | None:
    """Find the given model that a recipe's source is."""
    if isinstance(source, Recipe):
        return next((o.label for o in others if o.recipe is not None and _same(o.recipe, source)), None)
    for other in others:
        if other.recipe is None and other.same_place(source, relative_to):
            return other.label
    files = open_model(source, relative_to=relative_to).files
    sizes = sorted(file.nbytes for file in files)
    alike = [o for o in others if o.recipe is None and sorted(f.nbytes for f in o.files) == sizes]
    if not alike:  # nothing is hashed where the sizes already tell
        return None
    wanted = {f.name: (f.nbytes, sha256_of(f.path, f.nbytes)) for f in files}
    return next((other.label for other in alike if other.has_files(wanted)), None)


def _same(one: Recipe, other: Recipe) -> bool:
    return to_mapping(one) == to_mapping(other) and one.relative_to.resolve() == other.relative_to.resolve()


def _of_packed(model: Given, others: Sequence[Given]) -> Descent | None:
    """Find the model that a packed delta was packed against."""
    delta = model.opened.packed
    assert delta is not None
    for other in others:
        checkpoint = None if other.recipe is not None or other.opened.packed else other.opened.checkpoint
        if checkpoint is None:
            continue
        try:
            delta.check_base(checkpoint)
        except (DamagedInputError, RefusedError):
            continue
        return Descent((other.label,))
    return None


def _of_manifest(model: Given, path: Path, others: Sequence[Given]) -> Descent | None:
    """Compare the inputs a manifest names with the given models, by the hashes of their files."""
    document = read_json_object(path, _JSON_LIMIT)
    who = printable(model.label, 80)
    try:
        lineage, inputs = document["lineage"], {str(r["label"]): r for r in document["inputs"]}
        tensors, method = set(document["tensors"]), str(lineage["merge"])
        base, labels = lineage["base"], [str(label) for label in lineage["parents"]]
        found = {label: _recorded(record, others) for label, record in inputs.items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        return Descent((), notes=(f"{who}: its manifest.json is none that a merge wrote, and is not used",))
    checkpoint = model.opened.checkpoint
    if checkpoint is None or set(checkpoint.specs) != tensors:
        what = "its manifest.json lists other tensors than it holds, and is not used"
        return Descent((), notes=(f"{who}: {what}",))
    parents = [(label, found.get(label)) for label in labels]
    return _descent(model.label, parents, (base, found.get(str(base))), method)


def _recorded(record: Mapping[str, Any], others: Sequence[Given]) -> str | None:
    """Find the given model that an input of a manifest was."""
    files = {name: (int(file["bytes"]), file["sha256"]) for name, file in record["files"].items()}
    fits = [other for other in others if other.has_files(files)]
    if not fits:  # the hub's commit stands for files that were not hashed
        fits = [o for o in others if record["revision"] is not None and _is_commit(o, record)]
    # One container holds several packed deltas: what it was called tells which.
    exact = [other for other in fits if other.shown == record["source"]]
    return next((other.label for other in (*exact, *fits)), None)


def _is_commit(model: Given, record: Mapping[str, Any]) -> bool:
    if model.recipe is not None:
        return False
    return (model.opened.name, model.opened.revision) == (record["source"], record["revision"])


def _descent(
    label: str,
    parents: Iterable[tuple[str, str | None]],
    base: tuple[str | None, str | None],
    method: str,
) -> Descent | None:
    """Make a descent of what a merge names, `(its name, the given model it is)` each; None where nothing is given."""
    parents, who = list(parents), printable(label, 80)
    found = tuple(dict.fromkeys(given for _, given in parents if given is not None))
    missing = [printable(name, 80) for name, given in parents if given is None]
    ground = base[1]
    if not found:
        if ground is None:
            return None
        note = f"{who}: none of the models it was made of is given; it is followed from its base {ground}"
        return Descent((ground,), None, method, (note,))
    notes = []
    if missing:
        notes.append(f"{who}: it was made of {', '.join(missing)} too, which is not among the models given")
    if base[0] is not None and ground is None:
        notes.append(f"{who}: its base is not among the models given; nothing can be told to be recovered")
    return Descent(found, None if ground in found else ground, method, tuple(notes))
