"""The dot products of a row's cells over the whole tensor, turned at once into coefficients.

A spherical merge is a linear combination of its inputs whose coefficients depend on the T × T dot products
only. So one streaming pass suffices: no second pass measures small angles, because every coefficient is a
smooth function of cos θ where the arc is used (it is not near θ = π, see `merges/spherical.py`), and the
float64 cosine is good to about 1e-14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deltasmith.kernels.gram import gram
from deltasmith.operation.protocols import BlockSums, Place, Scope
from deltasmith.table.checkpoint import Floats

__all__ = ["Doubles", "GramSurvey", "GramTally"]

Doubles = npt.NDArray[np.float64]


@dataclass
class GramTally(BlockSums):
    """The dot products of each block, and the models' weights for the tensor they belong to."""

    weights: dict[str, Doubles] = field(default_factory=dict)


@dataclass(frozen=True)
class GramSurvey:
    """Sum the cells' dot products over one tensor; conclude with `finish(products, weights, name)`.

    Block sums are float64 and added in block order. A tensor without elements has no blocks: the conclusion
    is then an empty array, which nothing reads.
    """

    finish: Callable[[Doubles, Doubles, str], Doubles]
    scope: Scope = "tensor"
    sample: int = 0

    def start(self) -> GramTally:
        """Return an empty tally."""
        return GramTally()

    def tally(self, acc: GramTally, cells: Sequence[Floats], place: Place) -> None:
        """Add the products of one block."""
        acc.add(place, gram(cells))
        acc.weights[place.name] = place.weight_array

    def conclude(self, accs: Sequence[GramTally]) -> Doubles:
        """Add the blocks and turn them into coefficients."""
        weights = {name: found for acc in accs for name, found in acc.weights.items()}
        for name, products in BlockSums.total(accs).items():
            return self.finish(products, weights[name], name)
        return np.zeros(0)
