"""The median over models."""

from __future__ import annotations

from typing import ClassVar

from deltasmith.kernels import votes
from deltasmith.operation.protocols import Found, Merge, Place, Space
from deltasmith.table.checkpoint import Floats

__all__ = ["Median"]


class Median(Merge):
    """Take, position by position, the middle one of the models' weights.

    One outlying model cannot pull the result away, as it can pull a mean. The models' `weight` values are
    ignored: this is the plain median. With an even number of models it is the mean of the middle two, so with
    two models it is their average. With `space: delta` the same is done to deltas.

    >>> import numpy as np
    >>> Median().apply(np.array([[1.0], [9.0], [2.0]], np.float32), Place("w", (1,)), Found())
    array([2.], dtype=float32)
    """

    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight", "delta")

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the median of the tile over the models."""
        return votes.median(cells)
