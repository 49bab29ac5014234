"""Compare a rebuilt family's figures with the committed tables: each should lie where a new training run would.

Training on another kind of processor ends in other weights, as another training seed would. So a rebuilt figure is
held against the 95 % prediction interval of one more training run: mean ± t · s · √(1 + 1/n) over the n committed
training seeds, where s² is the variance between them, but at least that of the items within one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltasmith.errors import RefusedError, VerificationError
from deltasmith.lab.rows import Results, Row, grouped

__all__ = ["ALLOWED", "Cell", "compare_cells", "refuse_strangers"]

ALLOWED = 0.05
"""The share of figures that may lie outside: what intervals of 95 % allow."""

_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Student's t at 97.5 % for n - 1 degrees of freedom, by n."""
_CELL = ("regime", "model", "models", "base", "method", "setting", "rate")
"""Keys that name a cell of a table; the others say which run it was or what a search has chosen."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of a table: what it is, its committed interval, and what the rebuilt family gives."""

    name: str
    low: float
    high: float
    found: float

    @property
    def inside(self) -> bool:
        """Tell whether the rebuilt figure lies in the interval."""
        return self.low <= self.found <= self.high


def compare_cells(committed: Mapping[str, Results], rebuilt: Mapping[str, Results]) -> list[Cell]:
    """Hold every figure of `rebuilt` against the interval of the same one in `committed`.

    Raises RefusedError where a figure is missing among the committed ones: then the tables are of another lab.
    """
    return [
        cell
        for name, results in rebuilt.items()
        if name in committed
        for cell in _cells(name, committed[name], results)
    ]


def refuse_strangers(cells: Sequence[Cell]) -> None:
    """Raise VerificationError (exit 6), naming them, if more figures lie outside than the intervals allow."""
    outside = [cell for cell in cells if not cell.inside]
    if len(outside) > ALLOWED * len(cells):
        shown = "; ".join(f"{c.name}: {c.found:.1f} not in [{c.low:.1f}, {c.high:.1f}]" for c in outside[:8])
        raise VerificationError(
            f"{len(outside)} of {len(cells)} figures lie outside the committed intervals ({shown})",
            fix="compare the versions of torch and numpy with the committed settings, or report it",
        )


def _cells(experiment: str, committed: Results, rebuilt: Results) -> Iterator[Cell]:
    known = grouped(committed.rows, _name)
    for name, rows in grouped(rebuilt.rows, _name).items():
        if name not in known:
            raise RefusedError(
                f"the committed results of {experiment} have no figure {' '.join(map(str, name))}",
                fix="compare with results of the same version",
            )
        low, high = _prediction(known[name])
        yield Cell(
            f"{experiment} {' '.join(map(str, name))}",
            low,
            high,
            100 * float(np.mean([r.accuracy for r in rows])),
        )


def _name(row: Row) -> tuple[Any, ...]:
    return (*(row.keys[key] for key in _CELL if row.keys.get(key) is not None), row.task)


def _prediction(rows: Sequence[Row]) -> tuple[float, float]:
    seeds = grouped(rows, lambda row: row.keys["train_seed"])
    values = np.array([np.mean([row.accuracy for row in group]) for group in seeds.values()])
    within = np.mean([_item_variance(group) for group in seeds.values()])
    between = values.var(ddof=1) if len(values) > 1 else 0.0
    spread = _T[max(2, len(values))] * np.sqrt(max(between, within) * (1 + 1 / len(values)))
    return 100 * float(values.mean() - spread), 100 * float(values.mean() + spread)


def _item_variance(rows: Sequence[Row]) -> float:
    """Return the variance of one training seed's figure over items, never quite 0 (all right, all wrong)."""
    items = rows[0].right.size
    share = (sum(int(row.right.sum()) for row in rows) / len(rows) + 1) / (items + 2)
    return float(share * (1 - share) / items)
