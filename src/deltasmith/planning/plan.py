"""The plan: base, columns with their edits, merge, and one row per tensor with everything resolved for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from deltasmith.operation.protocols import Edit, Merge, Reach, Space
from deltasmith.table.checkpoint import Checkpoint, Spec

__all__ = ["Action", "Column", "EditRule", "Plan", "Row", "Site"]

Action = Literal["merge", "copy", "cast"]


def _holds_weights(name: str) -> bool:
    return False


@dataclass(frozen=True)
class EditRule:
    """One edit of a column and the glob of the tensors it applies to; others stay dense."""

    record: Edit
    where: str = "*"


@dataclass(frozen=True)
class Column:
    """One model of the table: its cells, its weight (a number or a schedule), its edits in order.

    `holds_delta(name)` is true where the cell read is the delta itself (a LoRA pair). A `sparse` column may lack
    tensors of the base, which then count as a zero delta (an adapter); any other column must have them all.
    `statistics` is the file that its edits read, one tensor for each one they touch.
    """

    label: str
    checkpoint: Checkpoint
    weight: object = 1.0
    edits: tuple[EditRule, ...] = ()
    holds_delta: Callable[[str], bool] = _holds_weights
    sparse: bool = False
    tied: bool | None = None
    statistics: Checkpoint | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """One operation at one position: column i's n-th edit, or the merge (column −1), resolved.

    Tensors for which a schedule gives the same record share one site object, and so a "global" survey; sites are
    compared by identity, because they are looked up for every tile.
    """

    column: int
    position: int
    record: Edit | Merge


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of the output and all that happens to it.

    `merge`: computed. `copy`: the bytes of `source`. `cast`: the values of `source` in another element type.
    """

    spec: Spec
    action: Action
    source: str
    reason: str = ""
    present: tuple[bool, ...] = ()
    edits: tuple[tuple[Site, ...], ...] = ()
    merge: Site | None = None
    weights: tuple[float, ...] = ()
    scale: float = 1.0
    reach: Reach = "element"
    block: int = 1

    @property
    def name(self) -> str:
        """Return the tensor's name."""
        return self.spec.name


@dataclass(frozen=True)
class Plan:
    """All decisions of a run; a plan is itself a checkpoint once an `engine.Evaluator` reads it.

    `statistics` holds, per column, the statistics checkpoint a merge asks for. `notes` state what the plan does
    with tensors that are not simply merged; `warnings` are things a user may not have meant.
    """

    base: Checkpoint | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    space: Space
    seed: int = 0
    nonfinite: Literal["refuse", "keep", "zero"] = "refuse"
    statistics: tuple[Checkpoint, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    by_name: Mapping[str, Row] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the rows by name."""
        object.__setattr__(self, "by_name", {row.name: row for row in self.rows})

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the columns' labels in order."""
        return tuple(column.label for column in self.columns)

    def source(self, label: str) -> Checkpoint:
        """Return the checkpoint that a copied row names."""
        if label == "base" and self.base is not None:
            return self.base
        return next(c.checkpoint for c in self.columns if c.label == label)
