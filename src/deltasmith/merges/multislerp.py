"""The mean direction of any number of tensors, at their mean norm."""

from __future__ import annotations

from deltasmith.merges.spherical import Combination, mean_direction, shares
from deltasmith.surveys.gram import Doubles

__all__ = ["MultiSlerp", "MultiSlerpUnnormalised"]


class MultiSlerp(Combination):
    """Add the unit vectors of the tensors by weight, and give the sum the weighted mean of their norms.

    Weights are proportions: they are divided by their sum. For two models of equal weight this is SLERP's
    direction at t = 0.5. Decided: a zero tensor has no direction but counts in the mean norm; where the
    directions cancel (length ≤ 1e-7) the weighted mean of the tensors is taken, for any number of models
    (mergekit: only for two, otherwise an error).

    Raises:
        RecipeError: the weights sum to zero.

    Paper: none; mergekit's `multislerp`. mergekit goes on to project the unit vectors onto the tangent space
    at that mean and to follow their weighted sum. But Σ wᵢ(uᵢ − (uᵢ·m)m) is exactly zero when m is the
    direction of Σ wᵢuᵢ, so the step changes nothing and is left out.

    >>> import numpy as np
    >>> from deltasmith.operation.reference import merge_table
    >>> a, b = np.array([3, 0], np.float32), np.array([0, 1], np.float32)
    >>> print(merge_table(MultiSlerp(), [{"w": a}, {"w": b}])["w"])  # norm 2, half-way
    [1.4142135 1.4142135]
    """

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return the factor of each tensor."""
        return mean_direction(products, shares(weights, name))


class MultiSlerpUnnormalised(Combination):
    """Merge like `MultiSlerp`, but with the weighted *sum* of the norms: Σ w times as long.

    mergekit's `normalize_weights: false`. Weights that sum to zero are allowed.
    """

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return the factor of each tensor."""
        return mean_direction(products, weights)
