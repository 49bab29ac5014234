"""Linear layers whose merged outputs stay closest to every model's own outputs on its own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.kernels.linalg import is_matrix
from deltasmith.operation.protocols import Found, Merge, Place, Reach, Space
from deltasmith.table.checkpoint import Floats

__all__ = ["RegMean", "regmean"]

Doubles = npt.NDArray[np.float64]

_HOPELESS = 1e10
"""Grams are stored in float32: beyond this condition number the solution is rounding noise."""


def _solve(total: Doubles, right: Doubles, name: str) -> Doubles:
    """Return total⁻¹ · right for a positive definite matrix, or refuse."""
    # Scaling to a unit diagonal: a feature in other units is no reason to refuse.
    scale = np.sqrt(np.maximum(np.diagonal(total), 0.0))
    pivots = np.zeros(1)
    if (scale > 0).all():
        scaled = total / np.outer(scale, scale)
        try:
            pivots = np.diagonal(np.linalg.cholesky(scaled))
        except np.linalg.LinAlgError:
            pivots = np.zeros(1)
    # (largest/smallest pivot)² bounds the condition number from below, at no extra cost.
    if pivots.min() <= 0 or (pivots.max() / pivots.min()) ** 2 > _HOPELESS:
        raise RefusedError(
            "the summed Gram matrix is singular",
            where=name,
            fix="collect statistics from more examples, or set damping (1e-4, say)",
        )
    return np.asarray(np.linalg.solve(scaled, right / scale[:, None]) / scale[:, None])


def regmean(
    cells: Floats,
    grams: Sequence[Floats],
    weights: Doubles,
    *,
    off_diagonal: float,
    damping: float,
    name: str,
) -> Floats:
    """Return ((Σ wᵢGᵢ)⁻¹ Σ wᵢGᵢWᵢᵀ)ᵀ for (T, out, in) weights and T Gram matrices (in × in), in float64.

    Off-diagonal entries of every Gram are multiplied by `off_diagonal` first. `damping` times the mean
    diagonal of Σ wᵢGᵢ is then added to its diagonal, with the plain (weighted) mean as its target: a feature
    that no model has seen takes the mean.

    Raises:
        RefusedError: the sum is singular, not positive definite, or hopelessly conditioned.
    """
    width = cells.shape[2]
    total, right = np.zeros((width, width)), np.zeros((width, cells.shape[1]))
    for cell, gram, weight in zip(cells, grams, weights, strict=True):
        shrunk = gram * np.float64(weight * off_diagonal)
        np.fill_diagonal(shrunk, weight * np.diagonal(gram).astype(np.float64))
        total += shrunk
        right += shrunk @ cell.T.astype(np.float64)
    if damping > 0:
        extra = damping * np.diagonal(total).mean()
        total[np.diag_indices(width)] += extra
        right += extra * np.tensordot(weights / weights.sum(), cells, axes=1).T
    return np.ascontiguousarray(_solve(total, right, name).T, dtype=np.float32)


class RegMean(Merge):
    """Solve for the linear layer closest, in squared error of outputs, to each model on its own inputs.

    Wᵀ = (Σ wᵢGᵢ)⁻¹ Σ wᵢGᵢWᵢᵀ, Gᵢ = XᵢᵀXᵢ of the layer's inputs. Weights multiply the Gram matrices. Works on
    weights, in float64.

    `statistics` names a file per label with the tensors `{name}::gram` (in × in, or experts × in × in).
    Decided: a tensor for which no file has a Gram takes the plain mean by weight; one for which only some
    files have it is refused.

    Raises:
        RecipeError: the run has no statistics at all, or the weights sum to zero. RefusedError: a Gram is
        missing or of the wrong shape, or the sum of the Grams is singular; with too few
            examples or unused inputs it is, and `damping` helps.

    Paper: Jin et al., 2022, Dataless Knowledge Fusion by Merging Weights of Language Models (arXiv
    2212.09849), the closed form and the factor α on off-diagonal entries. The damping is ours; the paper's
    code inverts as is.
    """

    reach: ClassVar[Reach] = "tensor"
    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight",)

    statistics: dict[str, str]
    """label → statistics file, one for each model."""
    off_diagonal: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """The factor on off-diagonal entries, in [0, 1]: 1 in MergeLM, 0.1 to 0.9 in the authors' settings."""
    damping: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Added to the diagonal, in units of its mean; 0 is the paper."""

    def workspace(self, shape: tuple[int, ...], models: int) -> int:
        """Count every model's Gram matrix in float32, and their sum, its factor and a product in float64."""
        gram = shape[-1] ** 2 if len(shape) > 1 else 0
        return gram * (4 * models + 4 * 8)

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Merge the tensor."""
        weights = place.weight_array
        if abs(weights.sum()) < 1e-12:
            raise RecipeError("the weights sum to zero", where=place.name, fix="give positive weights")
        grams = (
            self._grams(place, len(cells)) if is_matrix(place.name, cells.shape[1:]) and cells.size else None
        )
        if grams is None:
            return np.asarray(np.tensordot(weights / weights.sum(), cells, axes=1), dtype=np.float32)

        def solve(matrices: Floats, products: Sequence[Floats]) -> Floats:
            return regmean(
                matrices,
                products,
                weights,
                off_diagonal=self.off_diagonal,
                damping=self.damping,
                name=place.name,
            )

        if cells.ndim == 3:
            return solve(cells, grams)
        return np.stack([solve(cells[:, e], [gram[e] for gram in grams]) for e in range(cells.shape[1])])

    def _grams(self, place: Place, models: int) -> list[Floats] | None:
        """Return every model's Gram matrix, or None where no model has one."""
        if place.statistics is None:
            raise RecipeError(
                "regmean without statistics", where=place.name, fix="give `statistics: {label: file}`"
            )
        grams: list[Floats | None] = []
        for i in range(models):
            try:
                grams.append(place.statistics(i, "::gram"))
            except KeyError:
                grams.append(None)
        if all(gram is None for gram in grams):
            return None
        complete = []
        wanted = (*place.shape[:-2], place.shape[-1], place.shape[-1])
        for label, gram in zip(place.labels, grams, strict=True):
            if gram is None or gram.shape != wanted:
                what = "no Gram matrix" if gram is None else f"a Gram matrix of shape {gram.shape}"
                raise RefusedError(
                    f"{what} in the statistics of {label}",
                    where=place.name,
                    fix=f"collect {wanted} for every model",
                )
            complete.append(gram)
        return complete
