"""The run: shared surveys first, then batch by batch the tensors' own surveys, their tiles, their bytes.

Jobs are independent, so threads, tile size and order cannot change a value; the sink takes bytes at any offset.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from deltasmith.engine.evaluator import Evaluator, Scratch
from deltasmith.engine.memory import Budget
from deltasmith.engine.progress import Progress
from deltasmith.engine.surveying import needs_survey, prepare, survey_locally
from deltasmith.engine.values import refuse_nonfinite
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.hashing import CHUNK, ChunkHasher
from deltasmith.kernels.encode import encode
from deltasmith.planning.plan import Row
from deltasmith.table.checkpoint import raw_into

__all__ = ["Sink", "execute"]

_BATCH = 64 << 20
"""Output bytes of the tensors that are surveyed and then written together: their inputs should stay in memory."""


class Sink(Protocol):
    """Where finished bytes go; an output folder, or memory. `write` may be called from several threads."""

    @property
    def finished(self) -> dict[str, str]:
        """Return the hashes of tensors that an earlier run has finished."""

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Take bytes of one tensor."""

    def finish(self, name: str, digest: str) -> None:
        """Hear that all bytes of a tensor have been written."""


@dataclass
class _Pending:
    """A tensor in the making."""

    hasher: ChunkHasher
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _Worker:
    """One thread's buffers."""

    scratch: Scratch
    out: np.ndarray[tuple[int], np.dtype[np.uint8]] = field(default_factory=lambda: np.empty(0, np.uint8))

    def room(self, nbytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        if self.out.size < nbytes:
            self.out = np.empty(nbytes, np.uint8)
        return self.out[:nbytes]


Job = tuple[Row, int, int]


def execute(
    evaluator: Evaluator, sink: Sink, order: Sequence[str], limits: Budget, stop: Stop, progress: Progress
) -> None:
    """Compute every tensor that `sink` has not finished, in `order`, and hand over its bytes and hash.

    Linear algebra runs on one thread per worker: the workers are the parallelism, BLAS threads on top of them
    wait for each other on a busy machine, and their number would change the rounding.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        _execute(evaluator, sink, order, limits, stop, progress)


def _execute(
    evaluator: Evaluator, sink: Sink, order: Sequence[str], limits: Budget, stop: Stop, progress: Progress
) -> None:
    plan = evaluator.plan
    rows = [plan.by_name[name] for name in order if name not in sink.finished]
    total = sum(row.spec.nbytes for row in rows)
    surveyors = min(limits.threads, limits.matrices)  # each may hold a whole matrix
    progress.phase("surveying", 0)
    if any(row.action == "merge" for row in rows):
        prepare(evaluator, surveyors, limits.tile, stop, progress.advance)
    progress.phase("merging", total)
    writer = _Writer(evaluator, sink, limits, progress)
    for batch in _batches(evaluator, rows):
        merged = [row for row in batch if row.action == "merge"]
        survey_locally(evaluator, merged, surveyors, limits.tile, stop, lambda n: None)
        workers = [_Worker(Scratch(len(plan.columns))) for _ in range(limits.threads)]
        run_jobs(writer.jobs(batch), writer.work, workers, stop)


def _batches(evaluator: Evaluator, rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Group tensors that still need surveys of their own; without any such, all of them are one batch."""
    if not any(needs_survey(evaluator, row) for row in rows):
        yield list(rows)
        return
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.spec.nbytes
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Turns tiles into stored bytes, and notices when a tensor is whole."""

    def __init__(self, evaluator: Evaluator, sink: Sink, limits: Budget, progress: Progress) -> None:
        self.evaluator, self.sink, self.limits, self.progress = evaluator, sink, limits, progress
        self.pending: dict[str, _Pending] = {}
        self.matrices = threading.BoundedSemaphore(limits.matrices)

    def jobs(self, rows: Sequence[Row]) -> Iterator[Job]:
        """Cut each tensor into spans that fill whole chunks of the output where its blocks allow."""
        for row in rows:
            spans = list(self._spans(row))
            self.pending[row.name] = _Pending(ChunkHasher(row.spec.nbytes), len(spans))
            if not spans:
                self._finish(row)
            for start, stop in spans:
                yield row, start, stop

    def _spans(self, row: Row) -> Iterator[tuple[int, int]]:
        chunk = max(CHUNK // row.spec.dtype.itemsize, self.limits.tile)
        step = row.block * max(1, chunk // row.block)
        for start in range(0, row.spec.size, step):
            yield start, min(row.spec.size, start + step)

    def work(self, job: Job, worker: _Worker) -> None:
        """Compute one span and write it."""
        row, start, stop = job
        data = (
            self._copied(row, start, stop, worker)
            if row.action == "copy"
            else self._computed(row, start, stop, worker)
        )
        offset = start * row.spec.dtype.itemsize
        self.sink.write(row.name, offset, data)
        pending = self.pending[row.name]
        pending.hasher.add(offset, data)
        with pending.lock:
            pending.left -= 1
            last = pending.left == 0
        if last:
            self._finish(row)
        self.progress.advance(len(data))

    def _finish(self, row: Row) -> None:
        self.sink.finish(row.name, self.pending.pop(row.name).hasher.digest())

    def _copied(self, row: Row, start: int, stop: int, worker: _Worker) -> memoryview:
        out = worker.room((stop - start) * row.spec.dtype.itemsize)
        raw_into(self.evaluator.plan.source(row.source), row.name, start, out)
        return out.data

    def _computed(self, row: Row, start: int, stop: int, worker: _Worker) -> memoryview:
        item = row.spec.dtype.itemsize
        out = worker.room((stop - start) * item)
        step = row.block * max(1, self.limits.tile // row.block)
        for first in range(start, stop, step):
            last = min(stop, first + step)
            values = self._tile(row, first, last, worker)
            lost = encode(row.spec.dtype.name, values, out[(first - start) * item : (last - start) * item])
            if lost and self.evaluator.plan.nonfinite != "keep":
                raise _overflow(row, lost)
        return out.data

    def _tile(
        self, row: Row, start: int, stop: int, worker: _Worker
    ) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        if row.action == "cast":
            values = worker.scratch.take(stop - start)[0]
            self.evaluator.plan.source(row.source).read(row.name, start, values)
            if self.evaluator.plan.nonfinite == "refuse":
                refuse_nonfinite(values, row.name, start, row.source)
            return values
        if row.reach != "tensor":
            return self.evaluator.tile(row, start, stop, worker.scratch)
        with self.matrices:
            return self.evaluator.tile(row, start, stop, worker.scratch)


def _overflow(row: Row, count: int) -> RefusedError:
    return RefusedError(
        f"{count} or more merged values do not fit {row.spec.dtype} (its largest is {row.spec.dtype.largest:g})",
        where=printable(row.name),
        fix="use `dtype: bfloat16` or `float32`, or a smaller scale",
    )
