"""Task singular vectors: give every task its own orthogonal directions, then add."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from deltasmith.kernels.linalg import each_matrix, is_matrix, polar, thin_svd
from deltasmith.operation.protocols import Found, Merge, Place, Reach
from deltasmith.table.checkpoint import Floats

__all__ = ["Tsv", "TsvLossless", "by_matrix", "decorrelated", "mean", "tsv", "tsv_lossless"]


def mean(deltas: Floats) -> Floats:
    """Return the plain mean of (T, ...) deltas."""
    return np.asarray(deltas.mean(axis=0, dtype=np.float64), dtype=np.float32)


def by_matrix(cells: Floats, place: Place, act: Callable[[Floats], Floats]) -> Floats:
    """Merge weighted matrices (and each expert of a stack) by `act`, any other tensor by its plain mean."""
    weights = place.weight_array.astype(np.float32).reshape(-1, *([1] * (cells.ndim - 1)))
    weighted = np.asarray(cells * weights, dtype=np.float32)
    if not is_matrix(place.name, cells.shape[1:]):
        return mean(weighted)
    return each_matrix(place.name, weighted, act)


def decorrelated(triplets: list[tuple[Floats, Floats, Floats]]) -> Floats:
    """Return Û diag(S) V̂ of the concatenated triplets, Û and V̂ being the polar factors of all U and all V."""
    left = polar(np.concatenate([u for u, _, _ in triplets], axis=1))
    right = polar(np.concatenate([vt for _, _, vt in triplets], axis=0))
    return np.asarray((left * np.concatenate([s for _, s, _ in triplets])) @ right, dtype=np.float32)


def tsv(deltas: Floats) -> Floats:
    """Merge (T, m, n) deltas by their int(min(m, n)/T) leading singular triplets, or (if 0) their mean."""
    kept = min(deltas.shape[1:]) // len(deltas)
    if kept == 0:
        return mean(deltas)
    triplets = [thin_svd(delta) for delta in deltas]
    return decorrelated([(u[:, :kept], s[:kept], vt[:kept]) for u, s, vt in triplets])


def tsv_lossless(deltas: Floats) -> Floats:
    """Merge (T, m, n) deltas by all their singular triplets."""
    return decorrelated([thin_svd(delta) for delta in deltas])


class Tsv(Merge):
    """Keep each delta's leading singular triplets, make the directions of all tasks orthogonal, and add.

    Of T models each keeps int(min(m, n)/T) triplets. The left vectors of all tasks are replaced together by
    the closest orthonormal ones (polar factor), and so are the right ones; the singular values of the result
    are the kept ones, concatenated. Weights multiply the deltas first. One model is returned unchanged (to
    rounding).

    Decided: tensors that are not matrices (and not stacks of experts) take the plain mean, and so do matrices
    with min(m, n) < T, where no triplet could be kept (the released code gives zero). Directions that tasks
    have in common to float32 precision (identical models) are shared instead of completed at random.

    Paper: Gargiulo et al., 2024, Task Singular Vectors (arXiv 2412.00081), TSV-Merge, after the released
    code; its scaling coefficient is the recipe's `scale`. The code also takes the mean of `text_projection`
    matrices.
    """

    reach: ClassVar[Reach] = "tensor"

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Merge the tensor."""
        return by_matrix(cells, place, tsv)


class TsvLossless(Merge):
    """Merge like `Tsv` without dropping any singular triplet.

    T · min(m, n) directions do not fit into min(m, n) dimensions, so they are made as orthogonal as they can
    be and the singular values are no longer the concatenated ones. Edge cases as `Tsv`, but every matrix is
    merged.

    Paper: arXiv 2412.00081, after the released code's lossless variant.
    """

    reach: ClassVar[Reach] = "tensor"

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Merge the tensor."""
        return by_matrix(cells, place, tsv_lossless)
