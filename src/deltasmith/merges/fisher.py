"""Fisher merging: the average of weights in which every parameter counts by its Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.operation.protocols import Found, Merge, Place, Space, Survey
from deltasmith.surveys.sums import Sums
from deltasmith.table.checkpoint import Floats

__all__ = ["Fisher", "FisherAdded"]

Vector = npt.NDArray[np.float64]


def _diagonal(place: Place, i: int, size: int) -> Floats:
    """Return the Fisher diagonal of model i for this tile, flat; refuse what cannot be one."""
    label = place.labels[i] if i < len(place.labels) else str(i)
    if place.statistics is None:
        raise RecipeError(
            "fisher has no statistics", where=place.name, fix="give a file per label in `statistics`"
        )
    diagonal = np.asarray(place.statistics(i, ""), np.float32).reshape(-1)
    if diagonal.size != size:
        raise RefusedError(
            f"the Fisher diagonal has {diagonal.size} elements where the tensor has {size}",
            where=f"{place.name} of {label}",
            fix="compute the statistics on this very model",
        )
    if size and not (diagonal.min() >= 0 and diagonal.max() < np.inf):
        raise RefusedError(
            "the Fisher diagonal has a negative or non-finite element",
            where=f"{place.name} of {label}",
            fix="a Fisher diagonal is a mean of squares; recompute it",
        )
    return diagonal


def _squares(cells: Sequence[Floats], place: Place) -> Vector:
    """Sum the squares of every model's diagonal over one block."""
    rows = [_diagonal(place, i, cells[i].size).astype(np.float64) for i in range(len(cells))]
    return np.array([float((row * row).sum()) for row in rows])


class _Fisher(Merge):
    """Common to both: the statistics, their global norms, the average."""

    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight",)

    statistics: dict[str, str]
    """A statistics file for every label: one non-negative tensor per parameter."""
    floor: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-6
    """The least Fisher information of a parameter."""
    norm: Literal["l2", "none"] = "l2"
    """Divide each model's diagonal by its L2 norm over all merged parameters, or leave it."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for the norms of the diagonals."""
        return None if found.shared or self.norm == "none" else Sums(_squares)

    def _norms(self, models: int, found: Found) -> Vector:
        squares = found.shared[0].whole if self.norm == "l2" else None
        return np.ones(models) if squares is None else np.sqrt(squares)

    def _factors(self, place: Place, norms: Vector) -> Vector:
        """Return the number by which each model's floored diagonal is multiplied."""
        raise NotImplementedError

    def _floored(self, i: int, diagonal: Floats) -> Floats:
        """Keep model i's diagonal away from 0."""
        raise NotImplementedError

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return Σ c·F·θ / Σ c·F of the tile."""
        factors = self._factors(place, self._norms(len(cells), found)).astype(np.float32)
        total = np.zeros(cells[0].size, np.float32)
        divisor = np.zeros(cells[0].size, np.float32)
        for i, cell in enumerate(cells):
            say = self._floored(i, _diagonal(place, i, cell.size)) * factors[i]
            total += say * cell.reshape(-1)
            divisor += say
        nobody = divisor == 0
        average = total / np.where(nobody, np.float32(1), divisor)
        return np.where(nobody, cells[0].reshape(-1), average).reshape(cells.shape[1:])


class Fisher(_Fisher):
    """Average the weights, each parameter by its Fisher information: Σ c·F·θ / Σ c·F, c = w / ‖F‖.

    A model counts where its loss is sensitive to the parameter. ‖F‖ is the L2 norm of the model's diagonal
    over all merged parameters, before the floor. `floored: first` raises only the first model's diagonal to
    `floor`, so where no Fisher information exists the first model (the target) is taken; `all` raises every
    model's. Where the divisor is exactly 0 the first model's weight is taken. A diagonal that is 0 everywhere
    is not divided by its norm. Weights are relative.

    Paper: Matena and Raffel 2022, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832; norms and
    floor as in the authors' code.
    """

    floored: Literal["first", "all"] = "first"
    """Whose diagonal is raised to the floor."""

    def _factors(self, place: Place, norms: Vector) -> Vector:
        return place.weight_array / np.where(norms == 0, 1.0, norms)

    def _floored(self, i: int, diagonal: Floats) -> Floats:
        lifted = i == 0 or self.floored == "all"
        return np.maximum(diagonal, np.float32(self.floor)) if lifted else diagonal


class FisherAdded(_Fisher):
    """Average the weights by Fisher information as MergeLM does: add the floor to every diagonal.

    Σ c·(F + floor)·θ / Σ c·(F + floor), where c = w / (‖F‖ + floor). With `norm: none` c = w.

    Paper: Matena and Raffel 2022, arXiv 2111.09832, as in MergeLM (Yu et al. 2023, arXiv 2311.03099). Its
    diagonals are also estimated differently, from whole batches.
    """

    def _factors(self, place: Place, norms: Vector) -> Vector:
        if self.norm == "none":
            return place.weight_array
        # MergeLM divides these by their sum; float32 is kept in range by doing the same.
        inverse = 1.0 / (norms + self.floor)
        return np.asarray(place.weight_array * inverse / inverse.sum(), np.float64)

    def _floored(self, i: int, diagonal: Floats) -> Floats:
        return diagonal + np.float32(self.floor)
