"""Spherical linear interpolation of two tensors, each taken as one long vector."""

from __future__ import annotations

from typing import ClassVar

from deltasmith.merges.spherical import Combination, Fraction, arc, pair, slerp_mergekit, weighted_products
from deltasmith.surveys.gram import Doubles

__all__ = ["Slerp", "SlerpMergekit"]


class Slerp(Combination):
    """Move from the first model to the second along their arc: sin((1−t)θ)/sin θ · A + sin(tθ)/sin θ · B.

    θ is the angle between the whole tensors; A and B keep their norms. Weights multiply the tensors first.
    Two checkpoints fine-tuned from one base differ by a small angle, and the arc is then close to the
    straight line; between deltas it is not.

    Decided: t = 0 and t = 1 return the models unchanged. Equal tensors return that tensor. The straight line
    (1−t)A + tB is taken where a tensor is zero, and where cos θ < −0.9995 (opposite tensors have no shortest
    arc, and different norms would blow up). A one-element tensor is always on the straight line.

    Raises:
        RecipeError: there are not exactly two models.

    Paper: Shoemake, 1985, Animating Rotation with Quaternion Curves (doi 10.1145/325165.325242), the formula
    for unit quaternions; using its coefficients on tensors of any norm is the practice of the field. mergekit
    takes the straight line where cos θ > 0.9995 too: see `SlerpMergekit`.

    >>> import numpy as np
    >>> from deltasmith.operation.reference import merge_table
    >>> a, b = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    >>> print(merge_table(Slerp(t=0.5), [{"w": a}, {"w": b}])["w"])
    [0.70710677 0.70710677]
    """

    models: ClassVar[tuple[int, int | None]] = (2, 2)

    t: Fraction = 0.5
    """How far to go, in [0, 1]: 0 is the first model, 1 the second."""

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return the factors of the two tensors."""
        pair(weights, name)
        return arc(weighted_products(products, weights), self.t) * weights


class SlerpMergekit(Combination):
    """Interpolate like `Slerp`, but along the straight line where |cos θ| > 0.9995, as mergekit 0.1.5 does.

    For fine-tuned checkpoints that is nearly always: deltas of independent direction must exceed 2 % of the
    weights' norm before the arc is used. A tensor of norm ≤ 1e-8 counts as lying at a right angle. mergekit's
    products are float32; here they are float64.

    Raises:
        RecipeError: there are not exactly two models.
    """

    models: ClassVar[tuple[int, int | None]] = (2, 2)

    t: Fraction = 0.5
    """How far to go, in [0, 1]: 0 is the first model, 1 the second."""

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return the factors of the two tensors."""
        pair(weights, name)
        return slerp_mergekit(weighted_products(products, weights), self.t) * weights
