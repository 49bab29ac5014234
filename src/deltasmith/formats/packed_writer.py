"""A packed delta being written: tensor after tensor, resumable after each, whole under its name or not there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deltasmith.codecs.protocol import Coded, Ending, Stream
from deltasmith.errors import DamagedInputError
from deltasmith.formats.array_file import ArrayFile, Entry, room_for
from deltasmith.formats.hashing import hash_bytes, hash_file_range
from deltasmith.formats.packed import PACKED_NAME
from deltasmith.formats.packed_document import DOCUMENT, FORMAT, VERSION, Document
from deltasmith.formats.staging import Staging, is_useless, refuse_link
from deltasmith.formats.system import resource_error

__all__ = ["PackedOutput", "Written", "key_of"]

_JOURNAL = "journal.jsonl"


def key_of(name: str, suffix: str = "") -> str:
    """Return what a finished tensor is remembered as: its name, and the suffix of its arrays if they have one."""
    return f"{name}::{suffix}" if suffix else name


@dataclass(frozen=True)
class Written:
    """One finished tensor: what its codec called the arrays → their names in the file, and the sums of its end."""

    arrays: Mapping[str, str]
    squared_norm: float
    squared_error: float
    xxh3_128: str | None = None


@dataclass(frozen=True)
class _Current:
    """The tensor being written."""

    name: str
    suffix: str
    stored: dict[str, str]


@dataclass
class PackedOutput:
    """A container under construction; made by `open`, used in a `with` block, ended by `publish`.

    `finished` maps tensors that an earlier, interrupted run has written to what became of them. One thread at a
    time; tensors come one after the other.
    """

    staging: Staging
    file: ArrayFile
    finished: dict[str, Written] = field(default_factory=dict)
    _current: _Current | None = None
    _first: int = 0

    @classmethod
    def open(
        cls,
        out: Path,
        key: str,
        names: Sequence[str],
        *,
        inputs: Sequence[Path] = (),
        overwrite: bool = False,
    ) -> PackedOutput:
        """Claim the place, and take over what an earlier run with the same `key` has finished.

        `names` are those of the tensors, once for each array that is expected. Raises what `Staging.claim` raises.
        """
        staging = Staging.claim(out, key, inputs, overwrite=overwrite)
        try:
            refuse_link(staging.partial)
            staging.partial.mkdir(exist_ok=True)
            path = staging.partial / PACKED_NAME
            entries, finished = _replay(staging.partial / _JOURNAL, key, path)
            room = room_for([*(f"{name}::stream" for name in names), DOCUMENT])
            output = cls(staging, ArrayFile(path, room, entries), finished)
            output._begin_journal(key, room)
        except OSError as cause:
            if (staging.partial / _JOURNAL).exists():
                staging.lock.release()  # what an earlier run has finished stays
            else:
                staging.discard()
            raise resource_error(cause, cause.filename or staging.partial) from cause
        except BaseException:
            staging.discard()
            raise
        return output

    def begin(self, name: str, streams: Iterable[Stream], suffix: str = "") -> None:
        """Begin a tensor: its arrays are stored as NAME::PARTsuffix, and it is finished as `key_of`."""
        listed = list(streams)
        stored = {s.name: f"{name}::{s.name}{suffix}" for s in listed}
        self._current, self._first = _Current(name, suffix, stored), len(self.file.entries)
        self.file.begin((stored[s.name], s.dtype, s.shape) for s in listed)

    def append(self, coded: Coded) -> None:
        """Add one block's bytes to the streams of the tensor at hand."""
        assert self._current is not None
        for part, data in coded.parts.items():
            view = (
                np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
                if isinstance(data, np.ndarray)
                else data
            )
            self.file.append(self._current.stored[part], view)

    def end(self, ending: Ending, xxh3_128: str | None = None) -> Written:
        """Finish the tensor at hand, and remember it in the journal."""
        assert self._current is not None
        now = self._current
        last = {part: f"{now.name}::{part}{now.suffix}" for part in ending.arrays}
        self.file.end({last[part]: array for part, array in ending.arrays.items()})
        written = Written(now.stored | last, ending.squared_norm, ending.squared_error, xxh3_128)
        key = key_of(now.name, now.suffix)
        self.finished[key] = written
        self._note({"tensor": key, "written": vars(written), "entries": self._new_entries()})
        self._current = None
        return written

    def _new_entries(self) -> list[dict[str, Any]]:
        return [ArrayFile.as_json(entry) for entry in self.file.entries[self._first :]]

    def hashes(self) -> dict[str, str]:
        """Return the hash of every array written so far."""
        return {entry.name: entry.xxh3_128 for entry in self.file.entries}

    def size_with(self, document: Document) -> int:
        """Return the bytes that the file will take with this document (header room that is too small counts little)."""
        return self.file.size + len(document.encode())

    def publish(
        self,
        document: Document,
        files: Mapping[str, bytes | Path],
        manifest: Callable[[Sequence[Entry]], bytes],
    ) -> tuple[str, ...]:
        """Write the document, the header and the side files, and rename the folder to OUT; return warnings.

        `manifest` is asked last, for the bytes of manifest.json, given every array of the file.
        """
        data = document.encode()
        self.staging.refuse_newcomers()
        try:
            self.file.end({DOCUMENT: np.frombuffer(data, np.uint8)})
            self.nbytes = self.file.seal(
                {
                    "format": FORMAT,
                    "version": str(VERSION),
                    "deltasmith": document.deltasmith,
                    "base": document.base.fingerprint,
                    "document_xxh3_128": hash_bytes(data),
                }
            )
            for name, content in [*sorted(files.items()), ("manifest.json", manifest(self.file.entries))]:
                self.staging.place(name, content)
            self.staging.publish(_JOURNAL)
        except OSError as cause:
            raise resource_error(cause, cause.filename or self.staging.partial) from cause
        return self.staging.tidy()

    nbytes: int = 0

    def _begin_journal(self, key: str, room: int) -> None:
        """Write the journal anew, with only what is believed."""
        lines: list[dict[str, Any]] = [{"key": key, "room": room}]
        entries = {entry.name: entry for entry in self.file.entries}
        for name, written in self.finished.items():
            kept = [ArrayFile.as_json(entries[array]) for array in written.arrays.values()]
            lines.append({"tensor": name, "written": vars(written), "entries": kept})
        self.staging.place(_JOURNAL, b"".join(map(_line, lines)))

    def _note(self, record: Mapping[str, Any]) -> None:
        try:
            with (self.staging.partial / _JOURNAL).open("ab") as file:
                file.write(_line(record))
        except OSError as cause:
            raise resource_error(cause, self.staging.partial / _JOURNAL) from cause

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the partial folder where resuming can help, remove it where it cannot."""
        self.file.close()
        if self.staging.published:
            self.staging.lock.release()
        elif error is None or is_useless(error) or not self.finished:
            self.staging.discard()
        else:
            self.staging.lock.release()


def _line(record: Mapping[str, Any]) -> bytes:
    """Write one record with the checksum of its own text."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


def _replay(journal: Path, key: str, path: Path) -> tuple[list[Entry], dict[str, Written]]:
    """Read what an earlier run has finished, up to the first damaged line or array; nothing if it had another key."""
    if not journal.is_file() or not path.is_file() or path.is_symlink():
        return [], {}
    records = []
    for line in journal.read_bytes().splitlines(keepends=True):
        _, _, text = line.partition(b" ")
        try:
            record = json.loads(text)
        except ValueError:
            break
        if _line(record) != line:
            break
        records.append(record)
    if not records or records[0].get("key") != key:
        return [], {}
    entries: list[Entry] = []
    finished: dict[str, Written] = {}
    with path.open("rb") as file:
        for record in records[1:]:
            found = [Entry(**{**e, "shape": tuple(e["shape"])}) for e in record["entries"]]
            if not all(_intact(file, records[0]["room"], entry) for entry in found):
                break
            entries += found
            finished[record["tensor"]] = Written(**record["written"])
    return entries, finished


def _intact(file: Any, room: int, entry: Entry) -> bool:
    """Hash an array again: what the journal calls finished may not have reached the disk."""
    try:
        return (
            hash_file_range(file.fileno(), 8 + room + entry.begin, entry.end - entry.begin) == entry.xxh3_128
        )
    except DamagedInputError:
        return False
