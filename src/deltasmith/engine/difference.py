"""Measuring deltas: what each model changed, per tensor, and how the changes of two models agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from deltasmith.engine.evaluator import Scratch
from deltasmith.engine.surveying import surveyed
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.kernels.difference import measure_column, measure_pair
from deltasmith.operation.protocols import BLOCK
from deltasmith.planning.plan import Plan, Row
from deltasmith.table.names import group_of

__all__ = ["ColumnChange", "Difference", "PairChange", "grouped", "measure"]

_SUMS = 4
_PAIR = 3
_JOB = 8 * BLOCK


@dataclass(frozen=True)
class ColumnChange:
    """What one model changed: counts, norms and the fraction of elements that did not move at all."""

    size: int
    zeros: int
    total: float
    squares: float
    largest: float
    base_squares: float

    @property
    def mean(self) -> float:
        """Return mean |δ|."""
        return self.total / self.size if self.size else 0.0

    @property
    def relative_norm(self) -> float:
        """Return ‖δ‖ / ‖base‖; 0 where nothing moved, infinity where the base is zero."""
        if not self.squares:
            return 0.0
        return math.sqrt(self.squares / self.base_squares) if self.base_squares else math.inf

    @property
    def zero_fraction(self) -> float:
        """Return the fraction of elements with δ = 0."""
        return self.zeros / self.size if self.size else 1.0


@dataclass(frozen=True)
class PairChange:
    """How two models' changes agree."""

    dot: float
    both: int
    opposed: int
    norms: float

    @property
    def cosine(self) -> float:
        """Return the cosine of the two deltas; 0 where one is zero."""
        return self.dot / self.norms if self.norms else 0.0

    @property
    def sign_conflict(self) -> float:
        """Return the fraction of elements moved by both that moved in opposite directions."""
        return self.opposed / self.both if self.both else 0.0


@dataclass(frozen=True)
class Difference:
    """The changes of one tensor, or of a group of tensors: per label, and per pair of labels."""

    name: str
    tensors: int
    columns: dict[str, ColumnChange]
    pairs: dict[tuple[str, str], PairChange]

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain data (infinite ratios as null)."""
        return {
            "name": self.name,
            "tensors": self.tensors,
            "models": {label: _column_json(change) for label, change in self.columns.items()},
            "pairs": [
                {"models": list(pair), "cosine": change.cosine, "sign_conflict": change.sign_conflict}
                for pair, change in self.pairs.items()
            ],
        }


def _column_json(change: ColumnChange) -> dict[str, Any]:
    relative = change.relative_norm
    return {
        "elements": change.size,
        "mean_abs": change.mean,
        "max_abs": change.largest,
        "relative_norm": relative if math.isfinite(relative) else None,
        "zero_fraction": change.zero_fraction,
    }


Job = tuple[Row, int, int]


def measure(plan: Plan, threads: int, stop: Stop) -> list[Difference]:
    """Read base and models once and return the figures of every merged tensor, by name.

    Sums are float64 over blocks of 2¹⁶ elements added in index order: the same for any number of threads.
    """
    evaluator = surveyed(plan, threads, stop)
    models = len(plan.columns)
    pairs = list(combinations(range(models), 2))
    rows = list(evaluator.merged_rows())
    found = {
        row.name: np.zeros((-(-row.spec.size // BLOCK), models * _SUMS + len(pairs) * _PAIR + 1))
        for row in rows
    }

    def jobs() -> Iterator[Job]:
        for row in rows:
            for start in range(0, row.spec.size, _JOB):
                yield row, start, min(row.spec.size, start + _JOB)

    def work(job: Job, scratch: Scratch) -> None:
        row, start, stop_ = job
        for first in range(start, stop_, BLOCK):
            base, cells = scratch.take(min(stop_, first + BLOCK) - first)
            evaluator.cells(row, first, base, cells)
            parts = [measure_column(cell) for cell in cells]
            parts += [measure_pair(cells[i], cells[j]) for i, j in pairs]
            parts.append(np.array([np.dot(base, base.astype(np.float64))]))
            found[row.name][first // BLOCK] = np.concatenate(parts)

    run_jobs(jobs(), work, [Scratch(models) for _ in range(threads)], stop)
    return [_difference(plan.labels, row.name, 1, row.spec.size, found[row.name]) for row in rows]


def _difference(
    labels: tuple[str, ...], name: str, tensors: int, size: int, blocks: np.ndarray[Any, np.dtype[np.float64]]
) -> Difference:
    sums = np.zeros(blocks.shape[1]) if not len(blocks) else np.add.accumulate(blocks, axis=0)[-1]
    largest = blocks.max(axis=0, initial=0.0)
    base = float(sums[-1])
    columns = {}
    for i, label in enumerate(labels):
        at = i * _SUMS
        zeros, total, squares = (float(x) for x in sums[at : at + 3])
        columns[label] = ColumnChange(size, int(zeros), total, squares, float(largest[at + 3]), base)
    pairs = {}
    for k, (a, b) in enumerate(combinations(labels, 2)):
        dot, both, opposed = sums[len(labels) * _SUMS + k * _PAIR :][:_PAIR]
        norms = math.sqrt(columns[a].squares * columns[b].squares)
        pairs[a, b] = PairChange(float(dot), int(both), int(opposed), norms)
    return Difference(name, tensors, columns, pairs)


def grouped(differences: Iterable[Difference], by: str) -> list[Difference]:
    """Combine tensors into groups: by "layer" (stack and number), by "projection" (numbers → *), or "model"."""
    groups: dict[str, list[Difference]] = {}
    for difference in differences:
        groups.setdefault(group_of(difference.name, by), []).append(difference)
    return [_combined(name, members) for name, members in groups.items()]


def _combined(name: str, members: list[Difference]) -> Difference:
    columns = {}
    for label in members[0].columns:
        parts = [m.columns[label] for m in members]
        columns[label] = ColumnChange(
            sum(p.size for p in parts),
            sum(p.zeros for p in parts),
            sum(p.total for p in parts),
            sum(p.squares for p in parts),
            max(p.largest for p in parts),
            sum(p.base_squares for p in parts),
        )
    pairs = {}
    for pair in members[0].pairs:
        dots = [m.pairs[pair] for m in members]
        norms = math.sqrt(columns[pair[0]].squares * columns[pair[1]].squares)
        pairs[pair] = PairChange(
            sum(p.dot for p in dots), sum(p.both for p in dots), sum(p.opposed for p in dots), norms
        )
    return Difference(name, sum(m.tensors for m in members), columns, pairs)
