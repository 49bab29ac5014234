"""Writes the delta folders that RL trainers exchange (`trainer_delta.py` reads them and says how they are laid out)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from deltasmith.errors import RefusedError, printable
from deltasmith.formats.array_file import ArrayFile, room_for
from deltasmith.formats.hf_folder import INDEX
from deltasmith.formats.staging import Staging
from deltasmith.formats.trainer_delta import CHECKSUMS, Encoding
from deltasmith.table.checkpoint import Checkpoint

__all__ = ["write_trainer_delta"]

Bytes = npt.NDArray[np.uint8]

_SHARD = "model-00000-of-00001.safetensors"
_LEVEL = 1  # what the trainers use: such deltas are mostly zeros
_JOURNAL = "journal"
_LONGEST = 1 << 32  # positions are uint32


def write_trainer_delta(
    base: Checkpoint,
    model: Checkpoint,
    out: Path,
    *,
    encoding: Encoding = "xor",
    version: int = 1,
    base_version: int = 0,
    checksum: str = "xxh3-128",
    inputs: Sequence[Path] = (),
) -> int:
    """Write the bytes in which `model` differs from `base` into the new folder `out`; return how many differ.

    Tensors without a difference are left out. Memory: a few times the largest tensor. The folder appears whole
    or not at all; receivers expect it to be called weight_v000001 for version 1.

    Raises:
        RefusedError: the models differ in names, shapes or element types; a tensor of 4 GiB for `overwrite`; an
            unknown encoding or checksum; `out` exists.
        ResourceError: the disk is full, or there is no permission.

    >>> import tempfile
    >>> from deltasmith.formats.trainer_delta import open_trainer_delta
    >>> from deltasmith.table.checkpoint import DictCheckpoint
    >>> base = DictCheckpoint({"w": np.zeros(4, np.float32)})
    >>> tuned = DictCheckpoint({"w": np.array([0, 0.5, 0, 0], np.float32)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder) / "weight_v000001"
    ...     changed = write_trainer_delta(base, tuned, out)
    ...     again = np.frombuffer(open_trainer_delta(out).bind(base).raw("w", 0, 4), np.float32).tolist()
    >>> changed, again
    (1, [0.0, 0.5, 0.0, 0.0])
    """
    _refuse(base, model, encoding, checksum)
    staging = Staging.claim(out, f"{version:08x}", inputs)
    try:
        staging.partial.mkdir(exist_ok=True)
        changed, sums = _write_shard(base, model, staging.partial / _SHARD, encoding, checksum)
        metadata = {
            "version": f"{version:06d}",
            "base_version": f"{base_version:06d}",
            "delta_encoding": encoding,
            "compression_format": "zstd",
            "checksum_format": checksum,
        }
        index = {"metadata": metadata, "weight_map": dict.fromkeys(sums, _SHARD)}
        staging.place(INDEX, json.dumps(index).encode())
        staging.publish(_JOURNAL)
        staging.tidy()
    finally:
        staging.discard()
    return changed


def _refuse(base: Checkpoint, model: Checkpoint, encoding: str, checksum: str) -> None:
    if encoding not in ("xor", "overwrite") or checksum not in CHECKSUMS:
        raise RefusedError(
            f"a trainer delta in {printable(encoding, 40)} with {printable(checksum, 40)} cannot be written",
            fix=f"encodings are xor, overwrite; checksums are {', '.join(CHECKSUMS)}",
        )
    for name in sorted({*base.specs, *model.specs}):
        mine, theirs = model.specs.get(name), base.specs.get(name)
        if mine is None or theirs is None or (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            raise RefusedError(
                f"{printable(name, 120)} is not the same kind of tensor in base and model",
                fix="a trainer delta holds changed values only; pack the model instead",
            )
        if encoding == "overwrite" and mine.nbytes >= _LONGEST:
            raise RefusedError(f"{printable(name, 120)} is too long for overwrite", fix="write xor")


def _write_shard(
    base: Checkpoint, model: Checkpoint, path: Path, encoding: Encoding, checksum: str
) -> tuple[int, dict[str, str]]:
    """Write the changed tensors into one file; return the number of changed bytes, and the checksums."""
    file = ArrayFile(path, room_for([*model.specs, *model.specs]))
    total, sums = 0, {}
    try:
        for name, spec in model.specs.items():
            new = np.frombuffer(model.raw(name, 0, spec.size), np.uint8)
            old = np.frombuffer(base.raw(name, 0, spec.size), np.uint8)
            mask = new != old
            changed = int(np.count_nonzero(mask))
            if not changed:
                continue
            body = new ^ old if encoding == "xor" else _overwritten(new, mask, changed)
            frame = zstandard.ZstdCompressor(level=_LEVEL).compress(body.data)
            file.end({name: np.frombuffer(frame, np.uint8)})
            sums[name] = CHECKSUMS[checksum](new.data)
            total += changed
        file.seal(sums)
    finally:
        file.close()
    return total, sums


def _overwritten(new: Bytes, mask: npt.NDArray[np.bool_], changed: int) -> Bytes:
    places = np.flatnonzero(mask).astype("<u4")
    head = np.array([changed], "<u4")
    return np.concatenate([head.view(np.uint8), places.view(np.uint8), new[mask]])
