"""Delta folders as RL trainers exchange them: per tensor the bytes that changed since the version before.

A folder is laid out like a sharded model. The `metadata` of its model.safetensors.index.json holds `version`,
`base_version`, `delta_encoding` (`xor` or `overwrite`), `compression_format` (`zstd`) and `checksum_format`;
its `weight_map` names the tensors that changed. A shard holds each of them as a uint8 array, one zstd frame, and in
its own metadata, under the tensor's name, the checksum of the new tensor's bytes. Decompressed:

- `xor`: the exclusive or of the new bytes with the old ones.
- `overwrite`: their number as uint32, their positions in the tensor's bytes as uint32, then the new bytes.

Names, shapes and element types are those of the base: the model of version `base_version`. Written by slime and
miles, and read by SGLang's `/pull_weights`; established from THUDM/slime pull requests 2089 and 2181,
radixark/miles pull request 1235, sgl-project/sglang pull request 30366, and what these merged in 2026. blake3,
the third checksum in use there, is not read here.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.hf_folder import INDEX, within
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.safetensors_reader import SafetensorsFile
from deltasmith.kernels.decode import decode
from deltasmith.table.checkpoint import Checkpoint, Floats, SourceFile, Spec

__all__ = ["CHECKSUMS", "Checksum", "TrainerDelta", "TrainerModel", "is_trainer_delta", "open_trainer_delta"]

Bytes = npt.NDArray[np.uint8]
Encoding = Literal["xor", "overwrite"]


class Checksum(Protocol):
    """A running checksum of a tensor's bytes."""

    def update(self, data: Any) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return the checksum as it is written down."""


class _Adler32:
    def __init__(self) -> None:
        self.value = 1

    def update(self, data: Any) -> None:
        self.value = zlib.adler32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


CHECKSUMS: Mapping[str, Callable[[], Checksum]] = {"adler32": _Adler32, "xxh3-128": xxhash.xxh3_128}
"""What the checksums in use are called, and what begins one."""
_PLAIN = re.compile(r"[^/\\:\x00]+\.safetensors")
_KEPT_BYTES = 64 << 20
_PIECE = 1 << 18
_FIX = "fetch the delta again, or give the model that it was made against"


@dataclass(frozen=True)
class TrainerDelta:
    """An opened delta folder: what its index says, and its shards by tensor name."""

    path: Path
    version: str
    base_version: str
    encoding: Encoding
    checksum: str
    shards: Mapping[str, SafetensorsFile]

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the shards."""
        return tuple({shard.path: shard.sources[0] for shard in self.shards.values()}.values())

    def check_unchanged(self) -> None:
        """Refuse if a shard is no longer the one that was opened."""
        for shard in {id(shard): shard for shard in self.shards.values()}.values():
            shard.check_unchanged()

    def bind(self, base: Checkpoint) -> TrainerModel:
        """Return the model of version `version` over the model of version `base_version`, without reading values.

        Raises:
            DamagedInputError: the base lacks a tensor that the delta changes.
        """
        lacking = sorted(set(self.shards) - set(base.specs))
        if lacking:
            raise DamagedInputError(
                f"{len(lacking)} of its tensors are not in the base, {printable(lacking[0], 120)} among them",
                where=str(self.path),
                fix=_FIX,
            )
        return TrainerModel(self, base)


def is_trainer_delta(path: Path) -> bool:
    """Tell whether a folder's index says that it is such a delta."""
    index = path / INDEX
    if not index.is_file():
        return False
    metadata = read_json_object(index, 64 << 20).get("metadata")
    return isinstance(metadata, dict) and "delta_encoding" in metadata


def open_trainer_delta(path: Path) -> TrainerDelta:
    """Open a delta folder and check what its index and the shards' headers say, without reading values.

    Raises:
        DamagedInputError: missing or contradictory files, an encoding, compression or checksum that is not known.
    """
    document = read_json_object(path / INDEX, 64 << 20)
    metadata, weight_map = document.get("metadata"), document.get("weight_map")
    if not isinstance(metadata, dict) or not isinstance(weight_map, dict):
        raise DamagedInputError(
            "the index has no metadata or no weight_map", where=str(path / INDEX), fix=_FIX
        )
    found = {key: str(metadata.get(key, "")) for key in ("version", "base_version")}
    for key, known in (
        ("delta_encoding", ("xor", "overwrite")),
        ("compression_format", ("zstd",)),
        ("checksum_format", tuple(CHECKSUMS)),
    ):
        found[key] = str(metadata.get(key, ""))
        if found[key] not in known:
            raise DamagedInputError(
                f"{key} is {printable(repr(found[key]), 60)}; known are {', '.join(known)}",
                where=str(path / INDEX),
                fix="write the delta with one of these",
            )
    encoding: Encoding = "xor" if found["delta_encoding"] == "xor" else "overwrite"
    shards = _shards(path, weight_map)
    return TrainerDelta(
        path, found["version"], found["base_version"], encoding, found["checksum_format"], shards
    )


def _shards(path: Path, weight_map: Mapping[str, Any]) -> dict[str, SafetensorsFile]:
    """Open every shard once; refuse tensors that are not where the index says, or no bytes."""
    opened: dict[str, SafetensorsFile] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _PLAIN.fullmatch(file):
            raise DamagedInputError(
                f"the index places {printable(name, 120)} in {printable(str(file), 120)}, no file of the folder",
                where=str(path / INDEX),
                fix=_FIX,
            )
        if file not in opened:
            opened[file] = SafetensorsFile(within(path, file), name=file)
        spec = opened[file].specs.get(name)
        if spec is None or spec.dtype.name != "uint8" or len(spec.shape) != 1:
            raise DamagedInputError(
                f"{printable(name, 120)} is not there as an array of bytes", where=str(path / file), fix=_FIX
            )
        if name not in opened[file].metadata:
            raise DamagedInputError(
                f"{printable(name, 120)} has no checksum", where=str(path / file), fix=_FIX
            )
    return {name: opened[file] for name, file in weight_map.items()}


class TrainerModel:
    """The model that a delta folder makes of its base, as a checkpoint.

    A tensor that changed is put together as a whole when it is first read, checked against its checksum, and kept
    for a while: up to 64 MiB of such tensors, or one. All others are the base's. May be read from several threads.
    """

    def __init__(self, delta: TrainerDelta, base: Checkpoint) -> None:
        """Take the delta and the model it was made against."""
        self.delta, self.base = delta, base
        self.specs: Mapping[str, Spec] = base.specs
        self._kept: OrderedDict[str, Bytes] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the delta's files and the base's."""
        return self.delta.sources + self.base.sources

    def read(self, name: str, start: int, out: Floats) -> None:
        """Write elements [start, start + out.size) of a floating tensor as float32 into `out`."""
        if name not in self.delta.shards:
            self.base.read(name, start, out)
            return
        raw = np.frombuffer(self.raw(name, start, start + out.size), np.uint8)
        decode(self.specs[name].dtype.name, raw, out)

    def raw(self, name: str, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Return the stored bytes of elements [start, stop).

        Raises:
            DamagedInputError: the frame is damaged or too long, or the result has another checksum.
        """
        if name not in self.delta.shards:
            return self.base.raw(name, start, stop)
        width = self.specs[name].dtype.itemsize
        return self._whole(name)[start * width : stop * width].data

    def _whole(self, name: str) -> Bytes:
        with self._lock:  # held while a tensor is made, so that no two threads make the same one
            if name not in self._kept:
                self._make_room(self.specs[name].nbytes)
                self._kept[name] = self._made(name)
            self._kept.move_to_end(name)
            return self._kept[name]

    def _make_room(self, nbytes: int) -> None:
        while self._kept and nbytes + sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)

    def _made(self, name: str) -> Bytes:
        """Put a changed tensor together and check it."""
        spec, shard = self.specs[name], self.delta.shards[name]
        words = np.empty(spec.nbytes, np.uint8)
        step = max(1, _PIECE // spec.dtype.itemsize)
        for start in range(0, spec.size, step):
            stop, width = min(spec.size, start + step), spec.dtype.itemsize
            words[start * width : stop * width] = np.frombuffer(self.base.raw(name, start, stop), np.uint8)
        frame = shard.raw(name, 0, shard.specs[name].size)
        try:
            _APPLY[self.delta.encoding](words, frame)
        except (ValueError, zstandard.ZstdError) as cause:
            raise self._damaged(name, str(cause)) from cause
        checksum = CHECKSUMS[self.delta.checksum]()
        checksum.update(words.data)
        if checksum.hexdigest() != shard.metadata[name]:
            raise self._damaged(name, "its checksum differs")
        return words

    def _damaged(self, name: str, reason: str) -> DamagedInputError:
        return DamagedInputError(
            f"{printable(name, 120)} cannot be made of base and delta ({printable(reason, 200)})",
            where=self.delta.shards[name].path,
            fix=_FIX,
        )


def _xor(words: Bytes, frame: bytes) -> None:
    at = 0
    for piece in _pieces(frame, words.size):
        words[at : at + piece.size] ^= piece
        at += piece.size
    if at != words.size:
        raise ValueError(f"it holds {at} bytes instead of {words.size}")


def _overwrite(words: Bytes, frame: bytes) -> None:
    body = np.frombuffer(b"".join(p.tobytes() for p in _pieces(frame, 4 + 5 * words.size)), np.uint8)
    count = int.from_bytes(body[:4].tobytes(), "little")
    if body.size < 4 or body.size != 4 + 5 * count:
        raise ValueError(f"{body.size} bytes are not {count} positions and values")
    places = np.frombuffer(body[4 : 4 + 4 * count].data, "<u4")
    if count and (int(places[-1]) >= words.size or np.any(places[1:] <= places[:-1])):
        raise ValueError("its positions do not ascend within the tensor")
    words[places] = body[4 + 4 * count :]


_APPLY: Mapping[str, Callable[[Bytes, bytes], None]] = {"xor": _xor, "overwrite": _overwrite}


def _pieces(frame: bytes, limit: int) -> Iterator[Bytes]:
    """Decompress piece by piece, never beyond `limit` bytes: a trainer's frame need not declare a size.

    A piece is overwritten by the next.
    """
    room, total = np.empty(_PIECE, np.uint8), 0
    with zstandard.ZstdDecompressor().stream_reader(frame, read_across_frames=True) as reader:
        while count := reader.readinto(room.data):
            total += count
            if total > limit:
                raise ValueError(f"it decompresses to more than {limit} bytes")
            yield room[:count]
