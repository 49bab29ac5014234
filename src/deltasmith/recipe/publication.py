"""What goes beside the weights of a merge: side files, the model card, and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltasmith import __version__
from deltasmith.formats.card import CARD_NAME, Parent, licence_of, model_card
from deltasmith.formats.fp8 import Dequantised
from deltasmith.formats.layout import Layout
from deltasmith.formats.manifest import InputFile, InputRecord, Lineage, Manifest, TensorRecord
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.publish import side_files
from deltasmith.planning.plan import Plan
from deltasmith.recipe.build import Built
from deltasmith.recipe.catalogue import name_of
from deltasmith.recipe.model import to_mapping
from deltasmith.recipe.yaml_file import to_yaml

__all__ = ["FileHashes", "files_beside", "input_record", "manifest_of", "tensor_records"]

FileHashes = Mapping[str, Mapping[str, str]]
"""label → file name → sha256 of every input file."""


def files_beside(built: Built, name: str) -> tuple[Mapping[str, bytes | Path], tuple[str, ...]]:
    """Collect config, tokenizer, licences and card for an output called `name`; return them with warnings."""
    home, side = built.home.folder, built.side.folder
    opened = dict(built.opened())
    licences = {label: model.folder for label, model in opened.items() if model.folder is not None}
    dtype = None if built.recipe.dtype == "base" else built.recipe.dtype
    beside = side_files(
        home, side, dtype=dtype, dequantised=isinstance(built.home.checkpoint, Dequantised), licences=licences
    )
    parents = [_parent(label, model, built) for label, model in opened.items()]
    recipe = to_yaml(shareable(built))
    card, warnings = model_card(name, parents, recipe, merge=_merge_name(built), version=__version__)
    return {**beside.files, CARD_NAME: card}, (*beside.warnings, *warnings)


def _merge_name(built: Built) -> str:
    return name_of(built.recipe.merge)[0]


def _parent(label: str, model: OpenedModel, built: Built) -> Parent:
    weights = dict(zip(built.recipe.labels, (entry.weight for entry in built.recipe.models), strict=True))
    weight = weights.get(label, "")
    role = "base" if label == "base" else "model"
    licence = licence_of(model.folder) if model.folder is not None else None
    return Parent(label, model.name, role, "" if weight == "" else str(weight), licence)


def shareable(built: Built) -> dict[str, Any]:
    """Return the expanded recipe with every model under its public name: a hub id, or a folder's last name."""
    mapping = to_mapping(built.recipe)
    if built.base is not None:
        mapping["base"] = _named(built.base)
    for entry, model in zip(mapping["models"], built.models, strict=True):
        entry["model"] = _named(model)
        if "statistics" in entry:
            entry["statistics"] = Path(entry["statistics"]).name
    return mapping


def _named(model: OpenedModel | Built) -> str | dict[str, Any]:
    if isinstance(model, Built):
        return shareable(model)
    return f"{model.name}@{model.revision}" if model.revision else model.name


def input_record(label: str, name: str, model: OpenedModel, hashes: Mapping[str, str]) -> InputRecord:
    """Describe one input: its files, their sizes, and their sha256 by file name."""
    files = {s.name: InputFile(s.nbytes, hashes.get(s.name)) for s in model.files}
    return InputRecord(label, name, model.revision, files)


def tensor_records(plan: Plan, layout: Layout, hashes: Mapping[str, str]) -> dict[str, TensorRecord]:
    """Describe every tensor of the output: type, shape, shard, hash, and where it comes from."""
    return {
        row.name: TensorRecord(
            row.spec.dtype.name,
            row.spec.shape,
            layout.shards[layout.slots[row.name].shard].name,
            hashes[row.name],
            "merged" if row.action == "merge" else row.source,
        )
        for row in plan.rows
    }


def manifest_of(
    built: Built, layout: Layout, hashes: FileHashes, tensors: Mapping[str, str], warnings: tuple[str, ...]
) -> bytes:
    """Write down what was merged from what, and the hash of every tensor that came out."""
    inputs = [input_record(label, model.name, model, hashes[label]) for label, model in built.inputs()]
    records = tensor_records(built.plan, layout, tensors)
    lineage = Lineage("base" if built.base is not None else None, built.recipe.labels, _merge_name(built))
    recipe = shareable(built)
    return Manifest(__version__, recipe, built.recipe.seed, inputs, lineage, records, warnings).encode()
