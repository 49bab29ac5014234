"""The SHA-256 of input files, for the manifest; a file that has not changed is not hashed twice.

Hashes are remembered in the user's cache directory under the file's device, inode, size and both time stamps.
A directory that cannot be used is simply not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from deltasmith.errors import DamagedInputError
from deltasmith.formats.sniff import open_regular

__all__ = ["HashCache", "blob_sha256", "cache_path", "sha256_of"]

_CHUNK = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
_KNOWN = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_MOST = 20_000  # remembered files
_MAX_BYTES = 16 << 20
_SETTLED_NS = 2_000_000_000  # file systems with coarse clocks: a later write may leave the same time stamp


class HashCache:
    """Remembered hashes: one small JSON file, read when first asked, replaced as a whole."""

    def __init__(self, path: Path | None, clock: Callable[[], int] = time.time_ns) -> None:
        """Remember in `path`, or nowhere if it is None; `clock` tells the time in nanoseconds."""
        self._path = path
        self._clock = clock

    def get(self, status: os.stat_result) -> str | None:
        """Return the hash of a file in exactly this state, if it is known."""
        return self.recall(_key(status))

    def put(self, status: os.stat_result, digest: str) -> None:
        """Remember a hash, unless the file is so young that a later change could go unnoticed."""
        self.remember(_key(status), digest, [status])

    def recall(self, key: str) -> str | None:
        """Return the hash that was remembered under a key."""
        return self._load().get(key)

    def remember(self, key: str, digest: str, files: Sequence[os.stat_result]) -> None:
        """Remember a hash that depends on these files, unless one of them is too young."""
        newest = max(max(status.st_ctime_ns, status.st_mtime_ns) for status in files)
        if self._path is None or self._clock() - newest < _SETTLED_NS:
            return
        entries = self._load()
        entries.pop(key, None)
        kept = dict(list(entries.items())[-(_MOST - 1) :]) | {key: digest}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".sha256-")
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    json.dump(kept, file)
                Path(name).replace(self._path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def _load(self) -> dict[str, str]:
        """Read what is remembered; anything odd is forgotten."""
        if self._path is None:
            return {}
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                return {}
            entries = json.loads(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(entries, dict):
            return {}
        return {k: v for k, v in entries.items() if isinstance(v, str) and _KNOWN.fullmatch(v)}


def cache_path() -> Path | None:
    """Name deltasmith/sha256.json in XDG_CACHE_HOME or ~/.cache, where hashes are kept; None if homeless."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "deltasmith" / "sha256.json" if Path(root).is_absolute() else None
    try:
        return Path.home() / ".cache" / "deltasmith" / "sha256.json"
    except RuntimeError:
        return None


def blob_sha256(path: str | Path, nbytes: int) -> str | None:
    """Return the hash that a Hugging Face cache gives a file by its name, if its size is `nbytes`.

    Large files lie in CACHE/models--…/blobs under the SHA-256 that the hub told; the download was checked
    against its size only. So this takes the hub at its word: a bit that flipped on this disk is not seen.
    """
    here = Path.cwd() / path
    candidates = [here]
    try:
        if here.is_symlink():
            # One step only: newer caches link blobs on to a shared store, whose names are other hashes.
            candidates.append(Path(os.path.normpath(here.parent / here.readlink())))
        for blob in candidates:
            in_repository = blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--")
            if in_repository and _HEX.fullmatch(blob.name) and blob.stat().st_size == nbytes:
                return blob.name
    except OSError:
        return None
    return None


def sha256_of(path: str | Path, nbytes: int | None = None, cache: HashCache | None = None) -> str:
    """Return the SHA-256 of a regular file, in hex.

    The file is read unless its hash is remembered for exactly its present state. With `nbytes`, the size that
    the hub promised, a blob of the Hugging Face cache is taken at its word (see `blob_sha256`).

    Raises:
        DamagedInputError: the file cannot be read, or it changed while it was read.
    """
    if nbytes is not None and (told := blob_sha256(path, nbytes)):
        return told
    cache = cache if cache is not None else HashCache(cache_path())
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        before = os.fstat(descriptor)
        if known := cache.get(before):
            return known
        digest = hashlib.sha256()
        buffer = bytearray(_CHUNK)
        try:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
        except OSError as cause:
            raise DamagedInputError(f"the file cannot be read ({cause.strerror})", where=str(path)) from cause
        if _key(os.fstat(descriptor)) != _key(before):
            raise DamagedInputError(
                "the file changed while it was hashed",
                where=str(path),
                fix="leave the inputs alone during the run, and run again",
            )
    cache.put(before, digest.hexdigest())
    return digest.hexdigest()


def _key(status: os.stat_result) -> str:
    """Write a file's state as the key of a JSON object."""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
