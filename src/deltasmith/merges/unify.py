"""EMR's unified vector: one delta that stands for all tasks. Rebuilding one task from it is in emr.py."""

from __future__ import annotations

from deltasmith.kernels import votes
from deltasmith.operation.protocols import Found, Merge, Place
from deltasmith.table.checkpoint import Floats

__all__ = ["Unify"]


class Unify(Merge):
    """Take, position by position, the sign of Σ w·δ and the largest magnitude among the w·δ of that sign.

    Where the sum is exactly 0 the sign is negative, so the most negative w·δ is taken, if there is one. Where
    every delta is 0 the result is 0. Weights multiply the deltas before anything else. Alone (without the
    masks and rescalers of `emr`) the unified vector is a poor model: it is larger than any of the tasks'
    deltas.

    Paper: Huang et al. 2024, EMR-Merging, arXiv 2405.17461, Elect; the sign of a zero sum is the released
    code's.

    >>> import numpy as np
    >>> cells = np.array([[4.0, 1.0, -2.0], [2.0, -3.0, 2.0]], np.float32)
    >>> Unify().apply(cells, Place("w", (3,), weights=(1.0, 1.0)), Found())
    array([ 4., -3., -2.], dtype=float32)
    """

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the unified vector of the tile."""
        return votes.unify(cells, place.weights)
