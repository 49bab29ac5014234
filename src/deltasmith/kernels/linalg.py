"""Singular values and what is built on them: truncation, polar factors, spectra; and one step of Adam.

Everything here is promised to tolerance only: LAPACK may round differently with another number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.errors import RefusedError
from deltasmith.table.checkpoint import Floats

__all__ = [
    "adam_step",
    "each_matrix",
    "is_matrix",
    "noise",
    "numerical_rank",
    "polar",
    "thin_svd",
    "truncate",
]


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor is a matrix or a stack of experts' matrices (3-D, "expert" in its name)."""
    return len(shape) == 2 or (len(shape) == 3 and "expert" in name)


def each_matrix(name: str, cells: Floats, act: Callable[[Floats], Floats]) -> Floats:
    """Apply `act` to (T, m, n), or to each (T, m, n) of (T, experts, m, n), and return (m, n) or the stack.

    A matrix without elements is returned as it is, without asking `act`.

    Raises:
        RefusedError: the decomposition of a matrix does not converge (its values are not finite, as a rule).
    """
    if cells.size == 0:
        return np.zeros(cells.shape[1:], dtype=np.float32)
    try:
        if cells.ndim == 3:
            return act(cells).astype(np.float32, copy=False)
        return np.stack([act(cells[:, e]) for e in range(cells.shape[1])]).astype(np.float32, copy=False)
    except np.linalg.LinAlgError as cause:
        raise RefusedError(
            "the singular values do not converge", where=name, fix="check the tensor for non-finite values"
        ) from cause


def thin_svd(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """Split a matrix into U (m, k), S (k) descending and Vᵀ (k, n), k = min(m, n); float32 in, float32 out.

    Where LAPACK gives up on float32 it is asked once more in float64.
    """
    try:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (
        u.astype(np.float32, copy=False),
        s.astype(np.float32, copy=False),
        vt.astype(np.float32, copy=False),
    )


def noise(shape: tuple[int, ...]) -> float:
    """Return the level of float32 rounding relative to the largest singular value: 4 √max(m, n) · 2⁻²³.

    The square root is what rounding errors of independent sign add up to. numpy's matrix_rank uses max(m, n)
    instead, a bound that would drop real directions: random 4096 × 4096 matrices have some near 1e-4 · s₀.
    """
    return 4.0 * math.sqrt(max(shape)) * float(np.finfo(np.float32).eps)


def numerical_rank(spectrum: Floats, shape: tuple[int, ...]) -> int:
    """Count the singular values of an (m, n) matrix that stand above rounding (see `noise`); any order."""
    return int((spectrum > noise(shape) * spectrum.max()).sum()) if spectrum.size else 0


def truncate(matrix: Floats, rank: int) -> Floats:
    """Return the closest matrix of at most this rank: the `rank` largest singular triplets.

    Rank 0 gives zeros, rank ≥ min(m, n) a plain copy.
    """
    if rank >= min(matrix.shape):
        return matrix.copy()
    if rank == 0:
        return np.zeros_like(matrix)
    u, s, vt = thin_svd(matrix)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank], dtype=np.float32)


def polar(matrix: Floats) -> Floats:
    """Return the closest matrix whose nonzero singular values are all 1: P Qᵀ of P Σ Qᵀ.

    Directions that the matrix does not have (see `numerical_rank`) are left out. A full polar factor would
    fill them with whatever basis LAPACK happens to return.
    """
    p, spectrum, qt = thin_svd(matrix)
    rank = numerical_rank(spectrum, matrix.shape)
    return p[:, :rank] @ qt[:rank]


@njit(nogil=True, cache=True)
def _adam(
    values: Floats, slope: Floats, first: Floats, second: Floats, size: np.float32, spread: np.float32
) -> None:
    for i in range(values.size):
        g = slope[i]
        first[i] += np.float32(0.1) * (g - first[i])
        second[i] = np.float32(0.999) * second[i] + np.float32(0.001) * (g * g)
        values[i] -= size * first[i] / (np.sqrt(second[i]) / spread + np.float32(1e-8))


def adam_step(
    values: npt.NDArray[np.float32],
    slope: npt.NDArray[np.float32],
    first: npt.NDArray[np.float32],
    second: npt.NDArray[np.float32],
    learning_rate: float,
    step: int,
) -> None:
    """Move `values` one step of Adam down `slope`, in place; `first` and `second` hold its moments.

    β = (0.9, 0.999), ε = 1e-8, no weight decay; `step` counts from 1. All arrays contiguous, of one size.
    """
    size = np.float32(learning_rate / (1.0 - 0.9**step))
    spread = np.float32(np.sqrt(1.0 - 0.999**step))
    _adam(values.reshape(-1), slope.reshape(-1), first.reshape(-1), second.reshape(-1), size, spread)
