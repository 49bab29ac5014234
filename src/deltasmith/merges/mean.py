"""The weighted mean of deltas, and the shares that weights become. The mean of weights is in linear.py."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deltasmith.errors import RecipeError
from deltasmith.kernels import votes
from deltasmith.operation.protocols import Found, Merge, Place
from deltasmith.table.checkpoint import Floats

__all__ = ["Mean", "shares"]

_CANCELS = 1e-12  # a sum this small beside its terms is rounding, not a weight


def shares(place: Place) -> npt.NDArray[np.float64]:
    """Divide the weights by their sum, in float64.

    Raises RecipeError where the sum is zero (or zero but for rounding): there is no mean then.
    """
    weights = place.weight_array
    total = float(weights.sum())
    if abs(total) <= _CANCELS * float(np.abs(weights).sum()):
        given = ", ".join(f"{w:g}" for w in place.weights)
        raise RecipeError(
            f"the weights add up to zero ({given})",
            where=place.name,
            fix="a mean divides by their sum; change a weight, or use a merge that adds up, such as sum",
        )
    return weights / total


class Mean(Merge):
    """Average the deltas: Σ w·δ / Σ w.

    Weights are relative: multiplying all of them by one number changes nothing. They may be negative as long
    as they do not add up to zero, which is refused. Over models that share a base and with no edits this is
    `linear`; with edits it is the mean of what the edits left.

    >>> import numpy as np
    >>> cells = np.array([[1.0, -2.0], [3.0, 2.0]], np.float32)
    >>> Mean().apply(cells, Place("w", (2,), weights=(1.0, 3.0)), Found())
    array([2.5, 1. ], dtype=float32)
    """

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return Σ w·δ / Σ w of the tile."""
        return votes.weighted_sum(cells, shares(place))
