"""Packed deltas: opened, checked against their base, and read as the fine-tuned model they stand for."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.codecs.protocol import Array, Cell, Codec, Decoder, numpy_type
from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.hashing import CHUNK, combine_chunks, hash_bytes
from deltasmith.formats.hf_folder import within
from deltasmith.formats.packed_document import (
    DOCUMENT,
    FORMAT,
    BaseRecord,
    Document,
    TensorRecord,
    read_document,
    refuse_newer,
)
from deltasmith.formats.safetensors_reader import Files, SafetensorsFile
from deltasmith.kernels.encode import ENCODABLE
from deltasmith.table.checkpoint import Checkpoint, SourceFile, Spec

__all__ = [
    "PACKED_NAME",
    "Packed",
    "PackedDelta",
    "comparable",
    "is_packed",
    "open_packed",
]

PACKED_NAME = "delta.safetensors"
_FETCH = "fetch or pack it again"
_KEPT_BYTES = 64 << 20
_MAX_DOCUMENT = 1 << 28


def is_packed(path: Path) -> bool:
    """Tell whether a folder holds a packed delta, or a file is one, by its name and header alone.

    A folder that may not be looked into holds none as far as can be seen: whoever opens it will say why.
    """
    if path.is_dir():
        return os.access(path, os.X_OK) and os.path.lexists(path / PACKED_NAME)
    if path.suffix != ".safetensors":
        return False
    file = SafetensorsFile(path)
    return file.metadata.get("format") == FORMAT or DOCUMENT in file.specs


def open_packed(path: str | Path) -> Packed:
    """Open a packed delta, a folder or the file in it, and check all that its header and document say.

    Raises:
        DamagedInputError: missing, damaged, of another format, or of a newer version.
    """
    root = Path(path)
    folder = root if root.is_dir() else None
    file = SafetensorsFile(
        within(root, PACKED_NAME) if folder is not None else root, name=PACKED_NAME, files=Files()
    )
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise DamagedInputError(
            "not a packed delta", where=file.path, fix="give one that `deltasmith pack` wrote"
        )
    version = metadata.get("version", "")
    if not version.isdecimal() or len(version) > 9:
        raise DamagedInputError(
            f"a packed delta of version {printable(version, 40)!r}", where=file.path, fix=_FETCH
        )
    refuse_newer(int(version), metadata.get("deltasmith", "unknown"), file.path)
    spec = file.specs.get(DOCUMENT)
    if spec is None or spec.dtype.name != "uint8" or spec.nbytes > _MAX_DOCUMENT:
        raise DamagedInputError("the packed delta has no document", where=file.path, fix=_FETCH)
    data = file.raw(DOCUMENT, 0, spec.size)
    if hash_bytes(data) != metadata.get("document_xxh3_128"):
        raise DamagedInputError(
            "the packed delta's document is damaged (its hash differs)", where=file.path, fix=_FETCH
        )
    document = read_document(data, file.path)
    if document.version != int(version):
        raise DamagedInputError(
            f"header and document tell different versions, {int(version)} and {document.version}",
            where=file.path,
            fix=_FETCH,
        )
    _check_arrays(document, file)
    return Packed(folder, file, document)


def _check_arrays(document: Document, file: SafetensorsFile) -> None:
    """Refuse unless the document's arrays are those of the file, each with a hash."""
    used = {a for tensors in document.deltas.values() for r in tensors.values() for a in r.arrays.values()}
    there = file.specs.keys() - {DOCUMENT}
    if wrong := sorted((used ^ there) | (there ^ document.hashes.keys())):
        raise DamagedInputError(
            f"the document and the arrays of the file disagree on {len(wrong)} arrays, the first "
            f"{printable(wrong[0], 120)}",
            where=file.path,
            fix=_FETCH,
        )


@dataclass(frozen=True)
class Packed:
    """An opened container: one or more deltas over one base."""

    folder: Path | None
    file: SafetensorsFile
    document: Document

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the deltas in it."""
        return tuple(self.document.deltas)

    @property
    def base(self) -> BaseRecord:
        """Return which model the deltas belong to."""
        return self.document.base

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the one file."""
        return self.file.sources

    def delta(self, label: str | None = None) -> PackedDelta:
        """Return one delta: the only one, or the one of that label.

        Raises:
            RefusedError: there are several and none was named, or there is none of that name.
        """
        known = ", ".join(printable(name, 40) for name in self.labels)
        if label is None and len(self.labels) > 1:
            raise RefusedError(
                f"the container holds {len(self.labels)} deltas",
                where=self.file.path,
                fix=f"add #LABEL: {known}",
            )
        chosen = self.labels[0] if label is None else label
        if chosen not in self.document.deltas:
            raise RefusedError(
                f"there is no delta {printable(chosen, 60)!r} in the container",
                where=self.file.path,
                fix=f"it has {known}",
            )
        return PackedDelta(self, chosen)

    def check_unchanged(self) -> None:
        """Refuse if the file is no longer the one that was opened."""
        self.file.check_unchanged()


class _Source:
    """The arrays of one tensor; each array's hash is checked before its first byte is used."""

    def __init__(self, delta: PackedDelta, record: TensorRecord) -> None:
        self._delta, self._record = delta, record
        stored = delta.packed.file.specs
        self.specs: Mapping[str, Spec] = {
            name: Spec(name, stored[at].shape, stored[at].dtype) for name, at in record.arrays.items()
        }

    def read(self, name: str, start: int, stop: int) -> Array:
        at = self._name(name)
        self._delta.check(at)
        spec = self.specs[name]
        if not 0 <= start <= stop <= spec.size:
            raise ValueError(f"elements {start} to {stop} of {name}, which has {spec.size}")
        raw = self._delta.packed.file.raw(at, start, stop)
        return np.frombuffer(raw, numpy_type(spec.dtype.name))

    def whole(self, name: str) -> Array:
        return self._delta.whole(self._name(name), self.specs[name])

    def _name(self, name: str) -> str:
        if name not in self._record.arrays:
            raise ValueError(f"there is no array {name}")
        return self._record.arrays[name]


@dataclass(frozen=True)
class PackedDelta:
    """One delta of a container, tensor by tensor. May be read from several threads."""

    packed: Packed
    label: str
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)
    _kept: OrderedDict[str, Array] = field(default_factory=OrderedDict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def tensors(self) -> Mapping[str, TensorRecord]:
        """Map tensor names to what the document says of them."""
        return self.packed.document.deltas[self.label]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the fine-tuned model's tensors."""
        return tuple(self.tensors)

    @property
    def where(self) -> str:
        """Name the file, and the label if there are several."""
        several = len(self.packed.labels) > 1
        return f"{self.packed.file.path}#{self.label}" if several else self.packed.file.path

    def codec(self, name: str) -> Codec:
        """Return the codec of one tensor."""
        return self.tensors[name].codec

    def cell(self, name: str) -> Cell:
        """Return the tensor as headers tell it; the base's spec is that of the tensor where one was subtracted."""
        record = self.tensors[name]
        return Cell(record.spec, record.spec if record.against_base else None)

    def source(self, name: str) -> _Source:
        """Return the stored arrays of one tensor."""
        return _Source(self, self.tensors[name])

    def decoder(self, name: str) -> Decoder:
        """Begin to decode one tensor; DamagedInputError if its arrays cannot be those of its codec."""
        try:
            return self.codec(name).decoder(self.cell(name), self.source(name))
        except (ValueError, KeyError) as cause:
            raise self.damaged(name, cause) from cause

    def damaged(self, name: str, cause: Exception) -> DamagedInputError:
        """Describe a tensor that does not decode."""
        reason = printable(str(cause), 200)
        return DamagedInputError(
            f"{printable(name, 120)} does not decode ({reason})", where=self.where, fix=_FETCH
        )

    def check(self, array: str) -> None:
        """Hash one array of the file, once, and refuse a damaged one."""
        with self._lock:
            if array in self._checked:
                return
        spec = self.packed.file.specs[array]
        step = CHUNK // spec.dtype.itemsize
        raw = self.packed.file.raw
        chunks = (raw(array, at, min(spec.size, at + step)) for at in range(0, spec.size, step))
        if combine_chunks(chunks) != self.packed.document.hashes[array]:
            raise DamagedInputError(
                f"the array {printable(array, 160)} is damaged (its hash differs)",
                where=self.where,
                fix=_FETCH,
            )
        with self._lock:
            self._checked.add(array)

    def whole(self, array: str, spec: Spec) -> Array:
        """Return one checked array of the file in its shape, and keep the last ones in memory."""
        with self._lock:
            if array in self._kept:
                self._kept.move_to_end(array)
                return self._kept[array]
        self.check(array)
        raw = self.packed.file.raw(array, 0, spec.size)
        found = np.frombuffer(raw, numpy_type(spec.dtype.name)).reshape(spec.shape)
        with self._lock:
            self._kept[array] = found
            while len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return found

    def check_base(self, base: Checkpoint) -> None:
        """Refuse a base with another fingerprint than the one that was packed against."""
        found, expected = fingerprint(base), self.packed.base.fingerprint
        if found != expected:
            raise DamagedInputError(
                f"this is not the base it was packed against: the fingerprint is {found[:12]}…, expected "
                f"{expected[:12]}… of {printable(self.packed.base.name, 80)!r}",
                where=self.where,
                fix="give the base that was used for `deltasmith pack`",
            )
        for name, record in self.tensors.items():
            if record.against_base and not comparable(record.spec, base.specs.get(name)):
                raise self.damaged(name, ValueError("the base has no such tensor"))


def comparable(spec: Spec, base: Spec | None) -> bool:
    """Tell whether a tensor can be told by its difference from one of the base: in shape, and in kind of elements."""
    if base is None or base.shape != spec.shape:
        return False
    return base.dtype == spec.dtype or (base.dtype.floating and spec.dtype.name in ENCODABLE)
