"""Figures with intervals from rows: items nested in mask seeds nested in training seeds, tasks counting the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltasmith.evaluate.statistics import Difference, macro_difference, macro_interval
from deltasmith.lab.rows import Row, grouped

__all__ = ["Figure", "difference", "figure"]

RESAMPLES = 2_000
DRAWS = 10_000
"""For differences: a p-value is at least 2 in so many, and Holm multiplies it by the number of claims."""

Nested = list[list[NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class Figure:
    """An accuracy in per cent and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write `83.2 [80.1, 86.0]`."""
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def figure(rows: Sequence[Row]) -> Figure:
    """Average rows over mask seeds, training seeds and tasks."""
    tasks = _nested(rows)
    values = [np.mean([np.mean([m.mean() for m in masks]) for masks in seeds]) for seeds in tasks]
    value = float(np.mean(values))
    low, high = macro_interval(tasks, resamples=RESAMPLES)
    # Near 0 and 1 the bootstrap's smoothing can leave the figure itself outside.
    return Figure(100 * value, 100 * min(low, value), 100 * max(high, value))


def difference(a: Sequence[Row], b: Sequence[Row], factor: float = 1.0, shift: float = 0.0) -> Difference:
    """Compare `a` with `factor` · `b` + `shift` points, paired by training seed and item; in per cent points."""
    other = [[[factor * m + shift / 100 for m in masks] for masks in seeds] for seeds in _nested(b)]
    found = macro_difference(_nested(a), other, resamples=DRAWS)
    low, high = found.interval
    return Difference(100 * found.estimate, (100 * low, 100 * high), found.p_value)


def _nested(rows: Sequence[Row]) -> list[Nested]:
    """Arrange marks as task → training seed → mask seed, each level in sorted order."""

    def arrange(rows: Sequence[Row], key: str) -> list[Sequence[Row]]:
        return [group for _, group in sorted(grouped(rows, lambda row: row.keys[key]).items())]

    by_task = grouped(rows, lambda row: row.task)
    return [
        [
            [row.right.astype(np.float64) for (row,) in arrange(seed, "mask_seed")]
            for seed in arrange(by_task[task], "train_seed")
        ]
        for task in sorted(by_task)
    ]
