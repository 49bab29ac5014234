"""JSON files that nobody vouches for: read up to a limit, parsed strictly, always an object at the top."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.sniff import open_regular, what_it_is

__all__ = ["DuplicateKeyError", "read_json_object", "refuse_constant", "unique_keys"]


class DuplicateKeyError(ValueError):
    """One object has one key twice, and two parsers may then read two different things."""

    def __init__(self, key: str) -> None:
        """Keep the key."""
        self.key = key
        super().__init__(f'the key "{printable(key)}" appears twice')


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dict of one JSON object, refusing a key that appears twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return found


def refuse_constant(text: str) -> float:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{text} is not JSON")


def read_json_object(
    path: str | Path, limit: int = 16 << 20, *, fix: str = "fetch it again"
) -> dict[str, Any]:
    """Read a JSON object from a regular file of at most `limit` bytes.

    `Infinity` and `NaN` are read as Python writes them, because configurations in use hold them. `fix` says what to
    do about a file that is damaged or another.

    Raises:
        DamagedInputError: the file is missing, too large, not JSON, no object, or has a key twice.
    """
    where = str(path)
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise DamagedInputError(
                f"the file has {size} bytes, more than the {limit} such a file may have",
                where=where,
                fix=fix,
            )
        try:
            data = file.read(limit + 1)
        except OSError as cause:
            raise DamagedInputError(f"the file cannot be read ({cause.strerror})", where=where) from cause
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as cause:  # ValueError covers JSON, UTF-8, digits and duplicate keys
        kind = what_it_is(data[:512])
        problem = (
            f"this is {kind[0]} and not JSON" if kind else f"the file is not strict JSON ({_short(cause)})"
        )
        raise DamagedInputError(problem, where=where, fix=kind[1] if kind else fix) from cause
    if not isinstance(value, dict):
        raise DamagedInputError(
            f"the file holds a JSON {type(value).__name__} instead of an object",
            where=where,
            fix=fix,
        )
    return value


def _short(cause: BaseException) -> str:
    """Tell in a few words why JSON did not parse."""
    if isinstance(cause, RecursionError):
        return "nested too deeply"
    return printable(str(cause), 100)
