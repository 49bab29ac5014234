"""A folder being written beside its place: it is renamed to OUT at the very end, whole, or never appears.

Nothing here knows what the folder holds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasmith.errors import DeltasmithError, RefusedError, ResourceError, printable
from deltasmith.formats.claim import Lock, check_place, resolve_output, sweep_lock, take_lock
from deltasmith.formats.sniff import open_regular
from deltasmith.formats.system import exchange, resource_error, sync_folder

__all__ = ["Staging", "is_useless", "refuse_link"]

_NO_USE_TO_RESUME = {1, 2, 3, 6}
"""Exit codes after which the same command would fail the same way, so nothing is kept for it."""


def is_useless(error: BaseException) -> bool:
    """Tell whether the same command would meet the same error again, so that nothing need be kept for it."""
    return isinstance(error, DeltasmithError) and error.exit_code in _NO_USE_TO_RESUME


def refuse_link(partial: Path) -> None:
    """Refuse a partial folder that leads elsewhere."""
    if partial.is_symlink():
        raise RefusedError(
            "the folder to write in is a link", where=printable(os.fspath(partial)), fix="remove the link"
        )


@dataclass
class Staging:
    """A claimed place: `out` is where the result will be, `partial` where it is written until then.

    `key` stands for everything the result depends on: a later run with the same key finds the same `partial`.
    `replaced` is where an old OUT waits while the new one takes its place. `leftovers` are partial folders of
    interrupted runs with other keys, which nothing will ever use unless such a run is repeated.
    """

    out: Path
    partial: Path
    replaced: Path
    lock: Lock
    overwrite: bool
    published: bool = False
    leftovers: tuple[Path, ...] = ()

    @classmethod
    def claim(cls, out: Path, key: str, inputs: Sequence[Path] = (), *, overwrite: bool = False) -> Staging:
        """Check the place, lock it, and check again: whoever held the lock before may have published.

        Raises RefusedError (see `claim.check_place`, `claim.take_lock`) and ResourceError (no permission).
        """
        out = resolve_output(Path(out))
        partial, replaced = _neighbour(out, "partial", key), _neighbour(out, "replaced", key)
        try:
            check_place(out, inputs, overwrite=overwrite)
        except RefusedError:
            sweep_lock(out)
            raise
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise resource_error(cause, out.parent) from cause
        lock = take_lock(out)
        try:
            if replaced.is_dir() and not os.path.lexists(out):
                replaced.rename(out)  # an earlier run was killed between two renames: the old one goes back
            check_place(out, inputs, overwrite=overwrite)
        except BaseException:
            lock.release()
            raise
        return cls(out, partial, replaced, lock, overwrite, leftovers=_leftovers(out, partial))

    def refuse_newcomers(self) -> None:
        """Refuse to publish over files that have appeared in OUT since it was claimed."""
        if not self.overwrite and self.out.is_dir() and any(self.out.iterdir()):
            raise ResourceError(
                "files have appeared in the output while it was being written",
                where=printable(os.fspath(self.out)),
                fix="move them away, and run the same command again",
            )

    def place(self, name: str, content: bytes | Path) -> None:
        """Write one side file into the partial folder so that it is whole under its name, or absent."""
        path = self.partial / name
        if path.parent != self.partial:
            path.parent.mkdir(exist_ok=True)
        fresh = path.with_name(path.name + ".tmp")
        with fresh.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with os.fdopen(open_regular(content), "rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        if path.parent != self.partial:
            sync_folder(path.parent)

    def publish(self, journal: str) -> None:
        """Rename the partial folder, less its journal, to OUT, durably; put the journal back if that fails.

        Killed between the two, a run has to be repeated from the beginning: the price for never showing a
        journal in OUT, and for never mistaking an old output, swapped out, for a half-written new one.
        """
        sync_folder(self.partial)
        path = self.partial / journal
        lines = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        try:
            self._swap()
        except OSError:
            if lines is not None:
                self.place(journal, lines)
            raise
        self.published = True
        sync_folder(self.out)
        sync_folder(self.out.parent)

    def _swap(self) -> None:
        """Rename the partial folder to OUT; an old OUT stays complete until the new one is in its place."""
        if not (self.overwrite and self.out.is_dir() and any(self.out.iterdir())):
            self.partial.rename(self.out)  # fails if OUT is a folder that is not empty
        elif not exchange(self.partial, self.out):
            self.out.rename(self.replaced)
            try:
                self.partial.rename(self.out)
            except OSError:
                self.replaced.rename(self.out)
                raise

    def tidy(self) -> tuple[str, ...]:
        """Remove the old output after the new one is in place; return warnings: where that failed, and leftovers."""
        left = tuple(
            f"{printable(folder.name)} is left from an interrupted run with other settings; "
            "remove it if it is not wanted"
            for folder in self.leftovers
            if folder.is_dir()
        )
        return (*left, *_remove(self.replaced), *_remove(self.partial))

    def discard(self) -> None:
        """Give up: remove the partial folder and let go of the place. OUT itself is left as it was."""
        if not self.published:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.lock.release()


def _neighbour(out: Path, kind: str, key: str) -> Path:
    """Name a folder beside OUT: `partial` is being written, `replaced` an old OUT that has made room."""
    return out.with_name(f"{out.name}.{kind}-{key[:8]}")


def _leftovers(out: Path, partial: Path) -> tuple[Path, ...]:
    """Find what runs with other keys have left beside OUT; nothing where the folder cannot be listed."""
    try:
        with os.scandir(out.parent) as entries:
            found = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return ()
    left = (name for name in sorted(found) if name.startswith(f"{out.name}.partial-"))
    return tuple(out.with_name(name) for name in left if name != partial.name)


def _remove(folder: Path) -> tuple[str, ...]:
    """Remove what is left; a failure is worth a warning, since the new output is in place."""
    if not folder.exists():
        return ()
    try:
        shutil.rmtree(folder)
    except OSError as cause:
        return (f"the old output could not be removed: {printable(str(cause))}",)
    return ()
