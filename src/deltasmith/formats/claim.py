"""The right to write to a folder: what may never be written over, and who is writing there already."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltasmith.errors import RefusedError, ResourceError, printable
from deltasmith.formats.system import resource_error, write_all

__all__ = ["LOCK_SUFFIX", "Lock", "check_place", "resolve_output", "sweep_lock", "take_lock"]

LOCK_SUFFIX = ".partial.lock"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}

Identity = tuple[int, int]


def resolve_output(out: Path) -> Path:
    """Return the absolute path that `out` stands for, links followed: its neighbours share its disk."""
    return Path(os.path.realpath(out))


def check_place(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Raise RefusedError unless `out` (resolved) may be created, or with `overwrite` replaced.

    Refused: an output that is an input, lies inside an input folder, or holds an input, however the paths
    are spelt (links, case, bind mounts: files are compared by device and inode); a file; a mount point; a
    folder that is not empty, unless `overwrite` is given and it looks like a model and not like anything
    else.
    """
    for given in inputs:
        _refuse_overlap(out, given)
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise RefusedError("the output exists and is a file", where=_shown(out), fix="choose another output")
    names = sorted(entry.name for entry in out.iterdir())
    if out.is_mount():
        raise RefusedError(
            "the output is a mount point, which nothing can be renamed to",
            where=_shown(out),
            fix=f"write to a folder inside it, such as {_shown(out / 'model')}",
        )
    if not names:
        return
    if not overwrite:
        raise RefusedError(
            "the output exists and is not empty",
            where=_shown(out),
            fix="choose another output, or replace it with --overwrite",
        )
    models = [n for n in names if n in ("config.json", "manifest.json") or n.endswith(".safetensors")]
    if not models or ".git" in names:
        what = "a git repository" if ".git" in names else "no model"
        raise RefusedError(
            f"the output to be replaced holds {what}",
            where=_shown(out),
            fix="choose another output, or move that folder away yourself",
        )
    _refuse_holding(out, inputs)


def _shown(path: Path) -> str:
    return printable(os.fspath(path))


def _identity(path: Path) -> Identity | None:
    """Return what makes two names the same file; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _files_of(given: Path) -> Iterator[Path]:
    """Yield an input, and what the links in its folder point to (a hub cache keeps the bytes elsewhere)."""
    real = Path(os.path.realpath(given))
    yield real
    if real.is_dir():
        yield from (Path(os.path.realpath(entry)) for entry in sorted(real.iterdir()) if entry.is_symlink())


def _refuse_overlap(out: Path, given: Path) -> None:
    """Compare the output and its parents with the input, and the output with the input's parents."""
    ours = [identity for path in (out, *out.parents) if (identity := _identity(path))]
    target = _identity(out)
    for path in _files_of(given):
        theirs = _identity(path)
        if theirs is None:
            continue
        how = ""
        if theirs == target:
            how = "is the input"
        elif theirs in ours:
            how = "lies inside the input"
        elif target is not None and any(_identity(parent) == target for parent in path.parents):
            how = "holds the input"
        if how:
            raise RefusedError(
                f"the output {how} {_shown(given)}",
                where=_shown(out),
                fix="choose an output outside all inputs",
            )


def _refuse_holding(out: Path, inputs: Sequence[Path]) -> None:
    """Look through a folder about to be replaced for anything that is an input under another name."""
    wanted = {
        identity: given for given in inputs for path in _files_of(given) if (identity := _identity(path))
    }
    for folder, subfolders, files in os.walk(out):
        for name in (*subfolders, *files):
            identity = _identity(Path(folder, name))
            if identity and identity in wanted and not Path(folder, name).is_symlink():
                raise RefusedError(
                    f"the output holds the input {_shown(wanted[identity])}",
                    where=_shown(Path(folder, name)),
                    fix="choose another output",
                )


@dataclass(slots=True)
class Lock:
    """A held lock; `held` is False where the file system has no locks and nothing could be taken."""

    path: Path
    fd: int
    held: bool = True

    def release(self) -> None:
        """Remove the file and let go, as the kernel does when the process dies. Twice does nothing."""
        if self.fd >= 0:
            self.path.unlink(missing_ok=True)  # while it is still locked: nobody else can be about to hold it
            os.close(self.fd)
            self.fd = -1


def take_lock(out: Path) -> Lock:
    """Lock the output `out`, whatever the plan; RefusedError names the process that is writing it already.

    The lock is the kernel's (flock) on a file beside the output, so it ends with its process and no stale
    one can block a later run. A file that its holder has removed in between is noticed by its inode, and
    made anew.
    """
    path = out.with_name(out.name + LOCK_SUFFIX)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as cause:
            raise resource_error(cause, path) from cause
        try:
            held = _flock(fd, path, out)
            status = os.fstat(fd)
            if _identity(path) == (status.st_dev, status.st_ino):
                note = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n"
                with suppress(OSError):  # a full disk, perhaps: the note only helps others to word a message
                    os.ftruncate(fd, 0)
                    write_all(fd, memoryview(note.encode()), 0)
                return Lock(path, fd, held)
        except OSError as cause:
            os.close(fd)
            raise resource_error(cause, path) from cause
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def sweep_lock(out: Path) -> None:
    """Remove the lock file of a process that was killed just after it had renamed its folder to `out`."""
    if out.with_name(out.name + LOCK_SUFFIX).exists():
        with suppress(RefusedError, ResourceError):
            take_lock(out).release()


def _flock(fd: int, path: Path, out: Path) -> bool:
    """Lock without waiting; False where the file system knows no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusedError(
            f"another process {_holder(path)} is writing this output",
            where=_shown(out),
            fix="wait for it to finish, or choose another output",
        ) from None
    except OSError as cause:
        if cause.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _holder(path: Path) -> str:
    """Describe the process that wrote its name into a lock file."""
    try:
        note = json.loads(path.read_text("utf-8")[:1000])
        return f"(process {int(note['pid'])} on {printable(str(note['host']), 60)})"
    except (OSError, ValueError, TypeError, KeyError):
        return "(unknown)"
