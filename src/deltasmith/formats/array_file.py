"""A safetensors file written from front to back, for arrays whose sizes only their making can tell.

Room for the header is left at the front and filled at the end. If the header outgrows the room, the arrays are
moved once; too much room becomes white space, which the format allows.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.errors import RefusedError, printable
from deltasmith.formats.hashing import SequentialHasher, hash_bytes
from deltasmith.formats.layout import MAX_HEADER
from deltasmith.formats.system import resource_error, start_writeback, write_all
from deltasmith.table.dtypes import DTYPES

__all__ = ["ArrayFile", "Entry", "room_for"]

_ALIGN = 64
_WRITEBACK = 32 << 20
_MOVE = 8 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished array: where its bytes lie, counted from the first array's, and their hash as in manifest.json."""

    name: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int
    xxh3_128: str


def room_for(names: Iterable[str]) -> int:
    """Return the bytes of header that arrays of these names are likely to need."""
    text = 200 + sum(len(json.dumps(name, ensure_ascii=False).encode()) + 90 for name in names)
    return text + -(8 + text) % _ALIGN


@dataclass
class _Growing:
    """An array being written: where its next byte goes, and the hash so far."""

    code: str
    shape: tuple[int, ...] | None
    begin: int
    cursor: int
    state: SequentialHasher


class ArrayFile:
    """A safetensors file under construction. One thread at a time.

    `begin` announces the streams of one group, `append` adds bytes to them, `end` closes the group and adds whole
    arrays; then the next group may begin. `seal` writes the header and makes the file durable.
    """

    def __init__(self, path: Path, room: int, entries: Sequence[Entry] = ()) -> None:
        """Open `path` for writing, behind `room` bytes of header and the arrays already there (`entries`)."""
        self.path, self.room = path, room
        self.entries: list[Entry] = list(entries)
        self._growing: dict[str, _Growing] = {}
        self._size = max((entry.end for entry in entries), default=0)
        self._since = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            os.ftruncate(self._fd, 8 + room + self._size)
        except OSError as cause:
            raise resource_error(cause, path) from cause

    @property
    def size(self) -> int:
        """Count the bytes of the file so far, the room for its header included."""
        return 8 + self.room + self._size

    def begin(self, streams: Iterable[tuple[str, str, tuple[int, ...] | None]]) -> None:
        """Announce (name, element type, shape) of arrays that grow; the last alone may have the shape None."""
        position = self._size
        for name, dtype, shape in streams:
            kind = DTYPES[dtype]
            self._growing[name] = _Growing(kind.code, shape, position, position, SequentialHasher())
            if shape is not None:
                position += int(np.prod(shape, dtype=np.int64)) * kind.itemsize

    def append(self, name: str, data: Any) -> None:
        """Add bytes to the end of one growing array."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        growing = self._growing[name]
        self._write(view, growing.cursor)
        growing.state.add(view)
        growing.cursor += view.nbytes

    def end(self, arrays: Mapping[str, Any]) -> None:
        """Close the growing arrays and write `arrays` behind them."""
        for name, grown in self._growing.items():
            self._close(name, grown)
        self._growing = {}
        for name, array in arrays.items():
            kind = DTYPES[array.dtype.name]
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            self._write(data, self._size)
            digest = hash_bytes(data)
            self._add(
                Entry(name, kind.code, tuple(array.shape), self._size, self._size + data.nbytes, digest)
            )

    def _close(self, name: str, grown: _Growing) -> None:
        nbytes = grown.cursor - grown.begin
        width = next(kind.itemsize for kind in DTYPES.values() if kind.code == grown.code)
        shape = (nbytes // width,) if grown.shape is None else grown.shape
        if int(np.prod(shape, dtype=np.int64)) * width != nbytes:
            raise ValueError(f"{name}: {nbytes} bytes were written for the shape {shape}")
        self._add(Entry(name, grown.code, shape, grown.begin, grown.cursor, grown.state.digest()))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._size = max(self._size, entry.end)

    def _write(self, view: memoryview, position: int) -> None:
        try:
            write_all(self._fd, view, 8 + self.room + position)
            self._since += view.nbytes
            if self._since >= _WRITEBACK:
                self._since = 0
                start_writeback(self._fd, 0, 0)
        except OSError as cause:
            raise resource_error(cause, self.path) from cause

    def seal(self, metadata: Mapping[str, str]) -> int:
        """Write the header, flush the file to disk, close it, and return its size."""
        header = self._header(metadata)
        try:
            if len(header) > self.room:
                self._move(len(header) + -(8 + len(header)) % _ALIGN)
            header += b" " * (self.room - len(header))
            write_all(self._fd, memoryview(self.room.to_bytes(8, "little") + header), 0)
            os.fsync(self._fd)
        except OSError as cause:
            raise resource_error(cause, self.path) from cause
        self.close()
        return self.size

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        content: dict[str, Any] = {"__metadata__": dict(metadata)}
        for entry in sorted(self.entries, key=lambda e: (e.begin, e.end)):
            content[entry.name] = {
                "dtype": entry.code,
                "shape": list(entry.shape),
                "data_offsets": [entry.begin, entry.end],
            }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > MAX_HEADER:
            raise RefusedError(
                f"the header would be {len(text)} bytes long, and readers accept {MAX_HEADER}",
                where=printable(str(self.path)),
                fix="pack the model in parts",
            )
        return text

    def _move(self, room: int) -> None:
        """Move all arrays back by the room that is missing, from the last byte to the first."""
        step = room - self.room
        position = self._size
        while position > 0:
            count = min(_MOVE, position)
            position -= count
            data = os.pread(self._fd, count, 8 + self.room + position)
            if len(data) < count:
                raise OSError(errno.EIO, "the file is shorter than what was written to it")
            write_all(self._fd, memoryview(data), 8 + self.room + position + step)
        self.room = room

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @staticmethod
    def as_json(entry: Entry) -> dict[str, Any]:
        """Return an entry as plain data."""
        return asdict(entry)
