"""Packing: a fine-tuned model becomes a packed delta over its base, tensor by tensor, each by its codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasmith.api import available_threads
from deltasmith.codecs.catalogue import CodecLike, codec_from
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.packed_document import is_label
from deltasmith.packing.choosing import LINEARS, choose_all, rules_of
from deltasmith.packing.material import Material, Rooms, cell_of, gather, open_statistics, task_of
from deltasmith.packing.writing import (
    Finished,
    Order,
    PackResult,
    Resources,
    Tensors,
    open_base,
    record_of,
    refuse_strangers,
    write,
)
from deltasmith.table.checkpoint import Checkpoint

__all__ = ["PackResult", "Ready", "cells_of", "label_for", "label_of", "pack", "prepare"]

_LONGEST = 800  # bytes of a tensor's name: of the 1024 of an array's, some are the codec's and the label's
_SUFFIXES = (".yaml", ".yml", ".safetensors", ".npz")


def pack(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    codec: CodecLike = "bitdelta",
    where: str = LINEARS,
    rules: Sequence[tuple[str, CodecLike]] = (),
    rest: CodecLike = "lossless",
    label: str | None = None,
    statistics: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> PackResult:
    """Write the packed delta of `model` over `base` to the folder `out`.

    `model` is a folder, a file, a hub id, an adapter, or a recipe (*.yaml) whose result is packed. Each tensor gets
    the codec of the first of `rules` (glob, codec) that matches it, else `codec` if `where` matches it (`linears`:
    the matrices of numbered layers), else `rest`. `statistics` is a file of Gram matrices of the layers' inputs
    (`NAME::gram`), for codecs that weigh errors by them (claq). The bytes do not depend on threads, memory or
    interruptions.

    Raises what `merge` raises; RecipeError for codecs that do not exist.
    """
    resources = Resources(threads or available_threads(), memory, progress or Silent(), stop or Stop())
    ready = prepare(base, model, label, statistics, seed, resources)
    codecs, notes = choose_all(ready.cells, rules_of(codec, where, rules), codec_from(rest))
    return write(ready.order(codecs, notes), Path(out), resources, overwrite=overwrite)


@dataclass(frozen=True)
class Ready:
    """Base and model, opened and lined up: what is left is to choose each cell's codec."""

    base: OpenedModel
    material: Material
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    def order(self, codecs: Mapping[str, Codec], notes: Sequence[str]) -> Order:
        """Return what will be written: each cell by its codec."""
        assert self.base.checkpoint is not None
        ground, material, rooms = self.base.checkpoint, self.material, Rooms()
        tasks = tuple(task_of(material, ground, cell, codecs[cell.spec.name], rooms) for cell in self.cells)

        def describe(finished: Finished) -> dict[str, Tensors]:
            names = [(cell, cell.spec.name) for cell in self.cells]
            records = {name: record_of(cell, codecs[name], finished[name]) for cell, name in names}
            return {material.label: records}

        return Order(self.base, (material,), tasks, describe, (*self.notes, *notes))


def prepare(
    base: str | Path,
    model: str | Path,
    label: str | None,
    statistics: str | Path | None,
    seed: int,
    resources: Resources,
) -> Ready:
    """Open base, model and statistics, and line the tensors up. Raises what `pack` raises before it codes."""
    ground = open_base(str(base))
    material = gather(ground, str(model), label_for(model, label), resources.threads, resources.stop)
    grams, told = open_statistics(statistics, material, resources.stop)
    cells, notes = cells_of(ground, material, seed, grams)
    return Ready(ground, material, cells, (*notes, *told))


def label_for(model: str | Path, label: str | None) -> str:
    """Return the label given, or the model's; RecipeError if no delta can be labelled so."""
    if label is not None and not is_label(label):
        raise RecipeError(
            f"no delta can be labelled {printable(repr(label), 60)}",
            where="pack",
            fix="a label is printable and has no #",
        )
    return label_of(model) if label is None else label


def label_of(model: str | Path) -> str:
    """Return the name of a model's folder or file, or the label of a packed one, which labels its delta.

    >>> label_of("models/Llama-3.1-8B"), label_of("someone/math@main"), label_of("mix.yaml"), label_of("packed#code")
    ('Llama-3.1-8B', 'math', 'mix', 'code')
    """
    path, _, inner = str(model).rpartition("#") if "#" in str(model) else (str(model), "", "")
    name = inner or Path(path).name or Path(path).resolve().name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    label = name.partition("@")[0]
    return label if is_label(label) else "model"


def cells_of(
    base: OpenedModel, material: Material, seed: int, statistics: Checkpoint | None = None
) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """Line the model's tensors up with the base's; return the cells in order of names, and notes.

    Raises:
        RefusedError: the model is no fine-tune of this base.
    """
    assert base.checkpoint is not None
    specs = material.checkpoint.specs
    cells = tuple(
        cell_of(specs[name], base.checkpoint, material.label, seed, statistics) for name in sorted(specs)
    )
    refuse_strangers(cells, base, material.label)
    for name in specs:
        if len(name.encode()) > _LONGEST:
            raise RefusedError(
                f"a tensor's name is too long for its arrays' names: over {_LONGEST} bytes",
                where=printable(name, 120),
                fix="rename the tensor",
            )
    missing = [name for name in base.checkpoint.specs if name not in specs]
    grown = [cell.spec.name for cell in cells if cell.spec.name not in base.checkpoint.specs]
    reshaped = [c.spec.name for c in cells if c.base is None and c.spec.name in base.checkpoint.specs]
    told = {
        f"{len(missing)} tensors of the base are not in the model": missing,
        f"tensors that the base lacks, stored whole: {len(grown)}": grown,
        f"tensors of another shape or kind than the base's, stored whole: {len(reshaped)}": reshaped,
    }
    notes = [f"{what}, the first {printable(names[0], 120)}" for what, names in told.items() if names]
    return cells, tuple(notes)
