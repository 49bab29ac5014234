"""The append-only record of answered questions, by which an interrupted evaluation goes on.

One line per outcome, and per request that a task wants remembered. Every line carries its whole key (model,
runtime, task, digest of the task), so that lines of another model or of another version of a task are never taken
for this one's, and a checksum of its own text. A line goes to the system in one piece and outlives the process that
wrote it; only the last one can be torn.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash

from deltasmith import __version__
from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.saving import write_whole
from deltasmith.evaluate.task import Outcome
from deltasmith.formats.claim import Lock, take_lock
from deltasmith.formats.fingerprint import cache_path
from deltasmith.formats.system import resource_error

__all__ = ["Answers", "Journal", "Key", "default_journal"]

_HEAD = b'{"journal":1,"crc32":"'
_TAIL = b"}\n"
_KEY = ("model", "runtime", "task", "digest", "version")


@dataclass(frozen=True, slots=True)
class Key:
    """Say what an outcome belongs to: the model's fingerprint, what computed it, the task's name and digest.

    Another version of this package may prompt and count otherwise, so the version belongs to it too.
    """

    model: str
    runtime: str
    task: str
    digest: str
    version: str = __version__

    def as_json(self) -> dict[str, str]:
        """Return plain data."""
        return {
            "model": self.model,
            "runtime": self.runtime,
            "task": self.task,
            "digest": self.digest,
            "version": self.version,
        }


class Journal:
    """A journal open for appending, locked against other processes until `close`."""

    def __init__(self, path: Path, lock: Lock) -> None:
        """Hold an open journal; use `Journal.open`."""
        self.path = path
        self._lock = lock
        self._fd = -1
        self._outcomes: dict[Key, dict[str, Outcome]] = {}
        self._answers: dict[Key, dict[str, Any]] = {}

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Read a journal, or begin one; a last line that was torn by a kill is cut off.

        Raises RefusedError where another process has it open, DamagedInputError naming a line that is damaged or
        is no entry of a journal, and ResourceError where the file cannot be made.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise resource_error(cause, path.parent) from cause
        journal = cls(path, take_lock(path))
        try:
            journal._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            size = journal._read(path.read_bytes())
            os.ftruncate(journal._fd, size)
        except OSError as cause:
            journal.close()
            raise resource_error(cause, path) from cause
        except BaseException:
            journal.close()
            raise
        return journal

    def outcomes(self, key: Key) -> dict[str, Outcome]:
        """Return the outcomes recorded under `key`, by question id."""
        return dict(self._outcomes.get(key, {}))

    def record(self, key: Key, outcomes: Iterable[Outcome]) -> None:
        """Append outcomes; they are remembered once this returns."""
        outcomes = list(outcomes)
        self._append(
            _line(key, {"id": o.id, "score": o.score, "weight": o.weight, "detail": dict(o.detail)})
            for o in outcomes
        )
        self._outcomes.setdefault(key, {}).update({o.id: o for o in outcomes})

    def answers(self, key: Key, heard: Callable[[int], None] | None = None) -> Answers:
        """Return the memory of a task's single requests; `heard` is called with 1 for each one added."""
        return Answers(self, key, heard)

    def close(self) -> None:
        """Close the file and let go of the lock; a second call does nothing. An empty journal is removed."""
        if self._fd >= 0:
            if not os.fstat(self._fd).st_size:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
        self._lock.release()

    def discard(self, keys: Collection[Key]) -> None:
        """Remove what was recorded under `keys`, which is safe elsewhere, and close; an empty file is removed.

        Work under other keys stays, in a file that is written anew, whole. Raises ResourceError where that fails.
        """
        try:
            with os.fdopen(os.dup(self._fd), "rb") as file:
                file.seek(0)
                lines = [(line, _parse(line[:-1])) for line in file]
        except OSError as cause:
            raise resource_error(cause, self.path) from cause
        rest = [line for line, entry in lines if entry is not None and _key(entry) not in keys]
        if rest:
            write_whole(self.path, b"".join(rest))
        else:
            self.path.unlink(missing_ok=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()

    def _append(self, lines: Iterable[bytes]) -> None:
        text = memoryview(b"".join(lines))
        try:
            while text.nbytes:
                text = text[os.write(self._fd, text) :]
        except OSError as cause:
            raise resource_error(cause, self.path) from cause

    def _read(self, text: bytes) -> int:
        """Take in every whole line; return the size without a torn last one."""
        *lines, torn = text.split(b"\n")
        for number, line in enumerate(lines, 1):
            entry = _parse(line)
            if entry is None:
                raise self._damaged(number)
            self._take(entry)
        # Any other file without a newline at its end is nobody's to cut.
        if torn and not (torn.startswith(_HEAD) or _HEAD.startswith(torn)):
            raise self._damaged(len(lines) + 1)
        return len(text) - len(torn)

    def _take(self, entry: dict[str, Any]) -> None:
        key = _key(entry)
        if "request" in entry:
            self._answers.setdefault(key, {})[entry["request"]] = entry["answer"]
        else:
            outcome = Outcome(entry["id"], entry["score"], entry["weight"], entry["detail"])
            self._outcomes.setdefault(key, {})[outcome.id] = outcome

    def _damaged(self, number: int) -> DamagedInputError:
        return DamagedInputError(
            "this line is damaged, or is no entry of a journal",
            where=f"{self.path}:{number}",
            fix="delete the line, or the file, and run the same command again: what it held is computed anew",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Answers:
    """The answers to one task's requests, kept in a journal: a mapping from a request's name to plain JSON."""

    def __init__(self, journal: Journal, key: Key, heard: Callable[[int], None] | None) -> None:
        """Keep what is put under `key` of `journal`."""
        self._journal, self._key, self._heard = journal, key, heard
        self._known = journal._answers.setdefault(key, {})

    def get(self, request: str) -> Any | None:
        """Return the answer to a request, or None where it has not been given."""
        return self._known.get(request)

    def put(self, request: str, answer: Any) -> None:
        """Append an answer; it is remembered once this returns."""
        self._journal._append([_line(self._key, {"request": request, "answer": answer})])
        self._known[request] = answer
        if self._heard is not None:
            self._heard(1)

    def __len__(self) -> int:
        return len(self._known)


def default_journal(out: Path | None, keys: Iterable[Key]) -> Path:
    """Name the journal of an evaluation: beside its result file, or in the user's cache, named by what it asks.

    Without a home folder the cache is the working folder.
    """
    if out is not None:
        return out.with_name(out.name + ".journal")
    text = json.dumps(sorted(json.dumps(key.as_json()) for key in keys))
    name = f"{xxhash.xxh3_128_hexdigest(text.encode())}.journal"
    cache = cache_path()
    return (cache.parent / "evaluations" if cache else Path()) / name


def _key(entry: Mapping[str, Any]) -> Key:
    return Key(*(entry[name] for name in _KEY))


def _line(key: Key, entry: dict[str, Any]) -> bytes:
    """Write one entry with its key and the checksum of its own text."""
    text = json.dumps({**key.as_json(), **entry}, separators=(",", ":")).encode()
    return b'%s%08x","entry":%s%s' % (_HEAD, zlib.crc32(text), text, _TAIL)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Read one line without its newline; None when it is damaged or not ours."""
    start = len(_HEAD) + len(b'00000000","entry":')
    text = line[start:-1]
    if line[:start] != b'%s%08x","entry":' % (_HEAD, zlib.crc32(text)) or line[-1:] != b"}":
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kinds = ({"id", "score", "weight", "detail"}, {"request", "answer"})
    ours = isinstance(entry, dict) and any({*_KEY, *kind} == set(entry) for kind in kinds)
    return entry if ours else None
