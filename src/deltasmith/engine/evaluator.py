"""Computing tiles of a plan: read, subtract the base, edit, merge, add the base.

This is the streaming counterpart of `operation/reference.py`. An `Evaluator` is itself a checkpoint, so a plan may
stand wherever a model may.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deltasmith.engine.values import refuse_nonfinite, zero_nonfinite
from deltasmith.kernels.decode import count_nonfinite
from deltasmith.operation.protocols import Edit, Found, Merge, Place, Reach, Survey
from deltasmith.operation.randomness import cell_key
from deltasmith.operation.reference import shaped
from deltasmith.planning.plan import Plan, Row, Site
from deltasmith.table.checkpoint import Checkpoint, Floats, SourceFile, Spec, read_difference
from deltasmith.table.dtypes import DTYPES

__all__ = ["Evaluator", "Findings", "Scratch"]

_FLOAT32 = DTYPES["float32"]


@dataclass
class Findings:
    """What the surveys have concluded: per site, and per site and tensor."""

    shared: dict[Site, tuple[Any, ...]] = field(default_factory=dict)
    local: dict[tuple[Site, str], tuple[Any, ...]] = field(default_factory=dict)

    def of(self, site: Site, name: str) -> Found:
        """Return what one operation may know about one tensor."""
        return Found(self.shared.get(site, ()), self.local.get((site, name), ()))

    def next_survey(self, site: Site, name: str) -> Survey | None:
        """Ask the operation what it still needs for this tensor."""
        return site.record.survey(self.of(site, name))


class Scratch:
    """One worker's reused buffers: the base's tile and one tile per column, grown to the largest asked for."""

    def __init__(self, models: int) -> None:
        self._models = models
        self._room = np.empty(0, np.float32)

    def take(self, n: int) -> tuple[Floats, Floats]:
        """Return uninitialised (n,) and (models, n) float32 arrays that live until the next call."""
        needed = n * (self._models + 1)
        if self._room.size < needed:
            self._room = np.empty(needed, np.float32)
        return self._room[:n], self._room[n:needed].reshape(self._models, n)


@dataclass
class Evaluator:
    """A plan with the findings of its surveys: a checkpoint whose values are computed when they are read.

    Shared surveys must have run (`engine.surveying.prepare`). Surveys of one tensor run on first use of that tensor,
    through `survey_tensor`, unless the runner has already done them.
    """

    plan: Plan
    findings: Findings = field(default_factory=Findings)
    survey_tensor: Callable[[Evaluator, Row], None] | None = None
    _keys: dict[tuple[str, Site], int] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _last: tuple[str, Floats] | None = field(default=None, repr=False)

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Return the merged tensors as float32 and the copied ones as they are."""
        return {
            row.name: Spec(row.name, row.spec.shape, _FLOAT32) if row.action == "merge" else row.spec
            for row in self.plan.rows
        }

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """Return the files of every checkpoint below."""
        below = [] if self.plan.base is None else [self.plan.base]
        below += [column.checkpoint for column in self.plan.columns]
        return tuple(dict.fromkeys(source for checkpoint in below for source in checkpoint.sources))

    def raw(self, name: str, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Return the bytes of a copied row, or the computed float32 values of a merged one."""
        row = self.plan.by_name[name]
        if row.action == "copy":
            return self.plan.source(row.source).raw(name, start, stop)
        out = np.empty(stop - start, np.float32)
        self.read(name, start, out)
        return out.tobytes()

    def read(self, name: str, start: int, out: Floats) -> None:
        """Compute elements [start, start + out.size), widening to whole blocks where operations need them."""
        row = self.plan.by_name[name]
        if row.action != "merge":
            self.plan.source(row.source).read(name, start, out)
            return
        if self.survey_tensor is not None:
            self.survey_tensor(self, row)
        size, stop = row.spec.size, start + out.size
        first, last = start // row.block * row.block, min(size, -(-stop // row.block) * row.block)
        if row.reach == "tensor":
            out[:] = self._whole(row)[start:stop]
            return
        out[:] = self.tile(row, first, last, Scratch(len(self.plan.columns)))[start - first : stop - first]

    def _whole(self, row: Row) -> Floats:
        """Keep the last whole tensor, because its readers come piece by piece."""
        with self._lock:
            if self._last is None or self._last[0] != row.name:
                self._last = (row.name, self.tile(row, 0, row.spec.size, Scratch(len(self.plan.columns))))
            return self._last[1]

    def tile(self, row: Row, start: int, stop: int, scratch: Scratch) -> Floats:
        """Return merged float32 elements [start, stop) of a row; both ends are block boundaries or the end."""
        base, cells = scratch.take(stop - start)
        self.cells(row, start, base, cells)
        site = row.merge
        assert site is not None
        assert isinstance(site.record, Merge)
        tile = cells.reshape(len(cells), *shaped(site.record.reach, row.name, row.spec.shape, cells[0]).shape)
        place = self.place(row, start, stop)
        merged: Floats = site.record.apply(tile, place, self.findings.of(site, row.name)).reshape(-1)
        if self.plan.space == "weight":
            return merged
        scale = np.float32(row.scale)
        out = np.multiply(merged, scale, out=cells[0]) if scale != 1.0 else merged
        total: Floats = np.add(out, base, out=cells[-1])
        return total

    def cells(self, row: Row, start: int, base: Floats, cells: Floats, *, survey: bool = False) -> None:
        """Fill `base` and `cells` (models, n) with the row's edited cells, as deltas or as weights.

        A survey does not look for values that are not finite: the pass that writes will, and refuse them.
        """
        self.read_base(row, start, base, survey=survey)
        for column in range(len(self.plan.columns)):
            self.cell(row, start, column, base, cells[column], survey=survey)

    def read_base(self, row: Row, start: int, base: Floats, *, survey: bool = False) -> None:
        """Fill `base` with the base's values; left as it is where the plan has no base."""
        if self.plan.base is not None:
            self.plan.base.read(row.name, start, base)
            self._check(base, row, start, "base", survey)

    def cell(
        self,
        row: Row,
        start: int,
        index: int,
        base: Floats,
        out: Floats,
        *,
        before: int | None = None,
        survey: bool = False,
    ) -> None:
        """Fill `out` with one column's cell after all its edits, or after those at positions below `before`."""
        column = self.plan.columns[index]
        edits = [s for s in row.edits[index] if before is None or s.position < before]
        as_weight = self.plan.space == "weight" and before is None
        if as_weight and not edits and row.present[index] and not column.holds_delta(row.name):
            column.checkpoint.read(row.name, start, out)
            self._check(out, row, start, column.label, survey)
            return
        self._delta(row, start, index, base, out, survey)
        for site in edits:
            assert isinstance(site.record, Edit)
            tile = shaped(site.record.reach, row.name, row.spec.shape, out)
            found = self.findings.of(site, row.name)
            place = self.edit_place(row, start, start + out.size, site)
            out[:] = site.record.apply(tile, place, found).reshape(-1)
        if as_weight:
            out += base

    def _delta(self, row: Row, start: int, index: int, base: Floats, out: Floats, survey: bool) -> None:
        column = self.plan.columns[index]
        if not row.present[index]:
            out.fill(0.0)
            return
        if column.holds_delta(row.name) or self.plan.nonfinite == "zero":
            column.checkpoint.read(row.name, start, out)
            self._check(out, row, start, column.label, survey)
            if not column.holds_delta(row.name):
                np.subtract(out, base, out=out)
            return
        read_difference(column.checkpoint, row.name, start, base, out)
        if self.plan.nonfinite == "refuse" and not survey and count_nonfinite(out):
            values = np.empty_like(out)  # an input is at fault, unless two finite values lie too far apart
            column.checkpoint.read(row.name, start, values)
            refuse_nonfinite(values, row.name, start, column.label)

    def _check(self, values: Floats, row: Row, start: int, label: str, survey: bool) -> None:
        if self.plan.nonfinite == "refuse" and not survey:
            refuse_nonfinite(values, row.name, start, label)
        elif self.plan.nonfinite == "zero":
            zero_nonfinite(values)

    def place(self, row: Row, start: int, stop: int) -> Place:
        """Return where a tile of this row lies, for the merge."""
        statistics = self.plan.statistics
        lookup = _statistics(statistics, row, start, stop, row.reach) if statistics else None
        return Place(
            row.name,
            row.spec.shape,
            start,
            block=row.block,
            weights=row.weights,
            labels=self.plan.labels,
            statistics=lookup,
        )

    def edit_place(self, row: Row, start: int, stop: int, site: Site) -> Place:
        """Return where a tile of this row lies, for one edit of one column."""
        column = self.plan.columns[site.column]
        key = self._keys.get((row.name, site))
        if key is None:
            key = cell_key(self.plan.seed, column.label, row.name, stream=site.position)
            self._keys[row.name, site] = key
        weight = (row.weights[site.column],)
        lookup = None
        if column.statistics is not None:
            lookup = _statistics((column.statistics,), row, start, stop, site.record.reach)
        return Place(
            row.name, row.spec.shape, start, block=row.block, key=key, weights=weight, statistics=lookup
        )

    def merged_rows(self) -> Iterator[Row]:
        """Yield the rows that are computed."""
        return (row for row in self.plan.rows if row.action == "merge")


def _statistics(
    files: Sequence[Checkpoint], row: Row, start: int, stop: int, reach: Reach
) -> Callable[[int, str], Floats]:
    """Return the reader of statistics files: this tile of a diagonal, or a whole Gram matrix."""

    def look_up(index: int, suffix: str) -> Floats:
        spec = files[index].specs[row.name + suffix]
        whole = bool(suffix) or reach == "tensor"
        first, last = (0, spec.size) if whole else (start, stop)
        out = np.empty(last - first, np.float32)
        files[index].read(spec.name, first, out)
        return out.reshape(spec.shape) if whole else out

    return look_up
