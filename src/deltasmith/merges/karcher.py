"""The point of the sphere from which all models are nearest: the Karcher (Riemannian) mean."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from deltasmith.errors import RecipeError
from deltasmith.merges.spherical import Combination, karcher_mean, shares
from deltasmith.surveys.gram import Doubles

__all__ = ["Karcher"]


class Karcher(Combination):
    """Find the direction with the least weighted squared arc length to all tensors, at their mean norm.

    Each whole tensor is one vector. Weights (not negative; divided by their sum) say how much each model
    pulls; equal weights are mergekit's method. For two tensors of equal norm and weight this is SLERP at t =
    0.5. The iteration starts at the normalised weighted mean direction and follows the mean of the log maps.

    Decided: zero tensors have no direction but count in the mean norm; all zero gives zero. Where the
    directions cancel (an opposite pair of equal weight) no mean exists and the weighted mean of the tensors
    is taken, so the result does not depend on the order of the models; mergekit returns the first tensor.

    Raises:
        RecipeError: a weight is negative, or all are zero.

    Paper: Karcher, 1977, Riemannian Center of Mass and Mollifier Smoothing (doi 10.1002/cpa.3160300502); the
    iteration and its defaults are mergekit's `karcher`. Departures: float64 products; only exact zero tensors
    are dropped, not those of norm ≤ `tol`, so that scaling all inputs scales the result.
    """

    max_iter: Annotated[int, Field(ge=1)] = 10
    """At most this many steps."""
    tol: Annotated[float, Field(gt=0.0)] = 1e-5
    """Stop when a step is shorter than this, in radians."""

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return the factor of each tensor."""
        if (weights < 0).any():
            raise RecipeError("a Karcher mean has no negative weights", where=name, fix="give weights ≥ 0")
        return karcher_mean(products, shares(weights, name), self.max_iter, self.tol)
