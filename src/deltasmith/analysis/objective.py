"""What the integrators ask of a loss: to be moved along a line, and to tell its value and its slope there."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Matrix", "Objective", "Vector"]

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]


class Objective(Protocol):
    """A loss over fixed data on a straight line through the space of weights: start + t · direction.

    The data lie in chunks, always the same and in the same order; `counts` says what the mean loss of each chunk
    weighs in the loss (its tokens, or its examples).
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Name the tensors that the line moves."""

    @property
    def counts(self) -> Vector:
        """Return the weight of every chunk, (chunks,), all positive."""

    def move(self, t: float) -> None:
        """Go to the point start + t · direction."""

    def losses(self) -> Vector:
        """Return the mean loss of every chunk at this point, (chunks,)."""

    def slopes(self) -> tuple[Vector, Matrix]:
        """Return the mean losses, (chunks,), and what each tensor adds to their slope, (chunks, tensors).

        The entry of a chunk and a tensor is the inner product of the chunk's gradient, taken at this point, with
        the direction, in float64.
        """
