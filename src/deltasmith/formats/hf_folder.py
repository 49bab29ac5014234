"""Hugging Face model folders: one checkpoint over all shards, the configuration, and what else lies there.

Nothing in the folder is trusted: not the names in the index, not the links, not the configuration. No code of
the folder is ever run. Packed quantised weights are refused by name; fp8 weights with scales are multiplied
out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.fp8 import refuse_packed_config, refuse_packed_tensors, without_fp8
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.npz import NpzFile
from deltasmith.formats.safetensors_reader import Files, SafetensorsFile
from deltasmith.formats.sniff import read_head, what_it_is
from deltasmith.table.checkpoint import Checkpoint, Floats, SourceFile, Spec

__all__ = [
    "INDEX",
    "WEIGHTS",
    "Folder",
    "ShardedCheckpoint",
    "SingleFile",
    "open_folder",
    "open_single",
    "within",
]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_INDEX = 64 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PLAIN = re.compile(r"[^/\\:\x00]+\.safetensors")


@dataclass(frozen=True, slots=True)
class _Index:
    """What an index file says: its own name, which shard holds each tensor, and the total of bytes."""

    name: str
    weight_map: Mapping[str, str]
    total: Any


@dataclass(frozen=True)
class Folder:
    """A model folder: its checkpoint, its configuration, and the names of all other files.

    `others` are the regular files beside the weights and the index, sorted: tokenizer, templates, licences,
    code.
    """

    path: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any] | None
    others: tuple[str, ...]
    warnings: tuple[str, ...]
    shards: tuple[SafetensorsFile, ...] = ()

    def check_unchanged(self) -> None:
        """Refuse if any weight file is no longer the one that was opened.

        Raises:
            DamagedInputError: naming the file and what is different.
        """
        for shard in self.shards:
            shard.check_unchanged()


@dataclass(frozen=True)
class SingleFile:
    """A model in one file, without a configuration."""

    checkpoint: Checkpoint
    file: SafetensorsFile | NpzFile
    warnings: tuple[str, ...] = ()

    def check_unchanged(self) -> None:
        """Refuse if the file is no longer the one that was opened.

        Raises:
            DamagedInputError: naming the file and what is different.
        """
        self.file.check_unchanged()


class ShardedCheckpoint:
    """Several safetensors files as one checkpoint; each tensor lies in exactly one of them."""

    def __init__(self, shards: tuple[SafetensorsFile, ...], where: str) -> None:
        """Join the shards.

        Raises:
            DamagedInputError: a tensor lies in two shards.
        """
        self.shards = shards
        self._shard_of: dict[str, SafetensorsFile] = {}
        specs: dict[str, Spec] = {}
        for shard in shards:
            for name, spec in shard.specs.items():
                if name in specs:
                    raise DamagedInputError(
                        f'tensor "{printable(name)}" lies in {self._shard_of[name].name} and in {shard.name}',
                        where=where,
                        fix="remove the stale shard or fetch the model again",
                    )
                specs[name] = spec
                self._shard_of[name] = shard
        self.specs: Mapping[str, Spec] = specs

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the shards."""
        return tuple(source for shard in self.shards for source in shard.sources)

    def read(self, name: str, start: int, out: Floats) -> None:
        """Decode elements [start, start + out.size) of a floating tensor into float32 `out`."""
        self._shard_of[name].read(name, start, out)

    def read_difference(self, name: str, start: int, base: Floats, out: Floats) -> None:
        """Decode elements [start, start + out.size) less `base` into float32 `out`."""
        self._shard_of[name].read_difference(name, start, base, out)

    def raw(self, name: str, start: int, stop: int) -> bytes:
        """Return the stored bytes of elements [start, stop)."""
        return self._shard_of[name].raw(name, start, stop)

    def raw_into(self, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
        """Write the stored bytes from element `start` on into `out`."""
        self._shard_of[name].raw_into(name, start, out)


def open_folder(path: str | Path) -> Folder:
    """Open a model folder: check its index, every shard's header, and its configuration; read no values.

    The index is followed where there is one; `config` is None (and a warning given) without a config.json.

    Raises:
        DamagedInputError: no folder, no weights, shards missing (all are listed) or damaged, an index that
        names
            files outside the folder or disagrees with the shards, a configuration that is not JSON.
        RefusedError: packed quantised weights, or fp8 weights without scales.
    """
    root = Path(path)
    names = _list_files(root)
    config = read_json_object(within(root, "config.json")) if "config.json" in names else None
    refuse_packed_config(config, str(root))
    warnings = _code_warnings(config, names)
    weights, index = _find_weights(root, names, warnings)
    shards = _open_shards(root, weights)
    checkpoint: Checkpoint = shards[0] if index is None else ShardedCheckpoint(shards, str(root))
    if index is not None:
        _check_index(root, index, shards, warnings)
    refuse_packed_tensors(checkpoint.specs, str(root))
    checkpoint, notes = without_fp8(checkpoint, str(root), config)
    warnings += notes
    others = _safe_others(root, names, warnings)
    return Folder(root, checkpoint, config, others, tuple(warnings), shards)


def open_single(path: str | Path) -> SingleFile:
    """Open one .safetensors or .npz file as a checkpoint.

    Raises:
        DamagedInputError: another kind of file (pickles are told how to convert them), or a damaged one.
        RefusedError: packed quantised weights, or fp8 weights without scales.
    """
    where = str(path)
    if Path(path).suffix.lower() in _PICKLES:
        raise DamagedInputError(
            "pickled checkpoints are not read, because they can run code",
            where=where,
            fix=f"run deltasmith convert {Path(path).name} first",
        )
    if Path(path).suffix.lower() == ".npz":
        archive = NpzFile(path)
        return SingleFile(archive, archive)
    if Path(path).suffix.lower() != ".safetensors":
        kind = what_it_is(read_head(path))
        raise DamagedInputError(
            f"this is {kind[0]}" if kind else "this kind of file is not read as a model",
            where=where,
            fix=kind[1] if kind else "name a model folder, a .safetensors or an .npz file",
        )
    file = SafetensorsFile(path)
    refuse_packed_tensors(file.specs, where)
    checkpoint, warnings = without_fp8(file, where, None)
    return SingleFile(checkpoint, file, warnings)


def _list_files(root: Path) -> list[str]:
    """List the names of everything in the folder, sorted; of subfolders only those that pose as weights."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.name.endswith(".safetensors") or not e.is_dir())
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise DamagedInputError(
            f"the model folder cannot be read ({reason})", where=str(root), fix="check the path and its mode"
        ) from cause


def _find_weights(root: Path, names: list[str], warnings: list[str]) -> tuple[list[str], _Index | None]:
    """Return the weight files to read, and the index if there is one."""
    # Adapters lie beside models now and then; they are no part of the model's weights.
    found = [n for n in names if n.endswith(".safetensors") and n != "adapter_model.safetensors"]
    indices = [n for n in names if n.endswith(".safetensors.index.json")]
    if INDEX in indices or len(indices) == 1:
        index = _read_index(root, INDEX if INDEX in indices else indices[0])
        weights = sorted(set(index.weight_map.values()))
        _require_shards(root, index.name, weights)
        if extra := sorted(set(found) - set(weights)):
            warnings.append(
                printable(f"{index.name} does not mention {', '.join(extra[:10])}: not read", 600)
            )
        return weights, index
    if len(found) == 1:
        return found, None
    if not found:
        raise DamagedInputError(_nothing_found(names), where=str(root), fix=_no_weights_fix(names))
    raise DamagedInputError(
        f"{len(found)} weight files without an index ({', '.join(found[:10])})",
        where=str(root),
        fix=f"fetch {INDEX}, or name the one file to read",
    )


def _read_index(root: Path, name: str) -> _Index:
    """Read an index and check every file name in it."""
    path = root / name
    content = read_json_object(within(root, name), _MAX_INDEX)
    weight_map, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise DamagedInputError(
            "weight_map is not a map from tensor names to file names",
            where=str(path),
            fix="fetch the index again",
        )
    if not weight_map:
        raise DamagedInputError("weight_map is empty", where=str(path), fix="fetch the index again")
    for shard in sorted(set(weight_map.values())):
        if not _PLAIN.fullmatch(shard) or not shard.isprintable() or shard.startswith(("~", ".")):
            raise DamagedInputError(
                f'the index names the file "{printable(shard)}", which is not a plain name in the folder',
                where=str(path),
                fix="do not use this model; its index points elsewhere",
            )
    return _Index(name, weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None)


def _require_shards(root: Path, index: str, weights: list[str]) -> None:
    """Refuse with the list of all shards that are not there."""
    missing = [name for name in weights if not os.path.lexists(root / name)]
    if missing:
        shown = ", ".join(missing[:20]) + (", …" if len(missing) > 20 else "")
        raise DamagedInputError(
            f"{len(missing)} of {len(weights)} shards named by {index} are missing ({shown})",
            where=str(root),
            fix="fetch them",
        )


def _open_shards(root: Path, weights: list[str]) -> tuple[SafetensorsFile, ...]:
    """Open every weight file, each by the path its links lead to."""
    files = Files()
    return tuple(SafetensorsFile(within(root, name), name=name, files=files) for name in weights)


def within(root: Path, name: str) -> str:
    """Return the real path of a folder's file; a link may lead only within the folder or its own cache.

    Raises:
        DamagedInputError: the link leads elsewhere.
    """
    real = os.path.realpath(root / name)
    if not _allowed(os.path.realpath(root), real):
        raise DamagedInputError(
            f'"{printable(name)}" is a link to {printable(real)}, outside the folder',
            where=str(root),
            fix="put the file itself into the folder",
        )
    return real


def _allowed(root: str, real: str) -> bool:
    """Tell whether a real path lies in the folder, in its cached repository's blobs, or in shared blobs.

    A cached repository is CACHE/models--OWNER--NAME with snapshots/REVISION beside blobs; newer caches keep
    blobs that repositories share in CACHE/blobs/XX/HASH.
    """
    if os.path.commonpath([root, real]) == root:
        return True
    repository = Path(root).parent.parent
    if Path(root).parent.name != "snapshots" or not repository.name.startswith("models--"):
        return False
    blob = Path(real)
    shared = repository.parent / "blobs"
    is_shared = blob.parent.parent == shared and re.fullmatch("[0-9a-f]{64}", blob.name) is not None
    return blob.parent == repository / "blobs" or (is_shared and blob.parent.name == blob.name[:2])


def _check_index(root: Path, index: _Index, shards: tuple[SafetensorsFile, ...], warnings: list[str]) -> None:
    """Refuse unless index and shards name the same tensors in the same places."""
    specs = {shard.name: shard.specs for shard in shards}
    wrong = [
        f"{shard} lacks {printable(tensor)}"
        for tensor, shard in index.weight_map.items()
        if tensor not in specs[shard]
    ]
    wrong += [
        f"{shard.name} holds {printable(tensor)}, which the index does not place there"
        for shard in shards
        for tensor in shard.specs
        if index.weight_map.get(tensor) != shard.name
    ]
    if wrong:
        raise DamagedInputError(
            f"index and shards disagree on {len(wrong)} tensors: {'; '.join(wrong[:5])}",
            where=str(root / index.name),
            fix="fetch the model again",
        )
    total = sum(spec.nbytes for shard in shards for spec in shard.specs.values())
    if index.total is not None and index.total != total:
        told = printable(str(index.total), 40)
        warnings.append(f"{index.name} tells total_size {told}, the shards hold {total} bytes")


def _nothing_found(names: list[str]) -> str:
    """Say that there are no weights, and what there is instead."""
    shown = ", ".join(printable(n, 60) for n in names[:12]) or "nothing"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"no .safetensors file among {shown}{more}"


def _no_weights_fix(names: list[str]) -> str:
    """Tell how to come by weights, given what is there."""
    if pickles := [n for n in names if n.endswith(_PICKLES)]:
        return f"run deltasmith convert on {printable(pickles[0], 60)}"
    if any(n.endswith(".gguf") for n in names):
        return "use the original safetensors model, GGUF is not read"
    return "fetch the weights"


def _code_warnings(config: Mapping[str, Any] | None, names: list[str]) -> list[str]:
    """Say what there is that would be run by others, and what is not there."""
    warnings = [] if config is not None else ["there is no config.json"]
    if config is not None and "auto_map" in config:
        warnings.append("config.json has auto_map, which names code of the model; it is never run here")
    if code := [n for n in names if n.endswith(".py")]:
        warnings.append(f"the folder holds code that is never run here: {', '.join(code[:10])}")
    return [printable(warning, 600) for warning in warnings]


def _safe_others(root: Path, names: list[str], warnings: list[str]) -> tuple[str, ...]:
    """List the regular files beside the weights, leaving out links that lead outside."""
    real = os.path.realpath(root)
    others = []
    for name in names:
        if name.endswith((".safetensors", ".safetensors.index.json")):
            continue
        target = os.path.realpath(root / name)
        if not Path(target).is_file() or not _allowed(real, target):
            warnings.append(printable(f"{name} is no file of this folder: left out", 300))
        else:
            others.append(name)
    return tuple(others)
