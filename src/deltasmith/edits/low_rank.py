"""Keep the largest singular triplets of a delta."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from deltasmith.kernels.linalg import each_matrix, is_matrix, truncate
from deltasmith.operation.protocols import Edit, Found, Place, Reach
from deltasmith.operation.schedule import Density
from deltasmith.table.checkpoint import Floats

__all__ = ["LowRank", "low_rank", "rank_of"]


def rank_of(density: float, shape: tuple[int, ...]) -> int:
    """Return int(density · min(m, n)) for an (m, n) matrix: rounded down, and possibly 0."""
    return int(density * min(shape))


def low_rank(delta: Floats, name: str, *, density: float | None = None, rank: int | None = None) -> Floats:
    """Return the delta with each of its matrices truncated; exactly one of density and rank is given.

    2-D: the matrix. 3-D with "expert" in the name: each expert's matrix. Other tensors of 3 or more
    dimensions: the (first axis) × (all others) matrix. 1-D and scalars: a copy.
    """
    if delta.ndim <= 1 or delta.size == 0:
        return delta.copy()
    cells = delta if is_matrix(name, delta.shape) else delta.reshape(delta.shape[0], -1)

    def act(matrix: Floats) -> Floats:
        kept = rank if rank is not None else rank_of(1.0 if density is None else density, matrix[0].shape)
        return truncate(matrix[0], kept)

    return each_matrix(name, cells[np.newaxis], act).reshape(delta.shape)


class LowRank(Edit):
    """Replace each matrix by the nearest one of lower rank: its largest singular triplets alone.

    Give `density` (of the min(m, n) triplets, int(density · min(m, n)) are kept) or `rank`. Decided: 1-D
    tensors stay dense; each expert of a stack is a matrix; other tensors of 3 or more dimensions
    (convolutions) are taken as (out, everything else). A density that rounds down to no triplet gives zeros;
    a rank of min(m, n) or more changes nothing. The singular values are computed in float32.

    Raises:
        RefusedError: the singular values of a matrix do not converge.

    Paper: Lu et al., 2024, Twin-Merging (arXiv 2406.15479), the SVD compression of exclusive knowledge;
    Eckart and Young, 1936 (doi 10.1007/BF02288367).

    >>> import numpy as np
    >>> from deltasmith.operation.reference import edit_table
    >>> edit_table(LowRank(rank=1), {"w": np.diag([3, 2, 1]).astype(np.float32)})["w"].diagonal().tolist()
    [3.0, 0.0, 0.0]
    """

    reach: ClassVar[Reach] = "tensor"

    density: Density | None = None
    """The fraction of singular triplets kept, in (0, 1]."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """The number of singular triplets kept."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.density is None) == (self.rank is None):
            raise ValueError("give either density or rank")
        return self

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Truncate the tensor."""
        return low_rank(delta, place.name, density=self.density, rank=self.rank)
