"""TALL masks: the part of a merged delta that one task needs. Where several tasks agree: consensus.py."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deltasmith.kernels import votes
from deltasmith.merges.passthrough import column_of
from deltasmith.operation.protocols import Found, Merge, Place
from deltasmith.table.checkpoint import Floats

__all__ = ["MaskScale", "Tall", "active"]

MaskScale = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def active(own: Floats, rest: Floats, mask_scale: float) -> npt.NDArray[np.bool_]:
    """Mark where a task's own delta outweighs what the other tasks add: |own| > mask_scale · |rest|.

    Where both are 0 the position is not active.
    """
    marks: npt.NDArray[np.bool_] = np.abs(own) > np.float32(mask_scale) * np.abs(rest)
    return marks


class Tall(Merge):
    """Keep of the summed delta τ = Σ w·δ what the model labelled `task` needs: where |δ_t| > λ·|τ − δ_t|.

    The result is for that one task; a mask per task and τ serve all of them. Larger `mask_scale` keeps fewer
    positions; the authors choose it per task from 0.2 to 0.6 on validation data. Weights multiply the deltas
    first. Masks are compared on deltas; the released code compares rounded weights, which decides near-ties
    differently.

    Paper: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression,
    arXiv 2405.07813, equation of the TALL mask and the compression of section 4 (θ0 + mask·τ, no scale).

    >>> import numpy as np
    >>> cells = np.array([[3.0, 1.0], [1.0, 4.0]], np.float32)
    >>> Tall(task="a").apply(cells, Place("w", (2,), weights=(1.0, 1.0), labels=("a", "b")), Found())
    array([4., 0.], dtype=float32)
    """

    task: str
    """The label of the model whose part is kept."""
    mask_scale: MaskScale = 0.4
    """λ, above 0: how many times larger than the others' sum, roughly, the task's own delta must be."""

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return τ of the tile where the task's mask is set, 0 elsewhere."""
        task = column_of(place, self.task)
        total = votes.weighted_sum(cells, place.weights)
        own = cells[task] * np.float32(place.weights[task])
        return np.where(active(own, total - own, self.mask_scale), total, np.float32(0))
