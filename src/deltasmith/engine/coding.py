"""Coding tensors: blocks in parallel, their bytes committed in order, so that a file can grow from front to back.

Workers read and code; whoever finishes the block that is due commits it and every finished one behind it. What
was coded ahead of its turn waits in memory, up to a limit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from deltasmith.codecs.protocol import Array, Cell, Codec, Coded, Encoder, Ending, Stream, Words
from deltasmith.engine.progress import Progress
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.errors import RefusedError, ResourceError, printable
from deltasmith.formats.hashing import ChunkHasher
from deltasmith.formats.packed_writer import key_of

__all__ = ["CodingTask", "Values", "code", "workers_within"]

_SPAN = 1 << 20
"""Elements of one job: as many whole blocks as reach it."""
_AHEAD = 64 << 20
"""Bytes that may wait for their turn."""
_RESERVED = 192 << 20
_FLOAT = 4
_ARRAYS = 2  # values and base; what coding a block takes beside them, the codec tells


class Values(Protocol):
    """Where the values of one tensor come from. May be read from several threads."""

    def read(self, start: int, stop: int) -> tuple[Array, Words | None]:
        """Return elements [start, stop) as the codec's domain asks: float32, or words and their prediction."""


class Sink(Protocol):
    """Where coded tensors go, one after the other."""

    def begin(self, name: str, streams: Sequence[Stream], suffix: str) -> None:
        """Hear that a tensor begins."""

    def append(self, coded: Coded) -> None:
        """Take one block."""

    def end(self, ending: Ending, xxh3_128: str | None = None) -> Any:
        """Take the arrays that close a tensor."""


@dataclass
class CodingTask:
    """One tensor to be coded: by which codec, from which values.

    `suffix` ends the names of its arrays where several models have a tensor of this name. `by` encodes instead of
    the codec's own encoder, which only codes one model at a time.
    """

    cell: Cell
    codec: Codec
    values: Values
    suffix: str = ""
    by: Encoder | None = None
    encoder: Encoder = field(init=False)
    hasher: ChunkHasher | None = field(init=False)

    def __post_init__(self) -> None:
        """Ask the codec for an encoder."""
        self.encoder = self.by if self.by is not None else self.codec.encoder(self.cell)
        exact = self.codec.domain == "stored"
        self.hasher = ChunkHasher(self.cell.spec.nbytes) if exact else None

    @property
    def name(self) -> str:
        """Return the tensor's name."""
        return self.cell.spec.name

    @property
    def key(self) -> str:
        """Return what a finished tensor is remembered as."""
        return key_of(self.name, self.suffix)

    @property
    def span(self) -> int:
        """Count the elements of one job."""
        block = self.encoder.block
        return block * max(1, _SPAN // block)

    @property
    def needs(self) -> int:
        """Count the bytes that one job takes."""
        elements = min(self.cell.spec.size, self.span)
        return elements * _FLOAT * _ARRAYS + self.codec.workspace(self.cell)


def workers_within(tasks: Sequence[CodingTask], memory: int, threads: int) -> int:
    """Return how many jobs fit the budget at once; ResourceError (exit 4) naming the budget that would do."""
    if not tasks:
        return 1
    largest = max(tasks, key=lambda task: task.needs)
    free = memory - _RESERVED - _AHEAD
    if largest.needs > free:
        enough = -(-(largest.needs + _RESERVED + _AHEAD) // (1 << 20))
        raise ResourceError(
            f"coding takes {largest.needs >> 20} MiB for this tensor, beyond the budget of {memory >> 20} MiB",
            where=printable(largest.name),
            fix=f"give --memory {enough}M or more, or another codec for it",
        )
    return max(1, min(threads, free // max(1, largest.needs)))


Job = tuple[int, CodingTask, int, int]


def code(
    tasks: Sequence[CodingTask], sink: Sink, *, threads: int, memory: int, stop: Stop, progress: Progress
) -> None:
    """Code every tensor in order and hand its arrays to `sink`. The bytes do not depend on `threads` or `memory`.

    Raises RefusedError for values a codec cannot take, ResourceError if a tensor does not fit the budget.
    """
    workers = workers_within(tasks, memory, threads)
    progress.phase("packing", sum(task.cell.spec.nbytes for task in tasks))
    queue = _Turnstile(sink, progress)
    with threadpool_limits(limits=1, user_api="blas"):
        run_jobs(_jobs(tasks), queue.work, range(workers), stop)


def _jobs(tasks: Sequence[CodingTask]) -> Iterator[Job]:
    number = 0
    for task in tasks:
        size = task.cell.spec.size
        for start in range(0, size, task.span) if size else (0,):
            yield number, task, start, min(size, start + task.span)
            number += 1


@dataclass(frozen=True)
class _Done:
    """One coded job, waiting for its turn."""

    task: CodingTask
    start: int
    stop: int
    blocks: list[Coded]
    nbytes: int


class _Turnstile:
    """Lets finished jobs through in the order of their numbers."""

    def __init__(self, sink: Sink, progress: Progress) -> None:
        self._sink, self._progress = sink, progress
        self._due = 0
        self._waiting: dict[int, _Done] = {}
        self._held = 0
        self._failed = False
        self._tallies: list[Any] = []
        self._changed = threading.Condition()

    def work(self, job: Job, _: int) -> None:
        """Code one job; commit what is due."""
        number, task, start, stop = job
        try:
            done = _coded(task, start, stop)
            self._hand_in(number, done)
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise

    def _hand_in(self, number: int, done: _Done) -> None:
        with self._changed:
            self._waiting[number] = done
            self._held += done.nbytes
            while self._due in self._waiting:
                due = self._waiting.pop(self._due)
                self._commit(due)
                self._held -= due.nbytes
                self._due += 1
            self._changed.notify_all()
            while self._held > _AHEAD and self._due <= number and not self._failed:
                self._changed.wait(1.0)

    def _commit(self, done: _Done) -> None:
        task = done.task
        if done.start == 0:
            self._sink.begin(task.name, task.encoder.streams, task.suffix)
            self._tallies = []
        for coded in done.blocks:
            self._sink.append(coded)
            self._tallies.append(coded.tally)
        if done.stop >= task.cell.spec.size:
            digest = task.hasher.digest() if task.hasher is not None else None
            self._sink.end(task.encoder.finish(self._tallies), digest)
        self._progress.advance((done.stop - done.start) * task.cell.spec.dtype.itemsize)


def _coded(task: CodingTask, start: int, stop: int) -> _Done:
    """Read and code the blocks of one job."""
    blocks: list[Coded] = []
    size = task.encoder.block
    if stop > start:
        values, predicted = task.values.read(start, stop)
        if task.hasher is not None:
            task.hasher.add(start * task.cell.spec.dtype.itemsize, values.view(np.uint8))
        for at in range(0, stop - start, size):
            ahead = None if predicted is None else predicted[at : at + size]
            try:
                blocks.append(task.encoder.encode(start + at, values[at : at + size], ahead))
            except ValueError as cause:
                raise RefusedError(
                    f"the codec cannot take these values ({cause})",
                    where=printable(task.name),
                    fix="choose another",
                ) from cause
    return _Done(task, start, stop, blocks, sum(_nbytes(c) for c in blocks))


def _nbytes(coded: Coded) -> int:
    total = sum(p.nbytes if isinstance(p, (np.ndarray, memoryview)) else len(p) for p in coded.parts.values())
    if isinstance(coded.tally, Ending):
        total += sum(a.nbytes for a in coded.tally.arrays.values())
    return total
