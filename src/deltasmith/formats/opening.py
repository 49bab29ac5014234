"""What a recipe calls a model, opened: a folder, an adapter, some kind of delta, a single file, here or on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.formats.adapter import CONFIG, Adapter, open_adapter, refuse_foreign_lora
from deltasmith.formats.adapter import WEIGHTS as ADAPTER_WEIGHTS
from deltasmith.formats.hf_folder import INDEX, WEIGHTS, Folder, SingleFile, open_folder, open_single
from deltasmith.formats.hub import Resolved, resolve
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.packed import PACKED_NAME, Packed, PackedDelta, is_packed, open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.formats.trainer_delta import TrainerDelta, is_trainer_delta, open_trainer_delta
from deltasmith.table.checkpoint import Checkpoint, SourceFile

__all__ = ["BaseNotFoundError", "OpenedModel", "find_base", "find_base_model", "open_model", "split_label"]


@dataclass(frozen=True)
class OpenedModel:
    """A model as the rest of the program sees it: a checkpoint, or an adapter or trainer's delta that needs a base.

    A packed delta is both: `packed` is the delta, `checkpoint` the model over a base that is looked for when its
    values are first read.

    `source` is what the recipe says; `name` is the hub's id or the folder's name, never an absolute path;
    `folder` is None for single files; `others` are the files beside the weights.
    """

    source: str
    name: str
    revision: str | None
    folder: Path | None
    checkpoint: Checkpoint | None
    adapter: Adapter | None
    config: Mapping[str, Any] | None
    others: tuple[str, ...]
    warnings: tuple[str, ...]
    opened: Folder | SingleFile | Adapter | Packed | TrainerDelta
    packed: PackedDelta | None = None
    trainer: TrainerDelta | None = None

    @property
    def kind(self) -> str:
        """Say in a few words what it is, with its article."""
        if self.packed is not None:
            return "a packed delta"
        if self.trainer is not None:
            return "a trainer's delta"
        return "a model" if self.adapter is None else "an adapter"

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """List the files whose bytes the result depends on."""
        if self.adapter is not None:
            return self.adapter.sources
        if self.trainer is not None:
            return self.trainer.sources
        return self.checkpoint.sources if self.checkpoint is not None else ()

    def check_unchanged(self) -> None:
        """Refuse if a weight file is no longer the one that was opened.

        Raises:
            DamagedInputError: naming the file and what is different.
        """
        self.opened.check_unchanged()
        if isinstance(self.checkpoint, PackedModel):
            self.checkpoint.check_unchanged()


class BaseNotFoundError(RefusedError):
    """The base of a packed delta is in none of the places where it is looked for."""


def open_model(source: str, relative_to: Path | None = None, *, offline: bool = False) -> OpenedModel:
    """Open whatever `source` names, without reading a value.

    A model folder, a folder with a PEFT adapter, a packed delta (`PATH#LABEL` where it holds several) or a trainer's
    delta, a .safetensors or .npz file, or owner/name[@revision] on the hub. Relative paths start at `relative_to`
    (default: the working directory); a local path wins over the hub.

    Raises:
        DamagedInputError: nothing is there, or it is damaged, unsafe or of an unsupported kind.
        RefusedError: packed quantised weights, adapters other than plain LoRA, a model and an adapter in one
        folder.
    """
    place, label = split_label(source, relative_to)
    found = resolve(place, relative_to, offline=offline)
    if is_packed(found.path):
        return _from_packed(source, found, label)
    if label is not None:
        raise RefusedError(
            f"#{label} chooses a packed delta, and this is none",
            where=str(found.path),
            fix=f"leave out #{label}",
        )
    if not found.path.is_dir():
        single = open_single(found.path)
        refuse_foreign_lora(single.checkpoint.specs, str(found.path))
        return OpenedModel(
            source, found.name, None, None, single.checkpoint, None, None, (), single.warnings, single
        )
    if _is_adapter(found.path):
        return _from_adapter(source, found)
    if is_trainer_delta(found.path):
        return _from_trainer(source, found)
    folder = open_folder(found.path)
    if (
        folder.config is None
    ):  # some models have LoRA factors among their own tensors, and say so by a config.json
        refuse_foreign_lora(folder.checkpoint.specs, str(found.path))
    return OpenedModel(
        source,
        found.name,
        found.revision,
        folder.path,
        folder.checkpoint,
        None,
        folder.config,
        folder.others,
        folder.warnings,
        folder,
    )


def _is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter; refuse if it holds a model too."""
    try:
        here = {entry.name for entry in folder.iterdir()}
    except OSError as cause:
        raise DamagedInputError(
            f"the folder cannot be read ({cause.strerror})", where=str(folder), fix="check its permissions"
        ) from cause
    is_adapter = bool(here & {CONFIG, ADAPTER_WEIGHTS})
    if is_adapter and here & {WEIGHTS, INDEX}:
        raise RefusedError(
            "the folder holds a model and an adapter", where=str(folder), fix="put them into two folders"
        )
    return is_adapter


def _from_adapter(source: str, found: Resolved) -> OpenedModel:
    """Open an adapter folder."""
    adapter = open_adapter(found.path)
    others = tuple(
        sorted(
            p.name for p in found.path.iterdir() if p.is_file() and p.name not in (CONFIG, ADAPTER_WEIGHTS)
        )
    )
    return OpenedModel(
        source, found.name, found.revision, found.path, None, adapter, None, others, (), adapter
    )


def _from_trainer(source: str, found: Resolved) -> OpenedModel:
    """Open a trainer's delta: it names no base that could be looked for."""
    trainer = open_trainer_delta(found.path)
    return OpenedModel(
        source, found.name, found.revision, found.path, None, None, None, (), (), trainer, trainer=trainer
    )


def split_label(source: str, relative_to: Path | None = None) -> tuple[str, str | None]:
    """Split PATH#LABEL, unless a file of the whole name exists."""
    path, sign, label = source.rpartition("#")
    if not sign or os.path.lexists((relative_to or Path()) / source):
        return source, None
    return path, label


def _from_packed(source: str, found: Resolved, label: str | None) -> OpenedModel:
    """Open a packed delta; its base is looked for when values are read."""
    packed = open_packed(found.path)
    delta = packed.delta(label)
    folder = packed.folder
    others = () if folder is None else tuple(sorted(p.name for p in folder.iterdir() if p.is_file()))
    if {WEIGHTS, INDEX} & set(others):
        raise RefusedError(
            "the folder holds a model and a packed delta", where=str(folder), fix="put them into two folders"
        )
    config = (
        read_json_object(folder / "config.json") if folder is not None and "config.json" in others else None
    )
    return OpenedModel(
        source,
        found.name if label is None else f"{found.name}#{label}",
        found.revision,
        folder,
        PackedModel(delta, lambda: find_base(delta)),
        None,
        config,
        tuple(name for name in others if name != PACKED_NAME),
        (),
        packed,
        delta,
    )


def find_base(delta: PackedDelta) -> Checkpoint:
    """Look for the base of a packed delta, as `find_base_model` does, and return its checkpoint."""
    found = find_base_model(delta).checkpoint
    assert found is not None
    return found


def find_base_model(delta: PackedDelta) -> OpenedModel:
    """Look for the base of a packed delta, and check it: a folder of its name beside the delta or here, or the hub.

    Raises:
        BaseNotFoundError: it is in none of these places.
        DamagedInputError: what is there is another model.
    """
    base = delta.packed.base
    beside = Path(delta.packed.file.path).resolve().parent.parent
    for home in (beside, beside.parent, Path()):
        if os.path.lexists(home / base.name):
            return _checked(delta, str(home / base.name))
    if base.name.count("/") == 1:
        return _checked(delta, f"{base.name}@{base.revision}" if base.revision else base.name)
    raise BaseNotFoundError(
        f"a packed delta needs its base {printable(base.name, 80)!r}, which is not beside it",
        where=delta.where,
        fix="put the base beside it, or name base and delta in a recipe",
    )


def _checked(delta: PackedDelta, source: str) -> OpenedModel:
    opened = open_model(source)
    if opened.checkpoint is None:
        raise RefusedError(
            f"{opened.kind} cannot be the base of a packed delta",
            where=source,
            fix="put the model there that was packed against",
        )
    delta.check_base(opened.checkpoint)
    return opened
