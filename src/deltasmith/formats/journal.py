"""The append-only record of tensors that are finished, by which an interrupted run goes on.

A line is written once all bytes of its tensor have been handed to the system. That outlives the process,
however it ends, because the pages belong to the kernel; it does not outlive the kernel. So the first line
names the boot it was written under, and whoever replays a journal of another boot must hash the tensors
again before believing it. Nothing has to be flushed while the run goes on, and a crash of the machine costs
one reading of the output.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deltasmith.formats.system import resource_error, write_all

__all__ = ["Journal", "Replay", "replay"]

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Replay:
    """What a journal says: for which plan and layout, under which boot, and name → hash of what is done."""

    plan: str
    layout: str
    boot: str
    finished: Mapping[str, str]


def _line(record: Mapping[str, Any]) -> bytes:
    """Write one record with the checksum of its own text."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True)
    return f'{{"crc32":"{zlib.crc32(text.encode()):08x}","record":{text}}}\n'.encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Read one line; None when it is torn, damaged, or not ours."""
    try:
        record = json.loads(line)["record"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record if isinstance(record, dict) and _line(record) == line else None


def replay(path: Path) -> Replay | None:
    """Read a journal up to its first damaged line; None when there is no journal or its first line is bad."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise resource_error(cause, path) from cause
    head = _parse(lines[0]) if lines else None
    if head is None or head.get("format") != _FORMAT:
        return None
    finished: dict[str, str] = {}
    for line in lines[1:]:
        record = _parse(line)
        if record is None:
            break
        finished[record["tensor"]] = record["xxh3_128"]
    return Replay(head["plan"], head["layout"], head["boot"], finished)


class Journal:
    """A journal open for appending; closed by `close` or at the end of a `with` block."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        """Append to an open file of `size` bytes."""
        self.path, self._fd, self._size = path, fd, size
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, path: Path, plan: str, layout: str, boot: str, finished: Mapping[str, str]) -> Journal:
        """Replace whatever journal lies there by one that holds only `finished`, in one step."""
        head = {"format": _FORMAT, "plan": plan, "layout": layout, "boot": boot}
        lines = [_line(head), *(_line({"tensor": n, "xxh3_128": h}) for n, h in finished.items())]
        text = b"".join(lines)
        fresh = path.with_name(path.name + ".tmp")
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                write_all(fd, memoryview(text), 0)
                os.fsync(fd)
                fresh.replace(path)
            except BaseException:
                os.close(fd)
                fresh.unlink(missing_ok=True)
                raise
        except OSError as cause:
            raise resource_error(cause, path) from cause
        return cls(path, fd, len(text))

    def append(self, name: str, digest: str) -> None:
        """Record that the bytes of the tensor `name` are all written and hash to `digest`."""
        line = _line({"tensor": name, "xxh3_128": digest})
        with self._lock:
            try:
                write_all(self._fd, memoryview(line), self._size)
            except OSError as cause:
                raise resource_error(cause, self.path) from cause
            self._size += len(line)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
