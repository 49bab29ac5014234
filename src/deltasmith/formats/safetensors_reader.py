"""Checkpoints over safetensors files: positioned reads into reused buffers, then decoding. Nothing is mapped.

A mapped file that shrinks kills the process with SIGBUS; a positioned read merely comes back short.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.safetensors_header import read_header
from deltasmith.formats.sniff import open_regular
from deltasmith.kernels.decode import decode, decode_difference
from deltasmith.table.checkpoint import Floats, SourceFile, Spec

__all__ = ["CHUNK", "Files", "Identity", "SafetensorsFile", "refuse_changed"]

CHUNK = 1 << 19
"""Bytes read at once before decoding: they are still in cache when they are decoded."""

_CHANGED = "leave the inputs alone during the run, and run again"


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one state of a file from another without reading it."""

    device: int
    inode: int
    nbytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Take it from a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Files:
    """A few open descriptors and one scratch buffer per thread, shared by all files of a checkpoint.

    At most `limit` descriptors stay open (more only while more threads than that read at once); the one
    unused for longest is closed first. May be used from any number of threads.
    """

    def __init__(self, limit: int = 16) -> None:
        """Open nothing yet."""
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()  # path -> (descriptor, readers)
        self._local = threading.local()

    @contextmanager
    def descriptor(self, path: str, identity: Identity | None = None) -> Iterator[int]:
        """Lend an open descriptor of `path`; refuse if the file is no longer the one `identity` describes."""
        with self._lock:
            found = self._open.pop(path, None)
            if found is None:
                self._close_idle(self._limit - 1)
                found = (_open_same(path, identity), 0)
            self._open[path] = (found[0], found[1] + 1)
        try:
            yield found[0]
        finally:
            with self._lock:
                descriptor, readers = self._open[path]
                self._open[path] = (descriptor, readers - 1)
                self._close_idle(self._limit)

    @property
    def open_count(self) -> int:
        """Count the descriptors open now."""
        return len(self._open)

    def scratch(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Return this thread's buffer, cut to `nbytes` (at most CHUNK); its next use overwrites it."""
        buffer: npt.NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = np.empty(CHUNK, dtype=np.uint8)
        return buffer[:nbytes]

    def close(self) -> None:
        """Close every descriptor that no reader holds; a later read opens its file again."""
        with self._lock:
            self._close_idle(0)

    def __del__(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)

    def _close_idle(self, allowed: int) -> None:
        """Close descriptors without readers, oldest use first, until `allowed` are left."""
        for path in [path for path, (_, readers) in self._open.items() if readers == 0]:
            if len(self._open) <= allowed:
                return
            os.close(self._open.pop(path)[0])


class SafetensorsFile:
    """One safetensors file as a checkpoint: specs from its checked header, values by positioned reads."""

    def __init__(self, path: str | Path, *, name: str | None = None, files: Files | None = None) -> None:
        """Read and check the header; `name` is what the manifest calls the file (default: its own name).

        Raises:
            DamagedInputError: see `parse_header` and `open_regular`.
        """
        self.path = str(path)
        self.name = name if name is not None else Path(path).name
        self._files = files if files is not None else Files()
        with self._files.descriptor(self.path) as descriptor:
            self.identity = Identity.of(os.fstat(descriptor))
            self.header = read_header(descriptor, self.path)

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Map every tensor name to its spec, in the order of their bytes in the file."""
        return self.header.specs

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the one file."""
        return (SourceFile(self.name, self.path, self.identity.nbytes),)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the header's `__metadata__`, empty if it has none."""
        return self.header.metadata

    def read(self, name: str, start: int, out: Floats) -> None:
        """Decode elements [start, start + out.size) of a floating tensor into float32 `out` (1-D).

        Raises:
            DamagedInputError: the file has shrunk, was replaced, or cannot be read.
            ValueError: the tensor is not floating, or the range lies outside it (a mistake of the caller).
        """
        spec, position = self._locate(name, start, start + out.size)
        if spec.dtype.name == "float32":
            with self._files.descriptor(self.path, self.identity) as descriptor:
                self._fill(descriptor, out.view(np.uint8).data, position, name)
            return
        for raw, done in self._pieces(spec, position, out.size):
            decode(spec.dtype.name, raw, out[done : done + CHUNK // spec.dtype.itemsize])

    def read_difference(self, name: str, start: int, base: Floats, out: Floats) -> None:
        """Decode elements [start, start + out.size) and subtract `base` from them, into `out` (all 1-D).

        The same as `read` and a subtraction, with one trip through memory less. Raises what `read` raises.
        """
        spec, position = self._locate(name, start, start + out.size)
        for raw, done in self._pieces(spec, position, out.size):
            piece = slice(done, done + CHUNK // spec.dtype.itemsize)
            decode_difference(spec.dtype.name, raw, base[piece], out[piece])

    def _pieces(self, spec: Spec, position: int, size: int) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        """Yield the stored bytes of `size` elements in chunks, each with the number of elements before it."""
        if not spec.dtype.floating:
            raise ValueError(f"tensor {spec.name} is {spec.dtype} and is never turned into float32")
        width = spec.dtype.itemsize
        step = CHUNK // width
        with self._files.descriptor(self.path, self.identity) as descriptor:
            for done in range(0, size, step):
                raw = self._files.scratch(min(step, size - done) * width)
                self._fill(descriptor, raw.data, position + done * width, spec.name)
                yield raw, done

    def raw(self, name: str, start: int, stop: int) -> bytes:
        """Return the stored little-endian bytes of elements [start, stop), undecoded.

        Raises:
            DamagedInputError: the file has shrunk, was replaced, or cannot be read.
        """
        spec, position = self._locate(name, start, stop)
        wanted = (stop - start) * spec.dtype.itemsize
        pieces = []
        with self._files.descriptor(self.path, self.identity) as descriptor:
            while wanted:
                try:
                    piece = os.pread(descriptor, wanted, position)
                except OSError as cause:
                    raise self._unreadable(cause, name) from cause
                if not piece:
                    raise self._cut_off(position, wanted, name)
                pieces.append(piece)
                wanted -= len(piece)
                position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def raw_into(self, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
        """Write the stored bytes from element `start` on into 1-D `out`. Raises what `raw` raises."""
        width = self.header.specs[name].dtype.itemsize
        _, position = self._locate(name, start, start + out.size // width)
        with self._files.descriptor(self.path, self.identity) as descriptor:
            self._fill(descriptor, out.data, position, name)

    def check_unchanged(self) -> None:
        """Refuse if the file is no longer the one that was opened: replaced, resized or written to.

        Raises:
            DamagedInputError: naming the file and what is different.
        """
        refuse_changed(self.path, self.identity)

    def close(self) -> None:
        """Close the file until the next read."""
        self._files.close()

    def _locate(self, name: str, start: int, stop: int) -> tuple[Spec, int]:
        """Return the spec and the file position of element `start`, once the range is known to be inside."""
        spec = self.header.specs[name]
        if not 0 <= start <= stop <= spec.size:
            raise ValueError(f"elements [{start}, {stop}) are outside tensor {name} of {spec.size} elements")
        return spec, self.header.begins[name] + start * spec.dtype.itemsize

    def _fill(self, descriptor: int, buffer: memoryview, position: int, name: str) -> None:
        """Read until `buffer` is full: the kernel may return less than was asked for."""
        while buffer.nbytes:
            try:
                count = os.preadv(descriptor, [buffer], position)
            except OSError as cause:
                raise self._unreadable(cause, name) from cause
            if count == 0:
                raise self._cut_off(position, buffer.nbytes, name)
            buffer = buffer[count:]
            position += count

    def _cut_off(self, position: int, missing: int, name: str) -> DamagedInputError:
        """Describe a file that ends where it had bytes before."""
        return DamagedInputError(
            f'the file ended at byte {position} while tensor "{printable(name)}" was read, {missing} bytes '
            f"early ({self.identity.nbytes} bytes when it was opened)",
            where=self.path,
            fix=_CHANGED,
        )

    def _unreadable(self, cause: OSError, name: str) -> DamagedInputError:
        """Describe a read that the system refused."""
        return DamagedInputError(
            f'tensor "{printable(name)}" cannot be read ({cause.strerror})',
            where=self.path,
            fix="check the disk and the file's mode",
        )


def refuse_changed(path: str, identity: Identity) -> None:
    """Refuse if `path` no longer leads to the file in the state that `identity` describes.

    Raises:
        DamagedInputError: naming the file and what is different.
    """
    try:
        now = Identity.of(Path(path).stat())
    except OSError as cause:
        raise DamagedInputError(
            f"the file vanished while it was read ({cause.strerror})", where=path, fix=_CHANGED
        ) from cause
    _refuse_other(path, identity, now)


def _open_same(path: str, identity: Identity | None) -> int:
    """Open a regular file and make sure that it is the one known before."""
    descriptor = open_regular(path)
    if identity is not None:
        try:
            _refuse_other(path, identity, Identity.of(os.fstat(descriptor)))
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _refuse_other(path: str, before: Identity, now: Identity) -> None:
    """Raise unless both identities are equal."""
    if now == before:
        return
    if now.nbytes != before.nbytes:
        what = f"its size went from {before.nbytes} to {now.nbytes} bytes"
    elif (now.device, now.inode) != (before.device, before.inode):
        what = "another file has taken its place"
    else:
        what = "it was written to"
    raise DamagedInputError(f"the file changed while it was read: {what}", where=path, fix=_CHANGED)
