"""What a file is, told by its first bytes and its kind on disk, before anything tries to parse it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from deltasmith.errors import DamagedInputError, ResourceError

__all__ = ["open_regular", "read_head", "what_it_is"]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)
_MAGIC = (
    (b"version https://git-lfs", "a Git-LFS pointer", "run git lfs pull"),
    (b"GGUF", "a GGUF file", "use the original safetensors model"),
    (b"\x80", "a Python pickle", "run deltasmith convert, which reads it in a child process"),
    (
        b"PK\x03\x04",
        "a zip archive, perhaps a torch checkpoint or .npz",
        "run deltasmith convert on a .pt file",
    ),
    (b"\x93NUMPY", "a numpy array (.npy)", "pack named arrays with numpy.savez"),
    (b"\x89HDF", "an HDF5 file", "use the original safetensors model"),
    (b"\x1f\x8b", "gzip-compressed", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first"),
)


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor; never block on, or read from, anything else.

    Symbolic links are followed (whether a link may be followed is the caller's question).

    Raises:
        DamagedInputError: nothing is there, it may not be read, or it is a directory, pipe, device or socket.
        ResourceError: too many files are open.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        _refuse_special(
            Path(path).stat().st_mode, path
        )  # first, because merely opening some devices does things
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as cause:
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            fix = "raise the limit (ulimit -n)"
            raise ResourceError("too many files are open", where=str(path), fix=fix) from cause
        raise DamagedInputError(_reason(cause), where=str(path), fix=_remedy(cause)) from cause
    try:
        _refuse_special(os.fstat(descriptor).st_mode, path)  # again: the name may lead elsewhere by now
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_head(path: str | Path, count: int = 512) -> bytes:
    """Return the first `count` bytes of a regular file, fewer if it is shorter."""
    descriptor = open_regular(path)
    try:
        return os.pread(descriptor, count, 0)
    except OSError as cause:
        raise DamagedInputError(_reason(cause), where=str(path)) from cause
    finally:
        os.close(descriptor)


def what_it_is(head: bytes) -> tuple[str, str] | None:
    """Name the kind of a file that is not safetensors, and a remedy; None if its head tells nothing.

    >>> what_it_is(b"version https://git-lfs.github.com/spec/v1")
    ('a Git-LFS pointer', 'run git lfs pull')
    """
    if not head:
        return "an empty file", "fetch it again"
    for magic, kind, fix in _MAGIC:
        if head.startswith(magic):
            return kind, fix
    start = head.lstrip()[:100].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML or XML page, perhaps an error message of a server", "fetch it again"
    if not any(head):
        return "a file of zeros, as a lost write or an unfinished download leaves it", "fetch it again"
    return None


def _refuse_special(mode: int, path: str | Path) -> None:
    """Raise unless `mode` is that of a regular file."""
    if stat.S_ISREG(mode):
        return
    kind = next((kind for test, kind in _KINDS if test(mode)), "no regular file")
    raise DamagedInputError(
        f"found {kind} where a file was expected", where=str(path), fix="name a regular file"
    )


def _reason(cause: OSError | ValueError) -> str:
    """Say in a few words why a file could not be opened or read."""
    if isinstance(cause, FileNotFoundError):
        return "there is no such file"
    if isinstance(cause, PermissionError):
        return "the file may not be read (permission denied)"
    text = cause.strerror if isinstance(cause, OSError) else str(cause)
    return f"the file cannot be read ({text})"


def _remedy(cause: OSError | ValueError) -> str:
    """Say what to do about it."""
    return "check its mode and owner" if isinstance(cause, PermissionError) else "check the path"
