"""Writes the delta folders that RL trainers exchange (`trainer_delta.py` reads them and says how they are laid out)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from deltasmith.errors import RefusedError, printable
from deltasmith.formats.array_file import ArrayFile, room_for
from deltasmith.formats.hf_folder import INDEX
from deltasmith.formats.staging import Staging, refuse_link
from deltasmith.formats.trainer_delta import CHECKSUMS, Checksum, Encoding
from deltasmith.table.checkpoint import Checkpoint, Spec

__all__ = ["write_trainer_delta"]

Bytes = npt.NDArray[np.uint8]

_SHARD = "model-00000-of-00001.safetensors"
_LEVEL = 1  # what the trainers use: such deltas are mostly zeros
_JOURNAL = "journal"
_LONGEST = 1 << 32  # positions are uint32
_PIECE = 1 << 18


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
    overwrite: bool = False,
    done: Callable[[int], None] = lambda nbytes: None,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Write the bytes in which `model` differs from `base` into the new folder `out`; return how many differ.

    Tensors without a difference are left out. Memory: the frame of one tensor, and a few bytes for each of its
    bytes that changed with `overwrite`. The folder appears whole or not at all; receivers expect it to be called
    weight_v000001 for version 1. `done` hears the bytes of every tensor that has been looked at, `check` is called
    before the folder appears; both may raise to end the work.

    Raises:
        RefusedError: the models differ in names, shapes or element types; a tensor of 4 GiB for `overwrite`; an
            unknown encoding or checksum; `out` exists and is not to be overwritten.
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
    staging = Staging.claim(out, f"{version:08x}", inputs, overwrite=overwrite)
    try:
        refuse_link(staging.partial)
        staging.partial.mkdir(exist_ok=True)
        changed, sums = _write_shard(base, model, staging.partial / _SHARD, encoding, checksum, done)
        metadata = {
            "version": f"{version:06d}",
            "base_version": f"{base_version:06d}",
            "delta_encoding": encoding,
            "compression_format": "zstd",
            "checksum_format": checksum,
        }
        index = {"metadata": metadata, "weight_map": dict.fromkeys(sums, _SHARD)}
        staging.place(INDEX, json.dumps(index).encode())
        check()
        staging.refuse_newcomers()
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
    base: Checkpoint,
    model: Checkpoint,
    path: Path,
    encoding: Encoding,
    checksum: str,
    done: Callable[[int], None],
) -> tuple[int, dict[str, str]]:
    """Write the changed tensors into one file; return the number of changed bytes, and the checksums."""
    file = ArrayFile(path, room_for([*model.specs, *model.specs]))
    total, sums = 0, {}
    try:
        for name, spec in model.specs.items():
            running = CHECKSUMS[checksum]()
            changed, frame = _FRAMES[encoding](spec.nbytes, _pieces(base, model, spec, running))
            if changed:
                file.end({name: np.frombuffer(frame, np.uint8)})
                sums[name] = running.hexdigest()
            total += changed
            done(spec.nbytes)
        file.seal(sums)
    finally:
        file.close()
    return total, sums


def _pieces(
    base: Checkpoint, model: Checkpoint, spec: Spec, running: Checksum
) -> Iterator[tuple[int, Bytes, Bytes]]:
    """Yield a tensor's bytes from front to back: where a piece begins, the old bytes, the new ones."""
    width = spec.dtype.itemsize
    for start in range(0, spec.size, _PIECE):
        stop = min(spec.size, start + _PIECE)
        old, new = (np.frombuffer(c.raw(spec.name, start, stop), np.uint8) for c in (base, model))
        running.update(new.data)
        yield start * width, old, new


def _xor(nbytes: int, pieces: Iterable[tuple[int, Bytes, Bytes]]) -> tuple[int, bytes]:
    """Return how many bytes changed, and the frame of the exclusive or."""
    coder, changed, out = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=nbytes), 0, []
    for _, old, new in pieces:
        both = old ^ new
        changed += int(np.count_nonzero(both))
        out.append(coder.compress(both.data))
    return changed, b"".join([*out, coder.flush()])


def _overwrite(nbytes: int, pieces: Iterable[tuple[int, Bytes, Bytes]]) -> tuple[int, bytes]:
    """Return how many bytes changed, and the frame of their number, places and values."""
    places, values = [], []
    for begin, old, new in pieces:
        here = np.flatnonzero(old != new)
        places.append((here + begin).astype("<u4"))
        values.append(new[here])
    changed = sum(part.size for part in places)
    body = b"".join(part.tobytes() for part in (np.array([changed], "<u4"), *places, *values))
    return changed, zstandard.ZstdCompressor(level=_LEVEL).compress(body)


_FRAMES = {"xor": _xor, "overwrite": _overwrite}
