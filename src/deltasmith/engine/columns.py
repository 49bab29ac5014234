"""Keep edited columns in memory between plans, so that a plan which differs only in its merge reads no file.

A search over weights, a scale or a merge's fields asks for many plans with the same edited deltas. `EditedColumns`
computes each model's deltas once per distinct set of edits and hands out plans that find them done. What comes out
is the same to the bit, because cells are float32 between edits and merge in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.surveying import prepare, survey_locally
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.operation.protocols import BLOCK
from deltasmith.planning.plan import Column, Plan, Row
from deltasmith.table.checkpoint import Checkpoint, Floats, SourceFile, Spec

__all__ = ["EditedColumns"]

_TILE = 4 * BLOCK
_FLOAT = 4
Key = tuple[Any, ...]
Arrays = Mapping[str, Floats]


@dataclass(frozen=True)
class _Held:
    """A checkpoint some of whose cells lie in memory as float32; the others are read where they always were."""

    behind: Checkpoint
    arrays: Arrays

    @property
    def specs(self) -> Mapping[str, Spec]:
        return self.behind.specs

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        return self.behind.sources

    def read(self, name: str, start: int, out: Floats) -> None:
        if name in self.arrays:
            out[:] = self.arrays[name][start : start + out.size]
        else:
            self.behind.read(name, start, out)

    def raw(self, name: str, start: int, stop: int) -> bytes | bytearray | memoryview:
        return self.behind.raw(name, start, stop)

    def holds(self, name: str) -> bool:
        return name in self.arrays


@dataclass
class EditedColumns:
    """Bases and edited columns in memory, at most `limit` bytes of float32; the least recently used go first.

    `computed` counts how often a column had to be read and edited. Not for several threads at once.
    """

    limit: int
    computed: int = 0
    _held: dict[Key, Arrays] = field(default_factory=dict, repr=False)

    def held(self, plan: Plan, threads: int = 1, stop: Stop | None = None) -> Plan:
        """Return an equal plan that finds its base and edited columns in memory, computing those that are new.

        A plan whose cells do not fit the limit, or whose base or models are themselves plans, comes back as it is:
        it reads its files as ever. Raises what reading and editing raise.
        """
        rows = [row for row in plan.rows if row.action == "merge"]
        nested = [plan.base, *(column.checkpoint for column in plan.columns)]
        needed = sum(row.spec.size for row in rows) * _FLOAT * (len(plan.columns) + (plan.base is not None))
        if needed > self.limit or any(isinstance(checkpoint, Evaluator) for checkpoint in nested):
            return plan
        ground = ("base", plan.nonfinite, _identity(plan.base))
        keys = [(plan.space, plan.seed, ground, _key(plan, rows, i)) for i in range(len(plan.columns))]
        missing = [index for index, key in enumerate(keys) if key not in self._held]
        wanted = [ground, *keys] if plan.base is not None else list(keys)
        self._forget(wanted, needed)
        if plan.base is not None and ground not in self._held:
            self._held[ground] = _read_base(plan, rows)
        self._compute(plan, rows, keys, missing, threads, stop or Stop())
        for key in wanted:  # the latest use goes to the end
            self._held[key] = self._held.pop(key)
        return self._in_memory(plan, ground, keys)

    def _forget(self, wanted: list[Key], needed: int) -> None:
        size = {
            key: sum(a.nbytes for a in arrays.values())
            for key, arrays in self._held.items()
            if key not in wanted
        }
        for key in list(size):
            if needed + sum(size.values()) <= self.limit:
                return
            del self._held[key], size[key]

    def _compute(
        self, plan: Plan, rows: list[Row], keys: list[Key], missing: list[int], threads: int, stop: Stop
    ) -> None:
        """Run the surveys of the missing columns' edits, then the edits, whole tensor by whole tensor."""
        if not missing:
            return
        edits = [
            replace(row, merge=None, edits=tuple(e if i in missing else () for i, e in enumerate(row.edits)))
            for row in rows
        ]
        base = plan.base if plan.base is None else _Held(plan.base, self._held[keys[0][2]])
        evaluator = Evaluator(replace(plan, base=base, rows=tuple(edits), statistics=()))
        prepare(evaluator, threads, _TILE, stop, lambda n: None)
        survey_locally(evaluator, edits, threads, _TILE, stop, lambda n: None)
        done: dict[int, dict[str, Floats]] = {index: {} for index in missing}

        def work(job: tuple[Row, int], state: None) -> None:
            row, index = job
            done[index][row.name] = _cell(evaluator, row, index)

        jobs = ((row, index) for row in edits for index in missing if row.present[index])
        run_jobs(jobs, work, [None] * threads, stop)
        self.computed += len(missing)
        self._held |= {keys[index]: arrays for index, arrays in done.items()}

    def _in_memory(self, plan: Plan, ground: Key, keys: list[Key]) -> Plan:
        columns = []
        for column, key in zip(plan.columns, keys, strict=True):
            held = _Held(column.checkpoint, self._held[key])
            deltas = held.holds if plan.space == "delta" else column.holds_delta
            columns.append(replace(column, checkpoint=held, edits=(), holds_delta=deltas))
        base = plan.base if plan.base is None else _Held(plan.base, self._held[ground])
        rows = tuple(replace(row, edits=tuple(() for _ in row.edits)) for row in plan.rows)
        if plan.space == "weight":  # the cells are the edited weights, whatever the models hold
            columns = [replace(column, holds_delta=_never) for column in columns]
        return replace(plan, base=base, columns=tuple(columns), rows=rows)


def _never(name: str) -> bool:
    return False


def _identity(checkpoint: Checkpoint | None) -> Key:
    """Tell checkpoints apart by their files; those without files are themselves part of the key."""
    if checkpoint is None:
        return ()
    files = checkpoint.sources
    stats = [(file.path, Path(file.path).stat()) for file in files]
    return tuple((path, s.st_size, s.st_mtime_ns, s.st_ino) for path, s in stats) or (checkpoint,)


def _key(plan: Plan, rows: list[Row], index: int) -> Key:
    """Collect what decides a column's edited cells: its files, its label, the edits and what these read."""
    column: Column = plan.columns[index]
    edits = tuple((r.name, tuple((s.position, s.record) for s in r.edits[index])) for r in rows)
    return (column.label, _identity(column.checkpoint), edits, _identity(column.statistics))


def _read_base(plan: Plan, rows: list[Row]) -> Arrays:
    evaluator = Evaluator(plan)
    arrays = {row.name: np.empty(row.spec.size, np.float32) for row in rows}
    for row in rows:
        evaluator.read_base(row, 0, arrays[row.name])
    return arrays


def _cell(evaluator: Evaluator, row: Row, index: int) -> Floats:
    """Compute one whole cell after its edits: the delta, or in weight space the weight."""
    base, out = np.empty(row.spec.size, np.float32), np.empty(row.spec.size, np.float32)
    evaluator.read_base(row, 0, base)
    evaluator.cell(row, 0, index, base, out)
    return out
