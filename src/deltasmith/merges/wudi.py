"""A merged delta that interferes little with each task's own inputs, found by gradient descent."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from deltasmith.kernels.linalg import adam_step
from deltasmith.merges.tsv import by_matrix
from deltasmith.operation.protocols import Found, Merge, Place, Reach
from deltasmith.table.checkpoint import Floats

__all__ = ["Wudi", "wudi"]


def wudi(deltas: Floats, steps: int, learning_rate: float) -> Floats:
    """Minimise Σ ‖(δ − δᵢ) δᵢᵀ‖² / ‖δᵢ‖² (Frobenius norms) over δ by Adam, from Σ δᵢ; (T, m, n) → (m, n)."""
    norms = np.einsum("tmn,tmn->t", deltas, deltas, dtype=np.float64)
    merged = deltas.sum(axis=0)
    # The loss is quadratic: its gradient is δ A − B, whatever T is.
    pull = np.zeros((deltas.shape[2],) * 2, dtype=np.float32)
    target = np.zeros_like(merged)
    for delta, norm in zip(deltas, norms, strict=True):
        if norm > 0:
            product = (delta.T @ delta) * np.float32(2.0 / norm)
            pull += product
            target += delta @ product
    first, second = np.zeros_like(merged), np.zeros_like(merged)
    for step in range(1, steps + 1):
        adam_step(merged, merged @ pull - target, first, second, learning_rate, step)
    return np.asarray(merged, dtype=np.float32)


class Wudi(Merge):
    """Start at the sum of the deltas and descend on the deviation along each task's own rows.

    The loss of a matrix is Σ ‖(δ − δᵢ) δᵢᵀ‖² / ‖δᵢ‖²: the rows of δᵢ stand for the inputs that task i sees,
    so no data is needed. Adam moves each element by at most about `steps` × `learning_rate` (3e-3 by
    default): scale the rate with the deltas. Weights multiply the deltas first.

    Decided: tensors that are not matrices (and not stacks of experts) take the plain mean; a zero delta has
    no term in the loss. One model is returned unchanged. Needs an in × in matrix of working memory.

    Paper: Cheng et al., 2025, Whoever Started the Interference Should End It: Guiding Data-Free Model Merging
    via Task Vectors (arXiv 2503.08099), after the released code for vision models, which leaves tensors that
    are not linear weights at the base.
    """

    reach: ClassVar[Reach] = "tensor"

    steps: Annotated[int, Field(ge=0)] = 300
    """The number of Adam steps."""
    learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-5
    """Adam's step size, in units of the deltas; the released code uses 1e-5 (vision) and 2e-5 (RoBERTa)."""

    def workspace(self, shape: tuple[int, ...], models: int) -> int:
        """Count the in × in matrix of the loss, and the one it is made from."""
        return 2 * 4 * shape[-1] ** 2 if len(shape) > 1 else 0

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Merge the tensor."""
        return by_matrix(cells, place, lambda deltas: wudi(deltas, self.steps, self.learning_rate))
