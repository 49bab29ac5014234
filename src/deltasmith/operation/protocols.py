"""The contracts between operations and whatever runs them: place, survey, edit, merge.

A runner (the streaming engine, or `reference.py`) holds the table; an operation sees one *tile* of one row at
a time and a `Place` that says where it lies. What an operation must know of the whole tensor or the whole
model before it can act, it asks for through a `Survey`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from deltasmith.operation.record import Record
from deltasmith.table.checkpoint import Floats

__all__ = [
    "BLOCK",
    "BlockSums",
    "Edit",
    "Found",
    "Merge",
    "Place",
    "Reach",
    "Scope",
    "Space",
    "Survey",
    "block_of",
    "row_width",
    "span_of",
]

Reach = Literal["element", "row", "tensor"]
Scope = Literal["tensor", "global"]
Space = Literal["delta", "weight"]

BLOCK = 1 << 16
"""Elements per survey block. Fixed, because float64 sums are combined block by block in index order."""


def row_width(name: str, shape: tuple[int, ...]) -> int:
    """Count the elements of one row: one output unit of the tensor.

    (out, ...) has `out` rows; a 1-D tensor and a scalar are one row; stacked experts, recognised by "expert"
    in the name of a 3-D tensor, have E × out rows along their last axis. Zero-size tensors have width 1.
    """
    size = int(np.prod(shape, dtype=np.int64)) if shape else 1
    if size == 0:
        return 1
    if len(shape) <= 1:
        return size
    if len(shape) == 3 and "expert" in name:
        return shape[-1]
    return size // shape[0]


def block_of(reach: Reach, name: str, shape: tuple[int, ...]) -> int:
    """Count the elements of one survey block: BLOCK, or the fewest whole rows (or the tensor) that reach it."""
    span = span_of(reach, name, shape)
    return span * max(1, -(-BLOCK // span))


def span_of(reach: Reach, name: str, shape: tuple[int, ...]) -> int:
    """Count the consecutive elements that an operation of this reach must see together (at least 1)."""
    if reach == "element":
        return 1
    if reach == "row":
        return row_width(name, shape)
    return max(1, int(np.prod(shape, dtype=np.int64)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tile lies: the tensor, and the index of the tile's first element within it, row-major.

    `key` seeds the random bits of this (seed, label, tensor); `weights` are the models' weights for this tensor,
    in column order (a merge needs them; an edit sees the one of its own column). `block` is the number of
    elements in one survey block of this tensor; tiles start at multiples of it. `statistics(i, suffix)` yields
    the part of column i's statistics file that belongs to this tile (the whole array for reach `tensor`); an edit
    asks for column 0, its own.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    block: int = BLOCK
    key: int = 0
    weights: tuple[float, ...] = (1.0,)
    labels: tuple[str, ...] = ()
    statistics: Callable[[int, str], Floats] | None = None

    @property
    def size(self) -> int:
        """Count the elements of the whole tensor."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def width(self) -> int:
        """Count the elements of one row."""
        return row_width(self.name, self.shape)

    @property
    def weight_array(self) -> npt.NDArray[np.float64]:
        """Return the weights as float64."""
        return np.asarray(self.weights, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Found:
    """What the surveys of one operation have found so far, oldest first.

    `shared`: conclusions of scope `global`. `local`: conclusions of scope `tensor`, for the tensor at hand.
    """

    shared: tuple[Any, ...] = ()
    local: tuple[Any, ...] = ()


class Survey(Protocol):
    """One streaming pass that yields a small conclusion.

    The runner calls `start` once per worker, `tally` for every block (`block_of` elements, in any order, each
    exactly once) and `conclude` with all tallies. Tallies are integers, or float64 sums stored per (tensor
    name, block start) and added in that order by `conclude`: then neither threads nor tiles change the result.
    A survey that only counts may set `blockwise = False` and takes several whole blocks in one call.
    """

    @property
    def scope(self) -> Scope:
        """Say whether one conclusion serves each tensor or the whole model."""

    @property
    def sample(self) -> int:
        """Return 0 to see every element, or n to see pieces of every tensor, about n elements of the scope."""

    def start(self) -> Any:
        """Return an empty tally."""

    def tally(self, acc: Any, cells: Sequence[Floats], place: Place) -> None:
        """Add one block to `acc`. An edit's survey gets one array, a merge's one per model; any shape."""

    def conclude(self, accs: Sequence[Any]) -> Any:
        """Combine all tallies into the finding."""


class _Operation(Record):
    """What edits and merges have in common."""

    reach: ClassVar[Reach] = "element"

    def workspace(self, shape: tuple[int, ...], models: int) -> int:
        """Return the bytes that a whole matrix needs beyond a dozen arrays of its own size (reach `tensor`)."""
        return 0


class Edit(_Operation):
    """delta → delta. Subclasses define `apply`, perhaps `reach`, perhaps `survey`.

    `statistics` is the kind of statistics file an edit reads, "gradient" say, or empty for none: `apply` then finds
    this tile's part under `place.statistics(0, "")`. An edit that draws at random may have
    `variance(delta, place, found)`, the variance over seeds of every element that `apply` would return.
    """

    statistics: ClassVar[str] = ""

    def survey(self, found: Found) -> Survey | None:
        """Return the next survey needed before `apply`, or None when `found` suffices."""
        return None

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the edited tile, a new array; `delta` is (n,), (rows, width) or the tensor, as `reach` says."""
        raise NotImplementedError


class Merge(_Operation):
    """The row's cells → one cell. `space` says what the cells are: deltas, or weights.

    `models` is how many columns it takes: (least, most), most = None for any number.
    """

    models: ClassVar[tuple[int, int | None]] = (1, None)
    space: ClassVar[Space] = "delta"
    spaces: ClassVar[tuple[Space, ...]] = ("delta",)

    def survey(self, found: Found) -> Survey | None:
        """Return the next survey needed before `apply`, or None when `found` suffices."""
        return None

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the merged tile; `cells` is (models, n), (models, rows, width) or (models, *shape)."""
        raise NotImplementedError


@dataclass
class BlockSums:
    """A tally of float64 vectors per block, added in (name, start) order whatever order they came in."""

    parts: dict[tuple[str, int], npt.NDArray[np.float64]] = field(default_factory=dict)

    def add(self, place: Place, values: npt.ArrayLike) -> None:
        """Store the sums of one block."""
        self.parts[place.name, place.start] = np.asarray(values, dtype=np.float64)

    @staticmethod
    def total(tallies: Sequence[BlockSums]) -> dict[str, npt.NDArray[np.float64]]:
        """Add the blocks of each tensor in index order; tensors come in alphabetical order."""
        merged = {key: part for tally in tallies for key, part in tally.parts.items()}
        sums: dict[str, npt.NDArray[np.float64]] = {}
        for name, start in sorted(merged):
            part = merged[name, start]
            sums[name] = sums[name] + part if name in sums else part.copy()
        return sums
