"""What all deltas share, plus what one of them has for itself, compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from deltasmith.edits.low_rank import low_rank
from deltasmith.errors import RecipeError
from deltasmith.operation.protocols import Found, Merge, Place, Reach
from deltasmith.operation.schedule import Density, Number
from deltasmith.table.checkpoint import Floats

__all__ = ["Twin", "TwinMagnitude", "keep_largest_share", "with_exclusive"]


def keep_largest_share(delta: Floats, density: float) -> Floats:
    """Return the delta with all but its int(density · n) largest magnitudes zero; ties: lower index."""
    keep = int(density * delta.size)
    order = np.argsort(-np.abs(delta), axis=None, kind="stable")[:keep]
    kept = np.zeros(delta.size, dtype=np.float32)
    kept[order] = delta.reshape(-1)[order]
    return kept.reshape(delta.shape)


def with_exclusive(
    cells: Floats, place: Place, task: str, shared_scale: float, compress: Callable[[Floats], Floats]
) -> Floats:
    """Return λ Σ wᵢδᵢ + compress(w δ_task − λ Σ wᵢδᵢ) for (T, ...) deltas.

    Raises:
        RecipeError: no model is labelled `task`.
    """
    if task not in place.labels:
        known = ", ".join(place.labels)
        raise RecipeError(f"no model is labelled {task!r}", where="twin", fix=f"use one of: {known}")
    weights = place.weight_array.astype(np.float32)
    own = place.labels.index(task)
    shared = np.float32(shared_scale) * np.tensordot(weights, cells, axes=1)
    exclusive = np.asarray(weights[own] * cells[own] - shared, dtype=np.float32)
    return np.asarray(shared + compress(exclusive), dtype=np.float32)


class Twin(Merge):
    """Return λ Σ δᵢ + compress(δ_task − λ Σ δᵢ): a shared expert and one task's truncated exclusive part.

    λ is `shared_scale`, δᵢ are the deltas times their weights, and compress keeps the largest singular
    triplets (see `LowRank`: 1-D tensors stay dense, so they are exactly the task's own; convolutions are
    taken as (out, everything else)). `density: 1` gives the task's own delta.

    Raises:
        RecipeError: no model is labelled `task`.
        RefusedError: the singular values of a matrix do not converge.

    Paper: Lu et al., 2024, Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging (arXiv
    2406.15479). There a router chooses the mixture of exclusive vectors for each input; a merged checkpoint
    has one mixture, here a single task.
    """

    reach: ClassVar[Reach] = "tensor"

    task: str
    """The label of the model whose exclusive knowledge is kept."""
    density: Density = 0.1
    """The fraction of singular triplets kept, in (0, 1]; the released script keeps 0.1."""
    shared_scale: Number = 0.3
    """λ of the shared expert (task arithmetic); 0.29 to 0.3 in the released scripts."""

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Add the shared and the compressed exclusive part."""

        def compress(exclusive: Floats) -> Floats:
            return low_rank(exclusive, place.name, density=self.density)

        return with_exclusive(cells, place, self.task, self.shared_scale, compress)


class TwinMagnitude(Merge):
    """Merge like `Twin`, but keep the largest magnitudes of the exclusive part, not singular triplets.

    Of each tensor's n elements int(density · n) are kept, without rescaling; ties go to the lower index.
    Vectors are compressed like matrices.
    """

    reach: ClassVar[Reach] = "tensor"

    task: str
    """The label of the model whose exclusive knowledge is kept."""
    density: Density = 0.1
    """The fraction of elements kept, in (0, 1]."""
    shared_scale: Number = 0.3
    """λ of the shared expert (task arithmetic)."""

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Add the shared and the compressed exclusive part."""

        def compress(exclusive: Floats) -> Floats:
            return keep_largest_share(exclusive, self.density)

        return with_exclusive(cells, place, self.task, self.shared_scale, compress)
