"""The mean of several deltas, shortened by how far they disagree."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from deltasmith.errors import RecipeError
from deltasmith.kernels.gram import combine_rows, row_grams
from deltasmith.merges.spherical import Combination, cosines, norms_of, weighted_products
from deltasmith.operation.protocols import Found, Merge, Place, Reach, Space
from deltasmith.surveys.gram import Doubles
from deltasmith.table.checkpoint import Floats

__all__ = [
    "ModelStock",
    "ModelStockMergekit",
    "ModelStockRows",
    "ModelStockRowsMergekit",
    "mean_cosine",
    "ratio",
    "ratio_mergekit",
]


def _several(models: int, name: str) -> None:
    if models < 2:
        raise RecipeError("model stock of one model", where=name, fix="give at least two models")


def _pairs(matrix: Doubles) -> Doubles:
    """Return the mean over the pairs i < j of (..., T, T)."""
    above = np.triu_indices(matrix.shape[-1], k=1)
    return np.asarray(matrix[..., above[0], above[1]].mean(axis=-1))


def mean_cosine(products: Doubles) -> Doubles:
    """Return the mean of the pairwise cosines (...); a pair with a zero delta counts as 0."""
    return _pairs(cosines(products, undefined=0.0))


def ratio(products: Doubles) -> Doubles:
    """Return t = N cos θ / (1 + (N − 1) cos θ), clamped to [0, 1]."""
    models = products.shape[-1]
    # Clamping cos θ first clamps t, and keeps the divisor at 1 or more.
    cosine = np.maximum(mean_cosine(products), 0.0)
    return np.asarray(models * cosine / (1.0 + (models - 1) * cosine))


def ratio_mergekit(products: Doubles) -> Doubles:
    """Return mergekit's t: products of norms below 1e-6 count as 1e-6, and t is not clamped.

    Where 1 + (N − 1) cos θ vanishes t is infinite there, and 0 here.
    """
    models, norms = products.shape[-1], norms_of(products)
    scale = np.maximum(norms[..., :, None] * norms[..., None, :], 1e-6)
    cosine = _pairs(np.clip(products / scale, -1.0, 1.0))
    divisor = 1.0 + (models - 1) * cosine
    known = divisor > 1e-12
    return np.where(known, models * cosine / np.where(known, divisor, 1.0), 0.0)


class ModelStock(Combination):
    """Return t times the mean delta, t = N cos θ / (1 + (N − 1) cos θ) from the mean pairwise cosine.

    Deltas that agree are kept (cos θ = 1: t = 1), orthogonal ones vanish (t = 0: the base). One t per tensor.
    Weights multiply the deltas first. Decided: t is clamped to [0, 1] (a negative cosine gives the base, and
    the pole at cos θ = −1/(N − 1) is never met); a zero delta has cosine 0 with all others.

    Raises:
        RecipeError: there are fewer than two models.

    Paper: Jang, Yun and Han, 2024, Model Stock: All We Need Is Just a Few Fine-Tuned Models (arXiv
    2403.19522), the closed form of the interpolation ratio. The paper's angle is one for all pairs; for pairs
    that differ the mean of the cosines is taken, as in mergekit. The clamp is ours.

    >>> import numpy as np
    >>> from deltasmith.operation.reference import merge_table
    >>> a, b = np.array([1, 0], np.float32), np.array([0.6, 0.8], np.float32)  # cos = 0.6, t = 0.75
    >>> print(merge_table(ModelStock(), [{"w": a}, {"w": b}])["w"])
    [0.6 0.3]
    """

    models: ClassVar[tuple[int, int | None]] = (2, None)
    space: ClassVar[Space] = "delta"
    spaces: ClassVar[tuple[Space, ...]] = ("delta",)

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return t/N times each weight."""
        _several(len(weights), name)
        return weights * (ratio(weighted_products(products, weights)) / len(weights))


class ModelStockMergekit(Combination):
    """Merge like `ModelStock` with mergekit 0.1.5's ratio: norm products clamped at 1e-6, t not clamped.

    Deltas whose norms multiply to less than 1e-6 (small tensors, small learning rates) look orthogonal to it,
    and it returns the base. Where its t would be infinite, 0 is used.
    """

    models: ClassVar[tuple[int, int | None]] = (2, None)
    space: ClassVar[Space] = "delta"
    spaces: ClassVar[tuple[Space, ...]] = ("delta",)

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return t/N times each weight."""
        _several(len(weights), name)
        return weights * (ratio_mergekit(weighted_products(products, weights)) / len(weights))


def _by_rows(vectors: Floats, place: Place, t_of: Callable[[Doubles], Doubles]) -> Floats:
    """Merge each row of (T, rows, width) deltas with its own t."""
    weights = place.weight_array
    _several(len(weights), place.name)
    if vectors.size == 0:
        return np.zeros(vectors.shape[1:], dtype=np.float32)
    ratios = t_of(weighted_products(row_grams(np.ascontiguousarray(vectors)), weights))
    return combine_rows(vectors, ratios[:, None] * (weights / len(weights)))


class ModelStockRows(Merge):
    """Do what `ModelStock` does for each row (output unit) with its own t.

    A 1-D tensor is one row; a row of one element has cosine ±1 or 0. Otherwise as `ModelStock`.

    Paper: arXiv 2403.19522, the filter-wise variant; mergekit's `filter_wise: true`.
    """

    models: ClassVar[tuple[int, int | None]] = (2, None)
    reach: ClassVar[Reach] = "row"

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Combine the rows of the tile."""
        return _by_rows(cells, place, ratio)


class ModelStockRowsMergekit(Merge):
    """Merge like `ModelStockRows` with mergekit 0.1.5's ratio and its rows: vectors along the last axis."""

    models: ClassVar[tuple[int, int | None]] = (2, None)
    reach: ClassVar[Reach] = "row"

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Combine the vectors of the tile."""
        width = place.shape[-1] if place.shape else 1
        # A row of a convolution holds several vectors of the last axis, always whole ones.
        vectors = cells.reshape(len(cells), -1, width) if cells.size else cells
        return _by_rows(vectors, place, ratio_mergekit).reshape(cells.shape[1:])
