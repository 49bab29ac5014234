"""A glance at the values before a run: what looks wrong although headers fit. Warnings only, never errors.

Looks at one short piece of each tensor (of up to 2,048 tensors, evenly chosen), so that it costs milliseconds; where
that looks suspicious, more is read before anything is said, but never more than 64 MiB. It does not depend on threads,
tiles or resumption.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deltasmith.engine.evaluator import Evaluator
from deltasmith.errors import printable
from deltasmith.planning.plan import Column, Plan, Row
from deltasmith.table.checkpoint import Checkpoint, Floats

__all__ = ["glance"]

_PIECE = 1024
_TENSORS = 2048
_READ = 1 << 18
_MORE = 1 << 24  # elements read to confirm a suspicion


def glance(plan: Plan) -> tuple[str, ...]:
    """Return warnings: a model that equals the base, a base that seems to be another model's, lost tensors."""
    rows = [row for row in plan.rows if row.action == "merge" and row.spec.size]
    rows = rows[:: 1 + len(rows) // _TENSORS]
    if isinstance(plan.base, Evaluator):  # its values do not exist yet, and a glance must stay cheap
        return ()
    warnings: list[str] = []
    with np.errstate(over="ignore", invalid="ignore"):  # the run will refuse what is not finite, by name
        grounds = [None if plan.base is None else _piece(plan.base, row) for row in rows]
        for index, column in enumerate(plan.columns):
            if isinstance(column.checkpoint, Evaluator):
                continue
            warnings += _of_column(plan, column, index, rows, grounds)
    return tuple(warnings)


def _of_column(
    plan: Plan, column: Column, index: int, rows: list[Row], grounds: list[Floats | None]
) -> Iterator[str]:
    moved = ground_norm = 0.0
    for row, ground in zip(rows, grounds, strict=True):
        if not row.present[index] or column.holds_delta(row.name):
            continue
        values = _piece(column.checkpoint, row)
        lost = len(row.spec.shape) > 1 and not values.any() and (ground is None or ground.any())
        if lost and not _any(column.checkpoint, row):
            name = printable(row.name)
            yield f"{name} of {column.label} seems to be zero throughout: was it lost when it was written?"
        if ground is not None:
            delta = values.astype(np.float64) - ground
            moved += float(np.nan_to_num(delta @ delta))
            ground_norm += float(np.nan_to_num(ground.astype(np.float64) @ ground))
    if plan.base is None or column.sparse or not rows:
        return
    if moved == 0.0 and not _differs(plan.base, column.checkpoint, rows):
        yield f"{column.label} does not seem to differ from the base: is it the right model?"
    elif moved > ground_norm:
        ratio = (moved / ground_norm) ** 0.5 if ground_norm else np.inf
        yield (
            f"{column.label} is further from the base than the base is from zero (about {ratio:.1f} times):"
            " are you sure this is its base?"
        )


def _piece(checkpoint: Checkpoint, row: Row) -> Floats:
    """Read a short piece from the middle of a tensor."""
    size = row.spec.size
    out = np.empty(min(size, _PIECE), np.float32)
    checkpoint.read(row.name, (size - out.size) // 2, out)
    return out


def _tiles(checkpoint: Checkpoint, row: Row) -> Iterator[Floats]:
    for start in range(0, min(row.spec.size, _MORE), _READ):
        out = np.empty(min(_READ, row.spec.size - start), np.float32)
        checkpoint.read(row.name, start, out)
        yield out


def _any(checkpoint: Checkpoint, row: Row) -> bool:
    return any(bool(tile.any()) for tile in _tiles(checkpoint, row))


def _differs(base: Checkpoint, other: Checkpoint, rows: list[Row]) -> bool:
    left = _MORE
    for row in rows:
        for a, b in zip(_tiles(base, row), _tiles(other, row), strict=True):
            if not np.array_equal(a, b):
                return True
            left -= a.size
            if left <= 0:
                return False
    return False
