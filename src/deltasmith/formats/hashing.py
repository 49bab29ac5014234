"""The hash of a tensor: computed from pieces that arrive in any order, or from a file.

tensor hash = xxh3_128 over the 16-byte xxh3_128 digests of its 1 MiB chunks, in order (the last chunk may be
shorter; a tensor of no bytes hashes the empty string). It does not depend on how the bytes were cut into
tiles.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import xxhash

from deltasmith.errors import DamagedInputError

__all__ = [
    "CHUNK",
    "ChunkHasher",
    "SequentialHasher",
    "combine_chunks",
    "file_chunks",
    "hash_bytes",
    "hash_file_range",
]

CHUNK = 1 << 20
"""Bytes per chunk of a tensor hash. Part of the format: changing it changes every manifest."""


@dataclass(slots=True)
class _OpenChunk:
    """A chunk seen in part: a running hash up to `reached`, and what lies beyond a gap."""

    size: int
    state: Any = field(default_factory=xxhash.xxh3_128)
    reached: int = 0
    ahead: dict[int, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, start: int, data: memoryview) -> bool:
        """Take the bytes at `start` of the chunk; return True once the chunk is whole."""
        with self.lock:
            stop = start + data.nbytes
            if start < self.reached or any(s < stop and start < s + len(d) for s, d in self.ahead.items()):
                raise ValueError(f"bytes {start} to {stop} of a chunk were hashed before")
            if start > self.reached:
                self.ahead[start] = data.tobytes()
                return False
            self.state.update(data)
            self.reached = stop
            while self.reached in self.ahead:
                waiting = self.ahead.pop(self.reached)
                self.state.update(waiting)
                self.reached += len(waiting)
            return self.reached == self.size


class ChunkHasher:
    """Hash one tensor of `nbytes` bytes from pieces given in any order, by any number of threads.

    Each byte must be given exactly once. Whole chunks within a piece are hashed where they lie; bytes at its
    edges run into a hash kept per unfinished chunk, and are copied only while bytes before them are missing.
    Memory: 16 bytes per chunk, and at most the unfinished chunks themselves.

    >>> hasher = ChunkHasher(5)
    >>> hasher.add(3, b"lo"); hasher.add(0, b"hel")
    >>> hasher.digest() == hash_bytes(b"hello")
    True
    """

    def __init__(self, nbytes: int) -> None:
        """Expect `nbytes` bytes in all."""
        self.nbytes = nbytes
        self._missing = -(-nbytes // CHUNK)
        self._digests: list[bytes | None] = [None] * self._missing
        self._open: dict[int, _OpenChunk] = {}
        self._lock = threading.Lock()

    def add(self, offset: int, data: Any) -> None:
        """Hash the bytes of `data` (any contiguous buffer) that lie at `offset` of the tensor."""
        view = memoryview(data)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        if offset < 0 or offset + view.nbytes > self.nbytes:
            raise ValueError(
                f"bytes {offset} to {offset + view.nbytes} lie outside a tensor of {self.nbytes} bytes"
            )
        at = 0
        while at < view.nbytes:
            index, start = divmod(offset + at, CHUNK)
            stop = min(view.nbytes, at + CHUNK - start)
            self._add_to_chunk(index, start, view[at:stop])
            at = stop

    def _add_to_chunk(self, index: int, start: int, data: memoryview) -> None:
        size = min(CHUNK, self.nbytes - index * CHUNK)
        if data.nbytes == size:
            digest = xxhash.xxh3_128_digest(data)
        else:
            with self._lock:
                if self._digests[index] is not None:
                    raise ValueError(f"chunk {index} was hashed before")
                chunk = self._open.setdefault(index, _OpenChunk(size))
            if not chunk.add(start, data):
                return
            digest = chunk.state.digest()
        with self._lock:
            chunk_before = self._open.pop(index, None)
            if self._digests[index] is not None or (data.nbytes == size and chunk_before is not None):
                raise ValueError(f"chunk {index} was hashed before")
            self._digests[index] = digest
            self._missing -= 1

    @property
    def complete(self) -> bool:
        """Tell whether every byte has been given."""
        return self._missing == 0

    def digest(self) -> str:
        """Return the tensor's hash as 32 hexadecimal digits; ValueError while bytes are missing."""
        if self._missing:
            raise ValueError(f"{self._missing} of {len(self._digests)} chunks are not complete")
        return xxhash.xxh3_128_hexdigest(b"".join(d for d in self._digests if d is not None))


class SequentialHasher:
    """Hash one tensor whose bytes come in order, without knowing beforehand how many.

    >>> hasher = SequentialHasher()
    >>> hasher.add(b"hel"); hasher.add(b"lo")
    >>> hasher.digest() == hash_bytes(b"hello")
    True
    """

    def __init__(self) -> None:
        """Begin with no bytes."""
        self._digests: list[bytes] = []
        self._state = xxhash.xxh3_128()
        self._filled = 0

    def add(self, data: Any) -> None:
        """Take the next bytes, any contiguous buffer."""
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        while view.nbytes:
            piece = view[: CHUNK - self._filled]
            self._state.update(piece)
            self._filled += piece.nbytes
            view = view[piece.nbytes :]
            if self._filled == CHUNK:
                self._digests.append(self._state.digest())
                self._state, self._filled = xxhash.xxh3_128(), 0

    def digest(self) -> str:
        """Return the tensor's hash as 32 hexadecimal digits."""
        last = [self._state.digest()] if self._filled else []
        return xxhash.xxh3_128_hexdigest(b"".join(self._digests + last))


def combine_chunks(chunks: Iterable[Any]) -> str:
    """Hash a tensor from its chunks in order, each of CHUNK bytes but the last."""
    return xxhash.xxh3_128_hexdigest(b"".join(xxhash.xxh3_128_digest(chunk) for chunk in chunks))


def hash_bytes(data: Any) -> str:
    """Hash a tensor whose bytes are all in memory."""
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    return combine_chunks(view[at : at + CHUNK] for at in range(0, view.nbytes, CHUNK))


def file_chunks(fd: int, start: int, nbytes: int) -> Iterator[memoryview]:
    """Yield the chunks of the tensor at `start` of an open file; each is valid until the next is drawn."""
    buffer = memoryview(bytearray(min(CHUNK, nbytes)))
    for at in range(0, nbytes, CHUNK):
        chunk = buffer[: min(CHUNK, nbytes - at)]
        done = 0
        while done < chunk.nbytes:
            count = os.preadv(fd, [chunk[done:]], start + at + done)
            if count == 0:
                raise DamagedInputError(
                    f"the file ends at byte {start + at + done}, {nbytes - at - done} bytes too early"
                )
            done += count
        yield chunk


def hash_file_range(fd: int, start: int, nbytes: int) -> str:
    """Hash the tensor whose bytes lie at [start, start + nbytes) of an open file."""
    return combine_chunks(file_chunks(fd, start, nbytes))
