"""What the system offers a careful writer beyond `os`, each call with a harmless substitute; its errors.

Nothing here knows about tensors or models.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from deltasmith.errors import ResourceError, printable

__all__ = ["allocate", "boot_id", "exchange", "resource_error", "start_writeback", "sync_folder", "write_all"]

_WORDS = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space, and run the same command again",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space, and run the same command again"),
    errno.EFBIG: ("the file may not grow so large", "use smaller shards, or raise the limit (ulimit -f)"),
    errno.EIO: ("the disk reports an input/output error", "check the disk, and run the same command again"),
    errno.EROFS: ("the file system is read-only", "write somewhere else"),
    errno.EACCES: ("permission denied", "write somewhere else, or change the permissions"),
    errno.EPERM: ("permission denied", "write somewhere else, or change the permissions"),
    errno.EMFILE: ("too many open files", "use larger shards, or raise the limit (ulimit -n)"),
    errno.ENFILE: (
        "too many open files on this machine",
        "close some programs, and try again",
    ),
    errno.ENAMETOOLONG: ("the file name is too long", "write to a shorter path"),
}
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_SYNC_FILE_RANGE_WRITE = 2
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def resource_error(cause: OSError, path: str | os.PathLike[str]) -> ResourceError:
    """Name the file and the remedy for an error of the operating system met while writing."""
    known = _WORDS.get(cause.errno or 0)
    what, fix = known or (
        cause.strerror or str(cause),
        "see what is wrong there, and run the same command again",
    )
    return ResourceError(what, where=printable(os.fspath(path)), fix=fix)


@cache
def _libc() -> ctypes.CDLL | None:
    """Load the C library, on Linux only: the calls below exist nowhere else."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


def _c_function(name: str, *arguments: type) -> Callable[..., int] | None:
    """Find a C function that returns 0 or sets errno."""
    function = getattr(_libc(), name, None)
    if function is None:
        return None
    function.argtypes = list(arguments)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def allocate(fd: int, nbytes: int) -> None:
    """Give the file its final size and its disk blocks now; OSError(ENOSPC) when they do not exist.

    Linux's own call, not `os.posix_fallocate`: where a file system cannot allocate, the C library would
    write to every block instead, which takes hours on a network disk. There the size is set and the free
    space compared.
    """
    fallocate = _c_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate is not None and nbytes:
        while fallocate(fd, 0, 0, nbytes):
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                break
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        else:
            os.ftruncate(fd, nbytes)  # a longer file left by an earlier attempt
            return
    status = os.fstatvfs(fd)
    if nbytes - os.fstat(fd).st_blocks * 512 > status.f_bavail * status.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, nbytes)


def start_writeback(fd: int, start: int, nbytes: int) -> None:
    """Ask the kernel to begin writing a range to disk, without waiting; do nothing where that is unknown."""
    sync = _c_function("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if sync is not None:
        sync(fd, start, nbytes, _SYNC_FILE_RANGE_WRITE)  # a refusal costs nothing: fsync comes later anyway


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`, however few the system takes at a time."""
    while data.nbytes:
        count = os.pwrite(fd, data, offset)
        if count <= 0:
            raise OSError(errno.EIO, "the system wrote nothing")
        data, offset = data[count:], offset + count


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; file systems that cannot are passed over."""
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as cause:
        if cause.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    swap = _c_function(
        "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    )
    if swap is None:
        return False
    if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


def boot_id() -> str:
    """Return what tells this run of the kernel from the one before a crash; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
