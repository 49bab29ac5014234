"""Reading question files, with errors that name file and line, and hashing what decides a task's outcomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deltasmith.errors import DamagedInputError

__all__ = [
    "Record",
    "by_id",
    "decoded",
    "digest_of",
    "parse_records",
    "read_bytes",
    "read_records",
    "read_text",
    "sha256",
]

K = TypeVar("K", int, str)
Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class Record:
    """Hold one object of a question file and where it stands (`FILE:LINE`)."""

    fields: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """Return a string field. Raises DamagedInputError where it is missing or not a string."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise self.damaged(f"{name!r} is {'missing' if value is None else 'not a string'}")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a field that is a list of strings. Raises DamagedInputError where it is anything else."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.damaged(f"{name!r} is {'missing' if value is None else 'not a list of strings'}")
        return value

    def damaged(self, what: str) -> DamagedInputError:
        """Return the error that says what is wrong with this question."""
        return DamagedInputError(what, where=self.where, fix="compare it with the task's file format")


def read_bytes(path: Path) -> bytes:
    """Read a file whole. Raises DamagedInputError where that fails."""
    try:
        return path.read_bytes()
    except OSError as cause:
        raise DamagedInputError(
            f"it cannot be read ({cause.strerror})", where=str(path), fix="check the path"
        ) from cause


def read_text(path: Path) -> str:
    """Read a UTF-8 file whole, a byte order mark removed, line ends as they are."""
    return decoded(read_bytes(path), str(path))


def read_records(path: Path) -> list[Record]:
    """Read one JSON object per line, or one JSON list of objects; blank lines are passed over.

    Raises DamagedInputError naming file and line where something is no object, and where there is none at all.
    """
    return parse_records(read_bytes(path), str(path))


def parse_records(data: bytes, name: str) -> list[Record]:
    """Read the objects out of the bytes of a file called `name`, as `read_records` does."""
    text = decoded(data, name)
    if text.lstrip().startswith("["):
        found = _json(text, name)
        records = [Record(_object(one, f"{name}:[{n}]"), f"{name}:[{n}]") for n, one in enumerate(found)]
    else:
        # Not splitlines(): a JSON string may hold U+2028 and its kind unescaped.
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        records = [Record(_object(_json(line, at := f"{name}:{n}"), at), at) for n, line in lines]
    if not records:
        raise DamagedInputError("it holds no question", where=name, fix="give one JSON object per line")
    return records


def by_id(questions: Iterable[tuple[K, Q, str]]) -> dict[K, Q]:
    """Key questions by id, from triples of id, question and place. Raises DamagedInputError for an id twice."""
    found: dict[K, Q] = {}
    for name, question, where in questions:
        if name in found:
            raise DamagedInputError(f"the id {name!r} comes twice", where=where, fix="give each its own id")
        found[name] = question
    return found


def sha256(path: Path) -> str:
    """Hash a file's bytes."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def digest_of(kind: str, version: int, files: Sequence[str], **facts: Any) -> str:
    """Hash the kind of a task, the version of its rules, the hashes of its files, and every option."""
    document = {"kind": kind, "version": version, "files": list(files), "facts": facts}
    canonical = json.dumps(document, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def decoded(data: bytes, name: str) -> str:
    """Decode UTF-8, a byte order mark removed. Raises DamagedInputError naming the line that is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = data.count(b"\n", 0, cause.start) + 1
        raise DamagedInputError(
            "it is not UTF-8 text", where=f"{name}:{line}", fix="save it as UTF-8"
        ) from cause


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise DamagedInputError("invalid JSON", where=where, fix="give one JSON object per line") from cause


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DamagedInputError("no JSON object", where=where, fix="give one JSON object per line")
    return value
