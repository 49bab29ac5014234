"""From dot products to coefficients: the spherical methods as pure functions of a T × T Gram matrix.

Every function takes float64 products of shape (..., T, T) or (T, T) and returns coefficients c such that the
merged tensor is Σ c_k · cell_k. Edge cases are decided here, once:

- A zero tensor has no direction. Interpolation treats its angle to anything as 0, so the arc becomes a
  straight line; means of directions leave it out but count its norm (0) in the mean norm.
- Two opposite tensors have no shortest arc. Where cos θ < −0.9995 the straight line is taken: on the arc,
  norms that differ by d would be amplified to d / (2 cos(θ/2)), 16 d and more.
- Near θ = 0 nothing special happens: sin(aθ)/sin θ → a smoothly, and an error of 1e-14 in cos θ moves the
  coefficients by about as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from deltasmith.errors import RecipeError
from deltasmith.kernels.gram import combine
from deltasmith.operation.protocols import Found, Merge, Place, Space
from deltasmith.operation.schedule import Fraction
from deltasmith.surveys.gram import Doubles, GramSurvey
from deltasmith.table.checkpoint import Floats

__all__ = [
    "OPPOSITE",
    "Combination",
    "Fraction",
    "angle",
    "arc",
    "cosines",
    "karcher_mean",
    "mean_direction",
    "norms_of",
    "pair",
    "shares",
    "slerp_mergekit",
    "weighted_products",
]

"""A number in [0, 1] that a recipe may give as a schedule."""

OPPOSITE = -0.9995
"""Below this cosine two tensors count as opposite: where mergekit's SLERP also turns to the straight line."""


class Combination(Merge):
    """Merge whole tensors into Σ c_k · cell_k, the coefficients depending on their dot products alone.

    Subclasses define `coefficients`. One survey pass finds the products, then the combination streams.
    """

    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight", "delta")

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return one factor per model from the (T, T) products of a tensor and the models' weights."""
        raise NotImplementedError

    def survey(self, found: Found) -> GramSurvey | None:
        """Ask for the dot products of the cells."""
        return None if found.local else GramSurvey(self.coefficients)

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Combine the tile."""
        return combine(cells, found.local[-1])


def weighted_products(products: Doubles, weights: Doubles) -> Doubles:
    """Return the products of the cells after each is multiplied by its weight."""
    return products * np.outer(weights, weights)


def norms_of(products: Doubles) -> Doubles:
    """Return the norms (..., T): the square roots of the diagonal."""
    return np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))


def cosines(products: Doubles, *, undefined: float) -> Doubles:
    """Return the pairwise cosines in [−1, 1]; pairs with a zero tensor get `undefined`."""
    norms = norms_of(products)
    scale = norms[..., :, None] * norms[..., None, :]
    known = scale > 0
    return np.where(known, np.clip(products / np.where(known, scale, 1.0), -1.0, 1.0), undefined)


def angle(cosine: Doubles) -> Doubles:
    """Return θ in [0, π] as 2 atan2(|u₀ − u₁|, |u₀ + u₁|) of unit vectors with this cosine."""
    return 2.0 * np.arctan2(np.sqrt(np.maximum(1.0 - cosine, 0.0)), np.sqrt(np.maximum(1.0 + cosine, 0.0)))


def pair(weights: Sequence[float] | Doubles, name: str) -> None:
    """Refuse any number of models but two.

    Raises:
        RecipeError: there are not exactly two models.
    """
    if len(weights) != 2:
        raise RecipeError(
            f"spherical interpolation of {len(weights)} models", where=name, fix="give exactly two models"
        )


def shares(weights: Doubles, name: str) -> Doubles:
    """Return the weights divided by their sum.

    Raises:
        RecipeError: they sum to (nearly) zero, so that no mean exists.
    """
    total = weights.sum()
    if abs(total) < 1e-12:
        raise RecipeError(
            f"the weights sum to {total:.3g}", where=name, fix="give weights whose mean is defined"
        )
    return np.asarray(weights / total)


def arc(products: Doubles, t: float) -> Doubles:
    """Return sin((1−t)θ)/sin θ and sin(tθ)/sin θ for pairs (..., 2, 2); 1−t and t where the arc is undefined.

    t = 0 gives exactly (1, 0) and t = 1 exactly (0, 1).
    """
    cosine = cosines(products, undefined=1.0)[..., 0, 1]
    theta = angle(np.where(cosine < OPPOSITE, 1.0, cosine))
    ends = np.array([1.0 - t, t])
    # np.sinc(x) = sin(πx)/(πx), so the limit θ = 0 needs no branch.
    return np.asarray(ends * np.sinc(ends * theta[..., None] / np.pi) / np.sinc(theta[..., None] / np.pi))


def slerp_mergekit(products: Doubles, t: float) -> Doubles:
    """Return mergekit's SLERP coefficients for one pair (2, 2): the straight line where |cos| > 0.9995.

    A tensor of norm ≤ 1e-8 is not normalised, so a zero tensor lies at θ = π/2 from everything.
    """
    norms = norms_of(products)
    norms = np.where(norms > 1e-8, norms, 1.0)
    cosine = products[0, 1] / (norms[0] * norms[1])
    ends = np.array([1.0 - t, t])
    if abs(cosine) > 0.9995:
        return ends
    theta = np.arccos(cosine)
    return np.asarray(np.sin(ends * theta) / np.sin(theta))


def mean_direction(products: Doubles, weights: Doubles) -> Doubles:
    """Return the coefficients of (Σ wᵢ‖vᵢ‖) · m, m the normalised Σ wᵢ vᵢ/‖vᵢ‖.

    Where Σ wᵢ uᵢ is (nearly) zero there is no mean direction: the weighted sum Σ wᵢ vᵢ is returned.
    """
    norms = norms_of(products)
    units = np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0)
    length = float(np.sqrt(np.maximum(units @ products @ units, 0.0)))
    if length <= 1e-7 * float(np.abs(weights).sum()):
        return weights.copy()
    return units * ((weights @ norms) / length)


def karcher_mean(products: Doubles, weights: Doubles, max_iter: int, tol: float) -> Doubles:
    """Return the coefficients of the Karcher mean of the directions times the weighted mean norm.

    Iterates stay in the span of the inputs, so they are kept as coefficients over the unit tensors. `weights`
    sum to 1 and are not negative. Inputs opposite to the current mean have no logarithm and wait for the next
    step; if the weighted directions cancel, the weighted sum Σ wᵢ vᵢ is returned.
    """
    norms = norms_of(products)
    kept = (norms > 0) & (weights > 0)
    if not kept.any():
        return np.zeros_like(weights)
    between = cosines(products, undefined=0.0)[np.ix_(kept, kept)]
    pull = weights[kept] / weights[kept].sum()
    mean = pull.copy()
    length = float(np.sqrt(np.maximum(mean @ between @ mean, 0.0)))
    if length <= 1e-7:
        return weights.copy()
    mean /= length
    for _ in range(max_iter):
        cosine = np.clip(between @ mean, -1.0, 1.0)
        near = cosine > -1.0 + 1e-12
        # Log map of uᵢ at the mean: θ/sin θ · (uᵢ − cos θ · mean).
        logs = np.where(near, pull, 0.0) / np.sinc(angle(np.where(near, cosine, 1.0)) / np.pi)
        step = logs - (logs @ cosine) * mean
        size = float(np.sqrt(np.maximum(step @ between @ step, 0.0)))
        if size < tol:
            break
        mean = np.cos(size) * mean + (np.sin(size) / size) * step
        mean /= np.sqrt(mean @ between @ mean)
    found = np.zeros_like(weights)
    found[kept] = mean * (weights @ norms) / norms[kept]
    return found
