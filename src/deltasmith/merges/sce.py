"""SCE: model weights from the energy at the positions where models differ most, then an election."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.kernels import votes
from deltasmith.operation.protocols import Found, Merge, Place, Survey
from deltasmith.operation.schedule import Density
from deltasmith.surveys import select
from deltasmith.surveys.sums import Counts, Sums, chain, together
from deltasmith.table.checkpoint import Floats

__all__ = ["Sce", "SceMasked", "coefficients", "variance"]

Vector = npt.NDArray[np.float64]
_LEAST = np.float32(1e-6)


def variance(cells: Sequence[Floats], place: Place) -> Floats:
    """Return the population variance over the models at every position, as a flat float32 array."""
    rows = [cell.reshape(-1) for cell in cells]
    mean = np.zeros(rows[0].size, np.float64)
    for row in rows:
        mean += row
    mean /= len(rows)
    total = np.zeros_like(mean)
    for row in rows:
        off = row - mean
        total += off * off
    spread: Floats = (total / len(rows)).astype(np.float32)
    return spread


def _differing(cells: Sequence[Floats], place: Place) -> int:
    return int(np.count_nonzero(variance(cells, place)))


def coefficients(energy: Vector | None, least: float = 0.0) -> Vector | None:
    """Divide the models' energies by their sum; None (all models alike) where it is not above `least`."""
    total = 0.0 if energy is None else float(energy.sum())
    return None if energy is None or total <= least else energy / total


class Sce(Merge):
    """Weigh models by how much they change where they differ, then average those that agree in sign.

    Per tensor. Select: the `density` fraction of the positions where the models' deltas differ at all,
    highest variance first, ties to the lower index. Calculate: each model's coefficient is its share of the
    squared deltas at these positions; all models count alike where that is 0 for all. Erase: at every
    position the sign of Σ w·δ is elected (a zero sum is positive), and the result is Σ c·w·δ / Σ c·w over the
    models that agree. The selection affects only the coefficients; `SceMasked` also drops what was not
    selected. With `density: 1` every position is selected. The models' weights w multiply the coefficients;
    SCE has none.

    Paper: Wan et al. 2024, FuseChat, arXiv 2408.07990, Select, Calculate, Erase, as in the authors' code.

    >>> import numpy as np
    >>> from deltasmith.operation.reference import merge_table
    >>> deltas = [{"w": np.array(d, np.float32)} for d in ([3.0, -1.0], [1.0, 2.0])]
    >>> merge_table(Sce(), deltas)["w"].tolist()  # energies 10 and 5
    [2.3333332538604736, 2.0]
    """

    density: Density = 1.0
    """The fraction of the differing positions that determines the coefficients."""

    def survey(self, found: Found) -> Survey | None:
        """Ask how many positions differ, then where the selection ends, then for the energies there."""
        local = found.local
        if self.density < 1.0:
            counted = chain(local, "differing")
            if not counted:
                return together(local, {"differing": lambda own: Counts(_differing, scope="tensor")})
            wanted = int(counted[0] * self.density)
            picked = together(
                local,
                {
                    "cut": lambda own: select.next_survey(
                        own, scope="tensor", keep=lambda total: wanted, score=variance
                    )
                },
            )
            if picked is not None:
                return picked
        ends = self._cut(found)
        return together(local, {"energy": lambda own: None if own else Sums(_energy(ends), scope="tensor")})

    def _cut(self, found: Found) -> select.Cut | None:
        """Return where the selection ends; None where every position is selected."""
        return select.cut(chain(found.local, "cut")) if self.density < 1.0 else None

    def _coefficients(self, place: Place, found: Found, least: float = 0.0) -> Vector:
        """Multiply each model's coefficient by its weight."""
        totals = chain(found.local, "energy")[0].by_tensor.get(place.name)
        shares = coefficients(totals, least)
        weights = place.weight_array
        return weights / weights.size if shares is None else weights * shares

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the mean of the agreeing deltas of the tile, by the tensor's coefficients."""
        if cells.size == 0:
            return np.zeros(cells.shape[1:], np.float32)
        return votes.elect_mean(cells, place.weights, self._coefficients(place, found), 1)


class SceMasked(Sce):
    """Zero all deltas where they were not selected, then do as `Sce`: mergekit's reading of SCE.

    With `density` below 1 most of the merged delta is 0. Coefficients are equal where the squared deltas'
    means add up to less than 1e-6 (true of most fine-tuned models, whose deltas are below 1e-3: the weighting
    then disappears), and divisors below 1e-6 are raised to that. Otherwise as `Sce`.

    Paper: Wan et al. 2024, FuseChat, arXiv 2408.07990, as in mergekit 0.1.5.
    """

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the mean of the agreeing selected deltas of the tile."""
        if cells.size == 0:
            return np.zeros(cells.shape[1:], np.float32)
        ends = self._cut(found)
        if ends is not None:
            marks = select.kept(variance(list(cells), place), ends, place).reshape(cells.shape[1:])
            cells = np.where(marks, cells, np.float32(0))
        shares = self._coefficients(place, found, least=1e-6 * place.size)
        return _clamped_mean(cells, place.weights, shares)


def _clamped_mean(cells: Floats, weights: Sequence[float], shares: Vector) -> Floats:
    """Average the cells of the elected sign, with a divisor of at least 1e-6."""
    sign = np.where(votes.weighted_sum(cells, weights) >= 0, np.float32(1), np.float32(-1))
    total = np.zeros(cells.shape[1:], np.float32)
    divisor = np.zeros(cells.shape[1:], np.float32)
    for cell, weight, share in zip(cells, weights, shares.astype(np.float32), strict=True):
        agree = cell * np.float32(weight) * sign > 0
        total += np.where(agree, cell * share, np.float32(0))
        divisor += np.where(agree, share, np.float32(0))
    return np.asarray(total / np.maximum(divisor, _LEAST), np.float32)


def _energy(ends: select.Cut | None) -> Any:
    """Return the terms that sum each model's squared deltas over the selected positions of a block."""

    def terms(cells: Sequence[Floats], place: Place) -> Vector:
        stacked = np.stack([cell.reshape(-1) for cell in cells]).astype(np.float64)
        if ends is not None:
            stacked = stacked[:, select.kept(variance(cells, place), ends, place)]
        return np.asarray((stacked * stacked).sum(axis=1), np.float64)

    return terms
