"""Task arithmetic: the weighted sum of deltas. Sums of weights (not deltas) are in linear.py."""

from __future__ import annotations

from deltasmith.kernels import votes
from deltasmith.operation.protocols import Found, Merge, Place
from deltasmith.table.checkpoint import Floats

__all__ = ["Sum"]


class Sum(Merge):
    """Add the deltas, each multiplied by its model's weight: Σ w·δ.

    A sum, not a mean: T models of weight 1 move the base T times as far, so weights of 0.3 to 0.5 are usual.
    One model of weight 1 + α is ExPO's extrapolation; a negative weight subtracts what a model has learnt.

    Paper: Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv 2212.04089: the recipe's `scale` is
    its λ.

    >>> import numpy as np
    >>> cells = np.array([[1.0, -2.0], [3.0, 2.0]], np.float32)
    >>> Sum().apply(cells, Place("w", (2,), weights=(1.0, 0.5)), Found())
    array([ 2.5, -1. ], dtype=float32)
    """

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return Σ w·δ of the tile."""
        return votes.weighted_sum(cells, place.weights)
