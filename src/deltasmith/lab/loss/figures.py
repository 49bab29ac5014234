"""From rows to figures: margins and verdicts, pairs of predicted and measured, means over experts and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from deltasmith.analysis.report import Estimate, Verdict
from deltasmith.analysis.resampling import multiplicities, percentile_interval
from deltasmith.analysis.verdict import default_margin, verdict
from deltasmith.lab.loss.agreement import Pairs
from deltasmith.lab.rows import Results, Row

__all__ = ["Mask", "Regime", "change_of", "mean_over", "number", "ratio_of"]

Values = npt.NDArray[np.float64]
RESAMPLES = 2_000


def number(row: Row, key: str) -> float:
    """Return a figure of a row."""
    return float(str(row.keys[key]))


def change_of(row: Row) -> Estimate:
    """Return the measured change with its interval."""
    return Estimate(number(row, "measured"), number(row, "low"), number(row, "high"))


@dataclass(frozen=True)
class Mask:
    """What one mask of a random edit did: the change of the loss, and its first-order term."""

    change: Estimate
    first: float


class Regime:
    """All rows of one regime of one result file."""

    def __init__(self, results: Results, name: str) -> None:
        """Pick the rows out."""
        self.name = name
        self.rows = results.where(regime=name).rows

    def of(self, experiment: str, **keys: object) -> list[Row]:
        """Return the rows of an experiment that have all these keys."""
        return [
            row
            for row in self.rows
            if row.keys["experiment"] == experiment and all(row.keys.get(k) == v for k, v in keys.items())
        ]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Name the experts."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @cached_property
    def losses(self) -> Mapping[str, tuple[float, float]]:
        """Return the losses of expert and base on the measured items, by task."""

        def loss(task: str, which: str) -> float:
            (row,) = (r for r in self.of("predictions", group=which) if r.task == task)
            return number(row, "loss")

        return {task: (loss(task, "expert"), loss(task, "base")) for task in self.tasks}

    @cached_property
    def margins(self) -> Mapping[str, float]:
        """Return the change of the loss that counts as none, by task."""
        return {task: default_margin(*losses).value for task, losses in self.losses.items()}

    @cached_property
    def accuracies(self) -> Mapping[str, float]:
        """Return the share of test items that each expert has right."""
        return {row.task: row.accuracy for row in self.of("predictions", group="expert")}

    def lost(self, row: Row) -> float:
        """Return the points of accuracy that an edit costs its expert."""
        return 100 * (self.accuracies[row.task] - row.accuracy)

    def verdict(self, row: Row, change: Estimate | None = None) -> Verdict:
        """Name the class of a row's measured change, or of another change of the same expert."""
        return verdict(change_of(row) if change is None else change, self.margins[row.task])

    def verdicts(self, rows: Iterable[Row]) -> Counter[Verdict]:
        """Count the classes of some rows."""
        return Counter(self.verdict(row) for row in rows)

    @cached_property
    def edits(self) -> list[Row]:
        """Return every edit of the catalogue on every expert."""
        return [row for row in self.of("predictions") if row.keys["group"] not in ("base", "expert")]

    def pairs(self, key: str, rows: Sequence[Row] | None = None, against: str = "measured") -> Pairs:
        """Return what `key` holds beside what was measured."""
        chosen = self.edits if rows is None else rows
        predicted = np.array([number(row, key) for row in chosen])
        measured = np.array([number(row, against) for row in chosen])
        return Pairs(predicted, measured, [row.task for row in chosen])

    def beyond(self, rows: Sequence[Row] | None = None) -> list[Row]:
        """Return the edits whose measured change exceeds the margin, up or down."""
        chosen = self.edits if rows is None else rows
        return [row for row in chosen if abs(number(row, "measured")) > self.margins[row.task]]

    @staticmethod
    def masks(row: Row) -> list[Mask]:
        """Return what every mask of a row did."""
        numbers = [list(map(float, one.split())) for one in str(row.keys["masks"]).split("; ")]
        return [Mask(Estimate(*found[:3]), found[3]) for found in numbers]

    def excess(self, row: Row) -> Values:
        """Return what every mask cost beyond its first-order term, (masks,); the same on average, with less noise."""
        return np.array([mask.change.value - mask.first for mask in self.masks(row)])


def mean_over(groups: Sequence[Sequence[float]]) -> Estimate:
    """Average values within each group, then over the groups; the interval draws groups, and values within them."""
    arrays = [np.asarray(group, np.float64) for group in groups]
    value = float(np.mean([group.mean() for group in arrays]))
    drawn = multiplicities(len(groups), 0, RESAMPLES)
    means = np.column_stack([_within(group, n) for n, group in enumerate(arrays)])
    return Estimate(value, *percentile_interval((drawn * means).sum(axis=1) / len(groups)))


def ratio_of(values: Values, against: Values | float) -> Estimate:
    """Divide the mean of values by that of others, drawn together; the interval is over draws like these."""
    other = np.broadcast_to(np.asarray(against, np.float64), values.shape)
    drawn = multiplicities(len(values), 0, RESAMPLES)
    return Estimate(
        float(values.mean() / other.mean()), *percentile_interval((drawn @ values) / (drawn @ other))
    )


def _within(group: Values, seed: int) -> Values:
    return multiplicities(len(group), seed + 1, RESAMPLES) @ group / len(group)
