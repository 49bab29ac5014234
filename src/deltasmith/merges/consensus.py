"""Consensus: the part of a merged delta that several tasks need. One task's part: tall.py."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deltasmith.errors import RecipeError
from deltasmith.kernels import votes
from deltasmith.merges.tall import MaskScale, active
from deltasmith.operation.protocols import Found, Merge, Place
from deltasmith.table.checkpoint import Floats

__all__ = ["Consensus", "agreement"]


def agreement(deltas: Floats, total: Floats, mask_scale: float) -> npt.NDArray[np.int64]:
    """Count, position by position, the tasks whose TALL mask is set; `deltas` is (models, ...)."""
    count = np.zeros(total.shape, np.int64)
    for own in deltas:
        count += active(own, total - own, mask_scale)
    return count


class Consensus(Merge):
    """Keep the summed delta τ = Σ w·δ where the TALL masks of at least `k` models are set, and zero the rest.

    With k = 2 it removes what no task needs and what only one task needs. Weights multiply the deltas first.
    `k` above the number of models is refused; k = 1 keeps whatever anyone needs.

    Paper: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression,
    arXiv 2405.07813, Consensus Task Arithmetic; the recipe's `scale` is its α. Apply edits and `k: 2` for
    Consensus TIES. See `tall` for the masks and a departure.

    >>> import numpy as np
    >>> cells = np.array([[3.0, 1.0, 0.0], [2.0, 9.0, 0.0]], np.float32)
    >>> Consensus().apply(cells, Place("w", (3,), weights=(1.0, 1.0)), Found())
    array([5., 0., 0.], dtype=float32)
    """

    k: Annotated[int, Field(ge=1)] = 2
    """How many models must need a position for it to stay."""
    mask_scale: MaskScale = 0.4
    """λ of the masks, above 0: larger masks fewer positions in."""

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return τ of the tile where at least k masks are set, 0 elsewhere."""
        if self.k > len(cells):
            raise RecipeError(
                f"consensus asks for {self.k} models that agree, and there are {len(cells)}",
                where=place.name,
                fix=f"lower k to {len(cells)} or less",
            )
        weights = place.weight_array.astype(np.float32).reshape(-1, *[1] * (cells.ndim - 1))
        total = votes.weighted_sum(cells, place.weights)
        return np.where(agreement(cells * weights, total, self.mask_scale) >= self.k, total, np.float32(0))
