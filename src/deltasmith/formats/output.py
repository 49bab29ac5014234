"""A model being written: it appears at its path whole and right, or not at all.

Everything happens in a folder beside the output, `OUT.partial-<plan hash>`, which is renamed at the very
end. A run that was killed finds that folder again, and what its journal calls finished need not be computed
twice.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deltasmith.errors import DeltasmithError, ResourceError, printable
from deltasmith.formats.hashing import hash_file_range
from deltasmith.formats.journal import Journal, replay
from deltasmith.formats.layout import INDEX_NAME, Layout, Shard
from deltasmith.formats.staging import Staging, is_useless, refuse_link
from deltasmith.formats.system import allocate, boot_id, resource_error, start_writeback, write_all

__all__ = ["JOURNAL_NAME", "MANIFEST_NAME", "Output"]

JOURNAL_NAME = "journal.jsonl"
MANIFEST_NAME = "manifest.json"

_WRITEBACK = 32 << 20
"""Bytes written to a shard between two requests to begin writing them to disk."""


class Output:
    """An output folder under construction; made by `Output.open`, used in a `with` block, ended by `publish`.

    `finished` maps the tensors that an earlier, interrupted run of the same plan completed to their hashes.
    `write` and `finish` may be called from several threads at once.
    """

    def __init__(self, staging: Staging, layout: Layout, journal: Journal) -> None:
        """Hold what `open` has prepared."""
        self.layout = layout
        self._staging, self._journal = staging, journal
        self._fds: list[int] = []
        self._since = [0] * len(layout.shards)
        self._finished: dict[str, str] = {}
        self._guard = threading.Lock()

    @classmethod
    def open(
        cls,
        out: Path,
        layout: Layout,
        plan_hash: str,
        *,
        overwrite: bool = False,
        inputs: Sequence[Path] = (),
        recheck: bool = False,
    ) -> Output:
        """Claim the place, allocate the shards, write the headers, take over what an earlier run finished.

        `plan_hash` stands for everything that the values depend on. With `recheck`, tensors that the journal
        calls finished are hashed again even when the machine has not been restarted since. Raises
        RefusedError (see `claim.check_place`, `claim.take_lock`) and ResourceError (no space, no
        permission).
        """
        staging = Staging.claim(out, plan_hash, inputs, overwrite=overwrite)
        try:
            finished, journal = _resume(staging.partial, layout, plan_hash, recheck)
        except BaseException:
            if not (staging.partial / JOURNAL_NAME).exists():
                shutil.rmtree(staging.partial, ignore_errors=True)
            staging.lock.release()
            raise
        output = cls(staging, layout, journal)
        output._finished = finished
        try:
            for shard in layout.shards:
                output._fds.append(_open_shard(output.partial / shard.name, shard))
        except BaseException as error:
            output.__exit__(type(error), error, None)
            raise
        return output

    @property
    def out(self) -> Path:
        """Return where the model will be, links followed."""
        return self._staging.out

    @property
    def partial(self) -> Path:
        """Return where the model is written until then."""
        return self._staging.partial

    @property
    def published(self) -> bool:
        """Tell whether the model is in its place."""
        return self._staging.published

    @property
    def finished(self) -> dict[str, str]:
        """Map every tensor that is complete to its hash; to be read only."""
        return self._finished

    def write(self, name: str, offset: int, data: Any) -> None:
        """Write any contiguous buffer at `offset` of the tensor `name`; ResourceError if that fails."""
        view = memoryview(data)
        if view.nbytes == 0:
            return
        slot = self.layout.slots[name]
        if offset < 0 or offset + view.nbytes > slot.nbytes:
            raise ValueError(f"{name}: {view.nbytes} bytes at {offset} do not fit into {slot.nbytes}")
        fd, shard = self._fds[slot.shard], slot.shard
        try:
            write_all(fd, view.cast("B"), slot.offset + offset)
        except OSError as cause:
            raise resource_error(cause, self.partial / self.layout.shards[shard].name) from cause
        with self._guard:
            self._since[shard] += view.nbytes
            due = self._since[shard] >= _WRITEBACK
            if due:
                self._since[shard] = 0
        if due:
            start_writeback(fd, 0, 0)  # the whole file: pages on their way already are passed over

    def finish(self, name: str, digest: str) -> None:
        """Record that every byte of the tensor `name` is written; `digest` is its hash, for the manifest."""
        if name not in self.layout.slots:
            raise KeyError(name)
        self._journal.append(name, digest)
        with self._guard:
            self._finished[name] = digest

    def publish(self, files: Mapping[str, bytes | Path], manifest: bytes) -> tuple[str, ...]:
        """Make all durable, write the side files, then index and manifest, and rename the folder to OUT.

        `files` maps names (at most one folder deep) to bytes or to a file to copy. Returns warnings: what
        could not be tidied up after the new model was in place.
        """
        missing = [name for name in self.layout.slots if name not in self._finished]
        if missing:
            raise DeltasmithError(f"{len(missing)} tensors were never finished", where=printable(missing[0]))
        for name in files:
            _check_name(name)
        self._staging.refuse_newcomers()
        last = {INDEX_NAME: self.layout.index} if self.layout.index is not None else {}
        try:
            self._seal_shards()
            for name, content in [*sorted(files.items()), *last.items(), (MANIFEST_NAME, manifest)]:
                self._staging.place(name, content)
            self._journal.close()
            self._staging.publish(JOURNAL_NAME)
        except OSError as cause:
            raise resource_error(cause, cause.filename or self.partial) from cause
        return self._staging.tidy()

    def _seal_shards(self) -> None:
        """Flush every shard, and see that a reader would find the header and the size that were planned."""
        for fd, shard in zip(self._fds, self.layout.shards, strict=True):
            path = self.partial / shard.name
            try:
                os.fsync(fd)
                same = _holds(path, shard)
            except OSError as cause:
                # The kernel reports a lost write once, then calls the page clean: nothing can be believed.
                self._finished.clear()
                raise resource_error(cause, path) from cause
            if not same:
                self._finished.clear()
                raise ResourceError(
                    "the file was changed by someone else",
                    where=printable(os.fspath(path)),
                    fix="leave the output alone during the run, and run again",
                )

    def discard(self) -> None:
        """Give up: remove the partial folder. OUT itself is left as it was."""
        self._close_files()
        self._staging.discard()

    def close(self) -> None:
        """Close all files and release the lock; the partial folder stays, for the run that resumes it.

        No thread may be writing any more.
        """
        self._close_files()
        self._staging.lock.release()

    def _close_files(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the partial folder where resuming can help, remove it where it cannot."""
        if error is not None and (is_useless(error) or not self._finished):
            self.discard()
        else:
            self.close()


def _resume(partial: Path, layout: Layout, plan: str, recheck: bool) -> tuple[dict[str, str], Journal]:
    """Make or take over the partial folder: keep what can be believed, begin a journal that says only that.

    The journal comes before any shard is made anew, so that it never vouches for a tensor in a fresh one.
    """
    refuse_link(partial)
    try:
        partial.mkdir(exist_ok=True)
        boot = boot_id()
        found = replay(partial / JOURNAL_NAME)
        if found is None or found.plan != plan or found.layout != layout.digest:
            found = None
        _clear(partial, {JOURNAL_NAME, *(s.name for s in layout.shards)} if found else set())
        check = recheck or not boot or found is None or found.boot != boot
        finished = _believable(partial, layout, found.finished, check) if found else {}
        return finished, Journal.begin(partial / JOURNAL_NAME, plan, layout.digest, boot, finished)
    except OSError as cause:
        raise resource_error(cause, cause.filename or partial) from cause


def _believable(partial: Path, layout: Layout, claimed: Mapping[str, str], check: bool) -> dict[str, str]:
    """Return the tensors that are where the journal says, hashing them again if `check`."""
    finished: dict[str, str] = {}
    for shard in layout.shards:
        path = partial / shard.name
        if not _holds(path, shard):
            continue
        with path.open("rb") as file:
            for name in shard.tensors:
                slot = layout.slots[name]
                digest = claimed.get(name)
                if digest is None:
                    continue
                if not check or hash_file_range(file.fileno(), slot.offset, slot.nbytes) == digest:
                    finished[name] = digest
    return finished


def _holds(path: Path, shard: Shard) -> bool:
    """Tell whether the file has the size and begins with the header that the layout gives it."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return (
            os.fstat(file.fileno()).st_size == shard.nbytes and file.read(len(shard.header)) == shard.header
        )


def _clear(folder: Path, keep: set[str]) -> None:
    """Remove from a partial folder what this run will not use."""
    for entry in folder.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _open_shard(path: Path, shard: Shard) -> int:
    """Open one shard, give it its size and disk blocks, and write its header."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        allocate(fd, shard.nbytes)
        write_all(fd, memoryview(shard.header), 0)
    except BaseException as cause:
        if fd >= 0:
            os.close(fd)
        if isinstance(cause, OSError):
            raise resource_error(cause, path) from cause
        raise
    return fd


def _check_name(name: str) -> None:
    """Let side files in only under plain names that neither we nor any reader of weights would use."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and part.isprintable() and "\\" not in part for part in parts)
    weights = parts[0].startswith("model") or name.endswith(".safetensors")
    if not plain or len(parts) > 2 or weights or name in (MANIFEST_NAME, JOURNAL_NAME):
        raise ValueError(f"{name!r} cannot be the name of a side file")
