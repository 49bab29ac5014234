"""Error feedback: what later columns take over from the rounding of earlier ones, given how inputs correlate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["damped", "feedback", "spread", "upper_inverse"]

Doubles = npt.NDArray[np.float64]

_SMALL = 64


def damped(gram: Floats, damping: float) -> Doubles:
    """Return the Gram matrix in float64, with `damping` times its mean diagonal added to the diagonal.

    A feature that no example had (its diagonal is not positive) first takes the mean diagonal of the others and
    no correlations: it then neither gives feedback nor takes any. No feature had any: the identity.
    """
    matrix = gram.astype(np.float64)
    diagonal = np.diagonal(matrix).copy()
    dead = ~(diagonal > 0)
    matrix[dead], matrix[:, dead] = 0.0, 0.0
    diagonal[dead] = diagonal[~dead].mean() if (~dead).any() else 1.0
    np.fill_diagonal(matrix, diagonal + damping * diagonal.mean())
    return matrix


def upper_inverse(matrix: Doubles) -> Doubles:
    """Invert an upper triangular matrix by halves: n³/3 operations, nearly all of them in matrix products."""
    n = len(matrix)
    if n <= _SMALL:
        return np.triu(np.linalg.inv(matrix))
    half = n // 2
    out = np.zeros_like(matrix)
    out[:half, :half] = upper_inverse(matrix[:half, :half])
    out[half:, half:] = upper_inverse(matrix[half:, half:])
    out[:half, half:] = -(out[:half, :half] @ matrix[:half, half:]) @ out[half:, half:]
    return out


def feedback(gram: Floats, damping: float) -> Floats:
    """Return the upper triangular float32 U with UᵀU = H⁻¹, H the damped Gram matrix, the factor worked out in float64.

    When column j is rounded with error e = wⱼ − qⱼ, the least squares answer of the columns k > j is to lose
    (e / Uⱼⱼ) · Uⱼₖ (GPTQ, Frantar et al. 2022, arXiv 2210.17323, equation 3 and step 3).

    Raises:
        ValueError: the damped matrix is not positive definite.

    >>> feedback(np.float32([[2, 1], [1, 1]]), 0.0).round(4).tolist()
    [[1.0, -1.0], [0.0, 1.0]]
    """
    try:
        # H = R Rᵀ with R upper is the Cholesky factor of the matrix read backwards; U = R⁻¹.
        lower: Doubles = np.asarray(np.linalg.cholesky(damped(gram, damping)[::-1, ::-1]), np.float64)
    except np.linalg.LinAlgError as cause:
        raise ValueError("the Gram matrix is not positive definite") from cause
    return np.ascontiguousarray(upper_inverse(lower[::-1, ::-1]), np.float32)


@njit(nogil=True, cache=True)
def spread(error: Floats, factors: Floats, columns: Floats) -> None:
    """Subtract factors[k] · error from each of the columns, (n,) and (k,) against (k, n), in place.

    numpy: `columns -= np.outer(factors, error)`.
    """
    for k in range(columns.shape[0]):
        factor = factors[k]
        for i in range(columns.shape[1]):
            columns[k, i] -= factor * error[i]
