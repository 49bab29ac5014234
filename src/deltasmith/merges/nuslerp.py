"""Spherical interpolation of two models by their weights: of whole tensors, of rows, or of columns."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deltasmith.kernels.gram import combine_rows, row_grams
from deltasmith.kernels.linalg import is_matrix
from deltasmith.merges.spherical import Combination, arc, pair
from deltasmith.operation.protocols import Found, Merge, Place, Reach, Space
from deltasmith.surveys.gram import Doubles
from deltasmith.table.checkpoint import Floats

__all__ = ["NuSlerp", "NuSlerpColumns", "NuSlerpRows", "position"]


def position(weights: Doubles) -> float:
    """Return t = w₁/(w₀ + w₁), and 0.5 where the weights sum to less than 1e-6 in magnitude."""
    total = float(weights.sum())
    return 0.5 if abs(total) < 1e-6 else float(weights[1]) / total


def _by_rows(vectors: Floats, weights: Doubles) -> Floats:
    """Interpolate each row of (2, rows, width) by itself."""
    return combine_rows(vectors, arc(row_grams(np.ascontiguousarray(vectors)), position(weights)))


class NuSlerp(Combination):
    """Interpolate two whole tensors along their arc, at t = w₁/(w₀ + w₁) of the two weights.

    Weights are proportions here and do not multiply the tensors; (1, 1) is the middle. Weights of opposite
    sign put t outside [0, 1], an extrapolation along the arc; weights that sum to zero (|Σ| < 1e-6) mean 0.5.
    On deltas (`space: delta`) this is base + arc(τ₀, τ₁). Edge cases are those of `Slerp`.

    Raises:
        RecipeError: there are not exactly two models.

    Paper: none; defined by mergekit's `nuslerp` with `nuslerp_flatten: true`. Departures: the angle is
    float64, and the straight line is taken below cos −0.9995 and for zero tensors, where mergekit's result
    grows without bound or depends on the last bits.
    """

    models: ClassVar[tuple[int, int | None]] = (2, 2)

    def coefficients(self, products: Doubles, weights: Doubles, name: str) -> Doubles:
        """Return the factors of the two tensors."""
        pair(weights, name)
        return arc(products, position(weights))


class NuSlerpRows(Merge):
    """Interpolate every vector along the last axis by itself, at t = w₁/(w₀ + w₁).

    For a stored (out, in) matrix these are the weights of one output. A 1-D tensor is one vector; a scalar is
    a vector of one element, for which the arc is a straight line. Otherwise as `NuSlerp`.

    Paper: none; mergekit's `nuslerp_flatten: false, nuslerp_row_wise: false` (its option names the axes the
    other way round).
    """

    models: ClassVar[tuple[int, int | None]] = (2, 2)
    reach: ClassVar[Reach] = "row"
    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight", "delta")

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Interpolate the rows of the tile."""
        pair(place.weights, place.name)
        if cells.size == 0:
            return np.zeros(cells.shape[1:], dtype=np.float32)
        # A row of a convolution holds several vectors of the last axis, always whole ones.
        width = place.shape[-1] if place.shape else 1
        return _by_rows(cells.reshape(2, -1, width), place.weight_array).reshape(cells.shape[1:])


class NuSlerpColumns(Merge):
    """Interpolate every vector along the first axis by itself, at t = w₁/(w₀ + w₁).

    For a stored (out, in) matrix these are the weights that read one input. In stacked experts each expert's
    matrix is taken by itself. A 1-D tensor is one vector. Needs the whole tensor at once. Otherwise as
    `NuSlerp`.

    Paper: none; mergekit's `nuslerp_flatten: false, nuslerp_row_wise: true`.
    """

    models: ClassVar[tuple[int, int | None]] = (2, 2)
    reach: ClassVar[Reach] = "tensor"
    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight", "delta")

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Interpolate the columns of the tensor."""
        pair(place.weights, place.name)
        shape = cells.shape[1:]
        if cells.size == 0:
            return np.zeros(shape, dtype=np.float32)
        stacked = len(shape) == 3 and is_matrix(place.name, shape)
        length = shape[-2] if stacked else shape[0] if shape else 1
        # (2, experts or 1, length, columns) -> columns become rows.
        columns = cells.reshape(2, shape[0] if stacked else 1, length, -1).swapaxes(2, 3)
        merged = _by_rows(columns.reshape(2, -1, length), place.weight_array)
        return np.ascontiguousarray(merged.reshape(columns.shape[1:]).swapaxes(1, 2)).reshape(shape)
