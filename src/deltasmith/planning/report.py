"""What a plan says to people and programs: every tensor, the bytes, the memory, the warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deltasmith.operation.protocols import Edit, Merge
from deltasmith.planning.plan import Plan, Row
from deltasmith.table.names import projection_of

__all__ = ["Kind", "describe", "kinds", "tensors"]


@dataclass(frozen=True)
class Kind:
    """Tensors that differ in their numbers only (layer, expert) and to which the same happens."""

    pattern: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    what: str


Show = Callable[[Edit | Merge], str]


def describe(row: Row, labels: Sequence[str], show: Show = repr) -> str:
    """Return in words what happens to one tensor; `show` writes an operation."""
    if row.action != "merge" or row.merge is None:
        return f"{row.action} from {row.source} ({row.reason})"
    columns = []
    for index, sites in enumerate(row.edits):
        steps = [show(site.record) for site in sites]
        if not row.present[index]:
            steps = ["zero"]
        weight = row.weights[index]
        columns.append(" → ".join([*steps, f"×{weight:g}"] if weight != 1 else steps) or "δ")
    same = len(set(columns)) == 1
    named = (f"{label}: {steps}" for label, steps in zip(labels, columns, strict=True))
    edits = columns[0] if same else "[" + "; ".join(named) + "]"
    tail = f" ×{row.scale:g}" if row.scale != 1 else ""
    return f"{edits} → {show(row.merge.record)}{tail}" if edits else show(row.merge.record) + tail


def kinds(plan: Plan, show: Show = repr) -> Iterator[Kind]:
    """Group the rows for display, in order of first appearance."""
    groups: dict[tuple[str, tuple[int, ...], str, str], int] = {}
    for row in plan.rows:
        key = (projection_of(row.name), row.spec.shape, row.spec.dtype.name, describe(row, plan.labels, show))
        groups[key] = groups.get(key, 0) + 1
    for (pattern, shape, dtype, what), count in groups.items():
        yield Kind(pattern, count, shape, dtype, what)


def tensors(plan: Plan, show: Show = repr) -> list[dict[str, Any]]:
    """Return every tensor with what happens to it, as plain data."""
    return [
        {
            "name": row.name,
            "shape": list(row.spec.shape),
            "dtype": row.spec.dtype.name,
            "from": "merged" if row.action == "merge" else row.source,
            "action": row.action,
            "what": describe(row, plan.labels, show),
        }
        for row in plan.rows
    ]
