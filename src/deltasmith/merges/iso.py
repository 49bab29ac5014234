"""Isotropic merging: the directions of the summed deltas, all at the same strength."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deltasmith.kernels.linalg import noise, numerical_rank, polar, thin_svd
from deltasmith.merges.spherical import Fraction
from deltasmith.merges.tsv import by_matrix
from deltasmith.operation.protocols import Found, Merge, Place, Reach
from deltasmith.table.checkpoint import Floats

__all__ = ["IsoC", "IsoCts", "common_rank", "flat", "iso_c", "iso_cts"]


def common_rank(smaller: int, models: int, common: float) -> int:
    """Return how many common directions stay, so that the rest divides among the models.

    The rest is min(m, n) − int(common · min(m, n)), rounded to the nearest multiple of the number of models
    (ties to the even multiple) and, unlike the released code, never above min(m, n).
    """
    rest = smaller - int(smaller * common)
    return smaller - models * min(round(rest / models), smaller // models)


def flat(left: Floats, spectrum: Floats, right: Floats) -> Floats:
    """Return mean(S) · U V over the singular values that stand above rounding; zeros where none does."""
    order = np.argsort(-spectrum, kind="stable")
    kept = order[: numerical_rank(spectrum, (len(left), right.shape[1]))]
    if kept.size == 0:
        return np.zeros((len(left), right.shape[1]), dtype=np.float32)
    strength = np.float32(spectrum[kept].mean(dtype=np.float64))
    return np.asarray(strength * (left[:, kept] @ right[kept]), dtype=np.float32)


def iso_c(deltas: Floats) -> Floats:
    """Give all singular values of the sum of (T, m, n) deltas their mean."""
    return flat(*thin_svd(deltas.sum(axis=0)))


def iso_cts(deltas: Floats, common: float) -> Floats:
    """Merge (T, m, n) deltas by the common directions of their sum and each one's own beyond these."""
    models, smaller = len(deltas), min(deltas.shape[1:])
    shared = common_rank(smaller, models, common)
    own = (smaller - shared) // models
    u, s, vt = thin_svd(deltas.sum(axis=0))
    u, s, vt = u[:, :shared], s[:shared], vt[:shared]
    triplets = []
    for delta in deltas if own else ():
        left, spectrum, right = thin_svd(delta - u @ (u.T @ delta))
        triplets.append((left[:, :own], spectrum[:own], right[:own]))
    triplets.append((u, s, vt))
    spectrum = np.concatenate([part for _, part, _ in triplets])
    # Directions without strength are left out before the polar factors mix all columns.
    known = spectrum > spectrum.max() * noise(deltas.shape[1:])
    left = polar(np.concatenate([part for part, _, _ in triplets], axis=1)[:, known])
    right = polar(np.concatenate([part for _, _, part in triplets])[known])
    return flat(left, spectrum[known], right)


class IsoC(Merge):
    """Add the deltas and set all singular values of the sum to their mean.

    Strong directions are shared by many tasks and weak ones belong to few; this gives them the same strength.
    The sum of the singular values stays. Weights multiply the deltas first.

    Decided: tensors that are not matrices (and not stacks of experts) take the plain mean. Singular values at
    the level of float32 rounding count as zero: their directions are arbitrary, and they neither enter the
    mean nor the result (the released code raises them to the mean as well). A zero sum gives zero.

    Paper: Marczak et al., 2025, No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
    Subspaces (arXiv 2502.04959), Iso-C, after the released code; its scaling coefficient is the recipe's
    `scale`.

    >>> import numpy as np
    >>> from deltasmith.operation.reference import merge_table
    >>> a, b = np.diag([3, 0]).astype(np.float32), np.diag([0, 1]).astype(np.float32)
    >>> merge_table(IsoC(), [{"w": a}, {"w": b}])["w"].diagonal().round(4).tolist()
    [2.0, 2.0]
    """

    reach: ClassVar[Reach] = "tensor"

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Merge the tensor."""
        return by_matrix(cells, place, iso_c)


class IsoCts(Merge):
    """Keep the common directions of the summed deltas, add each task's own, all at the same strength.

    Of min(m, n) directions about the fraction `common` are the leading ones of the sum. Each delta, less its
    part in the left common directions, gives an equal share of the rest. All left and all right vectors are
    replaced by their polar factors and every singular value by the mean. Weights multiply the deltas first.
    Decided as in `IsoC`; where fewer directions remain than models, all are common.

    Paper: arXiv 2502.04959, Iso-CTS, after the released code (see `common_rank` for its rounding).
    """

    reach: ClassVar[Reach] = "tensor"

    common: Fraction = 0.8
    """The fraction of directions that are common, in [0, 1]."""

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Merge the tensor."""
        return by_matrix(cells, place, lambda deltas: iso_cts(deltas, self.common))
