"""One pass over base and models: histograms, sums, signs and rounding of every tensor's deltas."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from deltasmith.advice.spectrum import Spectrum
from deltasmith.engine.difference import ColumnChange, PairChange
from deltasmith.engine.evaluator import Scratch
from deltasmith.engine.surveying import surveyed
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.kernels.difference import measure_column, measure_pair
from deltasmith.kernels.spectrum import CELLS, STEPS, add_sizes, add_steps
from deltasmith.operation.protocols import BLOCK
from deltasmith.packing.choosing import is_linear
from deltasmith.planning.plan import Plan, Row
from deltasmith.table.names import group_of

__all__ = ["GRIDS", "Grid", "Measured", "MeasuredColumn", "Rounding", "combined", "measure"]

_JOB = 8 * BLOCK
_COLUMN = 5  # zeros, Σ|δ|, Σδ², max |δ|, Σ base·δ
_PAIR = 3
_BASE = 2  # Σ base, Σ base²

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """The numbers an element type can hold: bits behind the leading one, and its least normal exponent (biased)."""

    mantissa: int
    smallest: int


GRIDS = {"bfloat16": Grid(7, 1), "float16": Grid(10, 113)}
"""Types coarse enough for a fine-tune to be lost between their numbers."""


@dataclass(frozen=True, eq=False)
class Rounding:
    """Deltas against the grid of the type they are stored in: by the base's exponent, and by |δ| / step.

    `zeros` and `elements` (256,): unmoved and all elements by the base's exponent. `ratios` (64,): the moved ones by
    |δ| / step, cell k holding [2^(k-32), 2^(k-31)).
    """

    grid: Grid
    zeros: Counts
    elements: Counts
    ratios: Counts

    def hidden(self, median: float) -> float | None:
        """Return the share of elements that are unmoved because their step is coarse; None where it cannot be told.

        The share of unmoved elements among those whose half step is below a sixteenth of `median` (the tensor's median
        |δ| of the moved) is what training left alone; unmoved ones beyond that share are put down to rounding.
        """
        total = int(self.elements.sum())
        if not total:
            return None
        half = np.exp2(np.arange(256, dtype=np.float64) - 127 - self.grid.mantissa - 1)
        fine = half * 16 <= median
        seen = int(self.elements[fine].sum())
        if seen * 100 < total:
            return None
        still = int(self.zeros[fine].sum()) / seen
        return max(0.0, int(self.zeros.sum()) - still * total) / total

    def lost(self, scale: float) -> float:
        """Return the share of the moved elements that `scale`·δ would leave unmoved: below half a step.

        The base's own value is taken to lie on the grid. Within an octave of |δ| / step elements count as evenly
        spread in its logarithm.
        """
        total = int(self.ratios.sum())
        if not total or scale <= 0:
            return 0.0
        cut = math.log2(0.5 / scale) + 32
        below = np.clip(cut - np.arange(STEPS), 0.0, 1.0)
        return float(self.ratios @ below) / total


@dataclass(frozen=True, eq=False)
class MeasuredColumn:
    """What one model changed in one tensor, or in a group of them."""

    change: ColumnChange
    base_dot: float
    spectrum: Spectrum
    rounding: Rounding | None

    @property
    def base_cosine(self) -> float:
        """Return the cosine of the model's weights and the base's; 0 where one is zero."""
        base = self.change.base_squares
        own = base + 2 * self.base_dot + self.change.squares
        return (base + self.base_dot) / math.sqrt(base * own) if base > 0 and own > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Measured:
    """All figures of one tensor, or of a group: `linear` tensors are the matrices of numbered layers."""

    name: str
    tensors: int
    linear: bool
    shape: tuple[int, ...]
    base_sum: float
    columns: dict[str, MeasuredColumn]
    pairs: dict[tuple[str, str], PairChange]

    @property
    def size(self) -> int:
        """Count the elements."""
        return next(iter(self.columns.values())).change.size

    @property
    def sigma(self) -> float:
        """Return the standard deviation of the base's values; 0 where they are all alike."""
        if not self.size:
            return 0.0
        squares = next(iter(self.columns.values())).change.base_squares
        return math.sqrt(max(0.0, squares / self.size - (self.base_sum / self.size) ** 2))


@dataclass
class _Tally:
    """What the jobs of one tensor have counted so far: integers, whose order of addition does not matter."""

    sums: npt.NDArray[np.float64]
    sizes: list[Spectrum]
    zeros: Counts
    elements: Counts
    ratios: Counts
    lock: threading.Lock = field(default_factory=threading.Lock)


def measure(plan: Plan, threads: int, stop: Stop) -> list[Measured]:
    """Read base and models once and return the figures of every merged tensor, by name.

    Counts are exact, sums float64 over blocks of 2¹⁶ elements added in index order: the same for any number of
    threads. Values that are not finite are refused by name. Memory: about 6 MiB a thread and model, and 20 KiB a
    tensor and model.
    """
    evaluator = surveyed(plan, threads, stop)
    models = len(plan.columns)
    width = models * _COLUMN + len(list(combinations(range(models), 2))) * _PAIR + _BASE
    rows = list(evaluator.merged_rows())
    tallies = {row.name: _tally(row, models, width) for row in rows}

    def jobs() -> Iterator[tuple[Row, int]]:
        return ((row, start) for row in rows for start in range(0, row.spec.size, _JOB))

    def work(job: tuple[Row, int], scratch: Scratch) -> None:
        row, start = job
        base, cells = scratch.take(min(_JOB, row.spec.size - start))
        evaluator.cells(row, start, base, cells)
        _count(tallies[row.name], _grid(row), start, base, cells)

    run_jobs(jobs(), work, [Scratch(models) for _ in range(threads)], stop)
    return [_measured(plan.labels, row, tallies[row.name]) for row in rows]


def _grid(row: Row) -> Grid | None:
    return GRIDS.get(row.spec.dtype.name)


def _tally(row: Row, models: int, width: int) -> _Tally:
    blocks = -(-row.spec.size // BLOCK)
    empty = Spectrum(0, 0, np.zeros(0, np.int64))
    by_exponent = (models, 256)
    return _Tally(
        np.zeros((blocks, width)),
        [empty] * models,
        np.zeros(by_exponent, np.int64),
        np.zeros(by_exponent, np.int64),
        np.zeros((models, STEPS), np.int64),
    )


def _count(
    tally: _Tally,
    grid: Grid | None,
    start: int,
    base: npt.NDArray[np.float32],
    cells: npt.NDArray[np.float32],
) -> None:
    """Add one job: whole blocks from `start` on."""
    models = len(cells)
    for first in range(0, base.size, BLOCK):
        here = slice(first, min(base.size, first + BLOCK))
        ground = base[here].astype(np.float64)
        parts = [np.append(measure_column(cell[here]), ground @ cell[here]) for cell in cells]
        parts += [measure_pair(cells[i][here], cells[j][here]) for i, j in combinations(range(models), 2)]
        parts.append(np.array([ground.sum(), ground @ ground]))
        tally.sums[(start + first) // BLOCK] = np.concatenate(parts)
    for index, cell in enumerate(cells):
        sizes = np.zeros(CELLS, np.int64)
        add_sizes(cell, sizes)
        part = Spectrum.of(sizes)
        zeros, steps = np.zeros(256, np.int64), np.zeros((256, STEPS), np.int64)
        if grid is not None:
            add_steps(base, cell, grid.mantissa, grid.smallest, zeros, steps)
        with tally.lock:
            tally.sizes[index] = Spectrum.total([tally.sizes[index], part])
            tally.zeros[index] += zeros
            tally.elements[index] += zeros + steps.sum(axis=1)
            tally.ratios[index] += steps.sum(axis=0)


def _measured(labels: tuple[str, ...], row: Row, tally: _Tally) -> Measured:
    blocks = tally.sums
    sums = np.zeros(blocks.shape[1]) if not len(blocks) else np.add.accumulate(blocks, axis=0)[-1]
    largest = blocks.max(axis=0, initial=0.0)
    grid, size, base = _grid(row), row.spec.size, float(sums[-1])
    columns = {}
    for i, label in enumerate(labels):
        at = i * _COLUMN
        zeros, total, squares = (float(x) for x in sums[at : at + 3])
        change = ColumnChange(size, int(zeros), total, squares, float(largest[at + 3]), base)
        rounding = None
        if grid is not None:
            rounding = Rounding(grid, tally.zeros[i], tally.elements[i], tally.ratios[i])
        columns[label] = MeasuredColumn(change, float(sums[at + 4]), tally.sizes[i], rounding)
    pairs = {}
    for k, (a, b) in enumerate(combinations(labels, 2)):
        dot, both, opposed = sums[len(labels) * _COLUMN + k * _PAIR :][:_PAIR]
        norms = math.sqrt(columns[a].change.squares * columns[b].change.squares)
        pairs[a, b] = PairChange(float(dot), int(both), int(opposed), norms)
    linear = is_linear(row.name, row.spec.shape)
    return Measured(row.name, 1, linear, row.spec.shape, float(sums[-2]), columns, pairs)


def combined(measured: Iterable[Measured], by: str) -> list[Measured]:
    """Combine tensors into groups: by "layer", "projection" or "model", as `diff` does. σ is that of all together."""
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        groups.setdefault(group_of(one.name, by), []).append(one)
    return [_group(name, members) for name, members in groups.items()]


def _group(name: str, members: list[Measured]) -> Measured:
    columns = {label: _joined([m.columns[label] for m in members]) for label in members[0].columns}
    pairs = {}
    for a, b in members[0].pairs:
        parts = [m.pairs[a, b] for m in members]
        norms = math.sqrt(columns[a].change.squares * columns[b].change.squares)
        pairs[a, b] = PairChange(
            sum(p.dot for p in parts), sum(p.both for p in parts), sum(p.opposed for p in parts), norms
        )
    linear = all(m.linear for m in members)
    return Measured(name, len(members), linear, (), sum(m.base_sum for m in members), columns, pairs)


def _joined(parts: list[MeasuredColumn]) -> MeasuredColumn:
    changes = [p.change for p in parts]
    change = ColumnChange(
        sum(c.size for c in changes),
        sum(c.zeros for c in changes),
        sum(c.total for c in changes),
        sum(c.squares for c in changes),
        max(c.largest for c in changes),
        sum(c.base_squares for c in changes),
    )
    kept = [p.rounding for p in parts if p.rounding is not None]
    rounding = None
    if kept and all(r.grid == kept[0].grid for r in kept):
        rounding = Rounding(
            kept[0].grid,
            np.sum([r.zeros for r in kept], axis=0),
            np.sum([r.elements for r in kept], axis=0),
            np.sum([r.ratios for r in kept], axis=0),
        )
    spectrum = Spectrum.total(p.spectrum for p in parts)
    return MeasuredColumn(change, sum(p.base_dot for p in parts), spectrum, rounding)
