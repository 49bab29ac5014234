"""Drop with a bias: k-DARE where a sign decides instead of chance. Ablations, to show that chance matters."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deltasmith.edits.drop_partly import kept_factor
from deltasmith.errors import RecipeError, RefusedError
from deltasmith.operation.protocols import Edit, Found, Place
from deltasmith.operation.schedule import Density, Number
from deltasmith.table.checkpoint import Floats

__all__ = ["BiasByGradient", "BiasBySign", "biased"]

Chosen = npt.NDArray[np.bool_]


def biased(delta: Floats, chosen: Chosen, density: float, k: float) -> Floats:
    """Multiply the chosen elements by k and the others by (1 - k p) / (1 - p), p = 1 - density.

    In float64, rounded once to float32.

    >>> biased(np.array([-2.0, 2.0], np.float32), np.array([True, False]), 0.5, 0.5).tolist()
    [-1.0, 3.0]
    """
    factors = np.where(chosen, k, kept_factor(density, k))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused when it is written
        return np.asarray(factors * delta.astype(np.float64), np.float32)


class BiasBySign(Edit):
    """Multiply negative elements by k, and the others by (1 - k p) / (1 - p), p = 1 - density.

    Nothing is random. Where a fraction p of the elements is negative, and sign and size are unrelated, the mean
    magnitude stays (k from 0 to 1 / p). Zeros count with the others. k = 1 changes nothing.

    Paper: A Unified View of Delta Parameter Editing, arXiv 2410.13841v1, Table 1, "biased ΔW": an ablation that
    costs `drop_partly` little there. The p of the table is not stated; which side a zero is on is a choice made here
    (it is 0 on either).

    >>> delta = np.array([-2.0, 2.0, 0.0], np.float32)
    >>> BiasBySign(density=0.5, k=0.5).apply(delta, Place("w", (3,)), Found()).tolist()
    [-1.0, 3.0, 0.0]
    """

    density: Density
    """1 - p, in (0, 1]: the fraction that `drop_partly` of the same density would keep."""
    k: Number
    """What the negative elements are multiplied by; any finite number."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return k · delta where it is negative, a rescaled delta elsewhere."""
        return biased(delta, delta < 0, self.density, self.k)


class BiasByGradient(Edit):
    """Multiply elements with delta · gradient < 0 by k, and the others by (1 - k p) / (1 - p), p = 1 - density.

    The gradient is that of the loss at the fine-tuned model, from the file named `statistics: FILE` beside the model
    (kind `gradient`: one tensor per parameter, of its shape). Nothing is random. A product of 0 counts with the
    others. k = 1 changes nothing. To first order every element's change raises the loss for k < 1, and lowers it for
    k > 1; the paper sees either destroy a model.

    Raises:
        RecipeError: the run has no statistics. RefusedError: an element of the gradient is not finite.

    Paper: A Unified View of Delta Parameter Editing, arXiv 2410.13841v1, Table 1, "biased ΔW·∇L" (GSM8K below 0.2 for
    five of the six k and 26.8 for k = 0.9, against 75 to 76 for random drops). The p of the table is not stated;
    where a product of 0 belongs is a choice made here.
    """

    statistics: ClassVar[str] = "gradient"

    density: Density
    """1 - p, in (0, 1]: the fraction that `drop_partly` of the same density would keep."""
    k: Number
    """What the elements with delta · gradient < 0 are multiplied by; any finite number."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return k · delta where delta and gradient disagree in sign, a rescaled delta elsewhere."""
        opposed = delta * _gradient(place, delta) < 0  # float64: no product of float32 underflows
        return biased(delta, opposed, self.density, self.k)


def _gradient(place: Place, delta: Floats) -> npt.NDArray[np.float64]:
    """Return this tile's gradient in the shape of the delta."""
    if place.statistics is None:
        raise RecipeError(
            "bias_by_gradient has no gradient",
            where=place.name,
            fix="write statistics: FILE beside the model",
        )
    gradient = np.asarray(place.statistics(0, ""), np.float64)
    if not np.isfinite(gradient).all():
        raise RefusedError(
            "the gradient has an element that is not finite", where=place.name, fix="collect it anew"
        )
    return gradient.reshape(delta.shape)
