"""A study being written: what is finished is journalled and kept, what is in training has a checkpoint.

The folder lies beside OUT under a key of all that decides every part alike; each part has a key of its own besides, so
that a study repeated with one model more, or without a faulty one, finds the rest finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deltasmith.errors import DamagedInputError
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.staging import Staging, is_useless, refuse_link
from deltasmith.formats.system import resource_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Finished", "Workplace", "digest"]

_JOURNAL = "journal.jsonl"
_CHECKPOINT = "checkpoint.safetensors"


def digest(*parts: Any) -> str:
    """Return the SHA-256 of plain values, told apart by their JSON text."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Finished:
    """One finished part: the key it was made under, its files with their hashes, and what is known of it."""

    key: str
    files: Mapping[str, str]
    record: Mapping[str, Any]


@dataclass
class Workplace:
    """A partial study; made by `open`, used in a `with` block, ended by `publish`."""

    staging: Staging
    finished: dict[str, Finished] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, key: str, *, inputs: Sequence[Path] = (), overwrite: bool = False) -> Workplace:
        """Claim the place, and take over what an earlier run with the same `key` has finished.

        Raises what `Staging.claim` raises, and ResourceError.
        """
        staging = Staging.claim(out, key, inputs, overwrite=overwrite)
        try:
            refuse_link(staging.partial)
            staging.partial.mkdir(exist_ok=True)
            found = cls(staging, _replay(staging.partial, key))
            found._begin(key)
        except OSError as cause:
            staging.lock.release()
            raise resource_error(cause, cause.filename or staging.partial) from cause
        except BaseException:
            staging.lock.release()
            raise
        return found

    def known(self, name: str, key: str) -> Mapping[str, Any] | None:
        """Return what is known of a part that was finished under this key, or None."""
        part = self.finished.get(name)
        return part.record if part is not None and part.key == key else None

    def finish(
        self, name: str, key: str, files: Mapping[str, bytes], record: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Write the files of a part and note it as finished; return its record, as JSON will give it back."""
        hashes = {}
        try:
            for path, content in files.items():
                (self.staging.partial / path).parent.mkdir(parents=True, exist_ok=True)
                self.staging.place(path, content)
                hashes[path] = hashlib.sha256(content).hexdigest()
            part = Finished(key, hashes, json.loads(json.dumps(record)))
            with (self.staging.partial / _JOURNAL).open("ab") as file:
                file.write(_line({"part": name, **vars(part)}))
                file.flush()
                os.fsync(file.fileno())
            (self.staging.partial / _CHECKPOINT).unlink(missing_ok=True)
        except OSError as cause:
            raise resource_error(cause, cause.filename or self.staging.partial) from cause
        self.finished[name] = part
        return part.record

    def hashes(self, parts: Sequence[str]) -> dict[str, str]:
        """Return the SHA-256 of every file of finished parts, by its path in the study."""
        return {path: known for name in parts for path, known in self.finished[name].files.items()}

    def read(self, path: str) -> Path:
        """Return where a file of a finished part lies until the study is published."""
        return self.staging.partial / path

    def save(self, key: str, step: int, state: Mapping[str, Tensor]) -> None:
        """Replace the checkpoint, in one step: the state after `step` steps of the part with this key."""
        from safetensors.torch import save_file

        path = self.staging.partial / _CHECKPOINT
        fresh = path.with_name(path.name + ".tmp")
        try:
            on_cpu = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in state.items()}
            save_file(on_cpu, fresh, metadata={"key": key, "step": str(step)})
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as cause:
            raise resource_error(cause, cause.filename or path) from cause

    def saved(self, key: str) -> tuple[int, dict[str, Tensor]] | None:
        """Return step and state of the checkpoint, if it is whole and belongs to the part with this key."""
        from safetensors import SafetensorError, safe_open

        path = self.staging.partial / _CHECKPOINT
        if not path.is_file() or path.is_symlink():
            return None
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                if told.get("key") != key:
                    return None
                return int(told["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def publish(self, parts: Sequence[str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        """Write the last files, drop parts that do not belong, rename the folder to OUT; return warnings."""
        self.staging.refuse_newcomers()
        try:
            for name, content in files.items():
                self.staging.place(name, content)
            wanted = {path for name in parts for path in self.finished[name].files} | {*files, _JOURNAL}
            _clear(self.staging.partial, wanted)
            self.staging.publish(_JOURNAL)
        except OSError as cause:
            raise resource_error(cause, cause.filename or self.staging.partial) from cause
        return self.staging.tidy()

    def _begin(self, key: str) -> None:
        """Write the journal anew, with only what is believed."""
        lines = [{"key": key}, *({"part": name, **vars(part)} for name, part in self.finished.items())]
        self.staging.place(_JOURNAL, b"".join(map(_line, lines)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the partial folder where anything in it can be used again, even after a refusal; else remove it."""
        some = bool(self.finished) or (self.staging.partial / _CHECKPOINT).exists()
        if self.staging.published or (error is not None and (some or not is_useless(error))):
            self.staging.lock.release()
        else:
            self.staging.discard()


def _line(record: Mapping[str, Any]) -> bytes:
    """Write one record with the checksum of its own text."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


def _records(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal up to the first damaged one."""
    for line in journal.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line.partition(b" ")[2])
        except ValueError:
            return
        if not isinstance(record, dict) or _line(record) != line:
            return
        yield record


def _replay(partial: Path, key: str) -> dict[str, Finished]:
    """Read what an earlier run has finished; a part whose files are not what they were is forgotten."""
    journal = partial / _JOURNAL
    if not journal.is_file() or journal.is_symlink():
        return {}
    records = list(_records(journal))
    if not records or records[0].get("key") != key:
        return {}
    parts = {r["part"]: Finished(r["key"], r["files"], r["record"]) for r in records[1:]}
    return {name: part for name, part in parts.items() if _intact(partial, part)}


def _intact(partial: Path, part: Finished) -> bool:
    try:
        return all(sha256_of(partial / path) == known for path, known in part.files.items())
    except (DamagedInputError, OSError):
        return False


def _clear(partial: Path, wanted: set[str]) -> None:
    """Remove every file that is not wanted, and folders that are then empty."""
    for folder, _, names in os.walk(partial, topdown=False):
        for name in names:
            path = Path(folder, name)
            if path.relative_to(partial).as_posix() not in wanted:
                path.unlink()
        if Path(folder) != partial:
            with suppress(OSError):
                Path(folder).rmdir()
    shutil.rmtree(partial / f"{_CHECKPOINT}.tmp", ignore_errors=True)
