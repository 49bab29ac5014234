"""Weighted averages and sums of the weights themselves, base or no base. Means of deltas are in mean.py."""

from __future__ import annotations

from typing import ClassVar

from deltasmith.kernels import votes
from deltasmith.merges.mean import shares
from deltasmith.operation.protocols import Found, Merge, Place, Space
from deltasmith.table.checkpoint import Floats

__all__ = ["Linear", "LinearSum"]


class Linear(Merge):
    """Average the models' weights: Σ w·θ / Σ w.

    The plain average of checkpoints (a model soup), or with sample counts as `weight` one round of FedAvg.
    Multiplying all `weight` values by one number changes nothing; if they add up to zero the merge is
    refused. With `space: delta` it averages deltas, which is `mean`.

    Paper: Wortsman et al. 2022, Model soups, arXiv 2203.05482 (uniform soup); McMahan et al. 2017,
    Communication- Efficient Learning of Deep Networks from Decentralized Data, arXiv 1602.05629, Algorithm 1
    (server step).

    >>> import numpy as np
    >>> cells = np.array([[1.0, -2.0], [3.0, 2.0]], np.float32)
    >>> Linear().apply(cells, Place("w", (2,), weights=(100.0, 300.0)), Found())
    array([2.5, 1. ], dtype=float32)
    """

    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight", "delta")

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return Σ w·θ / Σ w of the tile."""
        return votes.weighted_sum(cells, shares(place))


class LinearSum(Merge):
    """Add the models' weights, each multiplied by its `weight`: Σ w·θ, not divided by anything.

    Unless the `weight` values add up to 1 this changes the size of every parameter; `linear` is what most
    people want. With weights 1 + α and −α it extrapolates from the second model through the first without a
    base.
    """

    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight", "delta")

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return Σ w·θ of the tile."""
        return votes.weighted_sum(cells, place.weights)
