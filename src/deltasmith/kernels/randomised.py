"""The leading singular triplets of a matrix without its whole decomposition, by random projection.

Subspace iteration from a Gaussian test matrix whose entries are a function of a key, so that the same tensor gets
the same factors on every run. Like all of LAPACK's results, these are promised to tolerance only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltasmith.errors import MissingExtraError, ResourceError
from deltasmith.kernels.bits import uniform_bits
from deltasmith.kernels.linalg import thin_svd
from deltasmith.table.checkpoint import Floats

__all__ = ["Device", "Target", "Triplets", "decompose", "normal_matrix", "pays", "randomised_svd"]

Device = Literal["cpu", "cuda"]
Triplets = tuple[Floats, Floats, Floats]
"""U, S and Vᵀ of a stack of matrices: (e, m, r), (e, r), (e, r, n)."""

_SHARE = 4
_SMALLEST = 256
_OVERSAMPLE = 16
_PASSES = 4
_FIRST_TRIAL = 16
_COARSE = 1e-4
_SLACK = 4e-6  # twice what float32 singular values leave unsure of a sum of squares, relative to the sum


def pays(rank: int, shape: tuple[int, int]) -> bool:
    """Tell whether `rank` of the triplets of an (m, n) matrix come sooner by projection than from LAPACK.

    Measured on one slow core (OpenBLAS, float32): of 1024 × 1024 LAPACK takes 0.39 s; the projection 0.009 s for 8
    triplets, 0.035 s for 64, 0.16 s for 256. Below 256 rows LAPACK takes milliseconds, and is exact.
    """
    return min(shape) >= _SMALLEST and rank * _SHARE <= min(shape)


def normal_matrix(key: int, rows: int, columns: int) -> Floats:
    """Return a (rows, columns) float32 matrix of standard normal numbers, a pure function of `key`.

    Box and Muller's transform of the counter-based bits: element i of the row-major matrix comes from bits 2i and
    2i + 1. No value is beyond 6.7, because the smallest uniform number is 2^-33.

    >>> normal_matrix(7, 2, 2).shape, bool((normal_matrix(7, 4, 1).reshape(2, 2) == normal_matrix(7, 2, 2)).all())
    ((2, 2), True)
    """
    bits = uniform_bits(key, 0, 2 * rows * columns).astype(np.float64)
    uniform = (bits + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    normal: Floats = (radius * np.cos(2.0 * np.pi * uniform[1::2])).astype(np.float32)
    return normal.reshape(rows, columns)


def randomised_svd(
    matrix: Floats,
    rank: int,
    key: int,
    *,
    oversample: int = _OVERSAMPLE,
    passes: int = _PASSES,
    device: Device = "cpu",
) -> tuple[Floats, Floats, Floats]:
    """Find the `rank` leading singular triplets of an (m, n) matrix: U (m, r), S (r) descending, Vᵀ (r, n).

    The range of (A Aᵀ)^q A Ω is found for a Gaussian Ω of rank + `oversample` columns, with a QR decomposition after
    every product, and A is decomposed within it. r = min(rank, m, n); every singular value is at most the true one,
    but for rounding. `passes` is q: each costs two products, and they matter where the spectrum falls slowly. With 4,
    the error of the truncated matrix was within 1 % of the least possible on pure noise (256 to 1024 rows, up to a
    quarter of the triplets), and within 0.4 % for singular values that fall as k^-0.7.
    `device` cuda does the products and decompositions in torch on a GPU, from the same Ω.

    Raises:
        numpy.linalg.LinAlgError: no convergence (values that are not finite). MissingExtraError: cuda without torch.
        ResourceError: no GPU that torch can use.

    Paper: Halko, Martinsson and Tropp, 2011, Finding structure with randomness (doi 10.1137/090771806), algorithms
    4.4 and 5.1.
    """
    m, n = matrix.shape
    width = min(rank + oversample, m, n)
    test = normal_matrix(key, n, width)
    u, s, vt = (_projected if device == "cpu" else _projected_on_gpu)(matrix, test, passes)
    return u[:, :rank], s[:rank], vt[:rank]


def _projected(matrix: Floats, test: Floats, passes: int) -> tuple[Floats, Floats, Floats]:
    range_of = _orthonormal(matrix @ test)
    for _ in range(passes):
        range_of = _orthonormal(matrix @ _orthonormal(matrix.T @ range_of))
    u, s, vt = thin_svd(range_of.T @ matrix)
    return range_of @ u, s, vt


def _orthonormal(matrix: Floats) -> Floats:
    return np.linalg.qr(matrix)[0]


def _projected_on_gpu(matrix: Floats, test: Floats, passes: int) -> tuple[Floats, Floats, Floats]:
    """Do what `_projected` does, in torch."""
    try:
        import torch
    except ImportError as cause:
        raise MissingExtraError(
            "decomposing on a GPU needs torch", fix='pip install "deltasmith[torch]"'
        ) from cause
    if not torch.cuda.is_available():
        raise ResourceError("torch finds no GPU", fix="leave --device at cpu")

    def orthonormal(x: Any) -> Any:
        return torch.linalg.qr(x)[0]

    there, omega = (torch.from_numpy(np.ascontiguousarray(x)).cuda() for x in (matrix, test))
    try:
        range_of = orthonormal(there @ omega)
        for _ in range(passes):
            range_of = orthonormal(there @ orthonormal(there.T @ range_of))
        u, s, vt = torch.linalg.svd(range_of.T @ there, full_matrices=False)
    except torch.linalg.LinAlgError as cause:  # type: ignore[attr-defined]
        raise np.linalg.LinAlgError(str(cause)) from cause
    found: list[npt.NDArray[np.float32]] = [x.cpu().numpy() for x in (range_of @ u, s, vt)]
    return found[0], found[1], found[2]


@dataclass(frozen=True)
class Target:
    """How many singular triplets to keep: `rank`, or as few as leave a relative Frobenius error of at most `error`.

    Never more than `max_rank`, and none whose singular value is not above `floor` (absolute).
    """

    rank: int | None = None
    error: float | None = None
    max_rank: int | None = None
    floor: float = 0.0

    def most(self, shape: tuple[int, int]) -> int:
        """Return the largest rank that may come out for an (m, n) matrix."""
        wished = [r for r in (self.rank, self.max_rank) if r is not None]
        return min([*wished, *shape])

    def trials(self, shape: tuple[int, int]) -> list[int]:
        """Return the ranks to try, in order; the last is `most`."""
        most = self.most(shape)
        trials = []
        if self.rank is None and self.error is not None and self.error**2 >= _COARSE:
            rank = _FIRST_TRIAL
            while rank < most and pays(rank, shape):
                trials.append(rank)
                rank *= 4
        return [*trials, most]


def decompose(stack: Floats, target: Target, key: int, device: Device = "cpu") -> Triplets:
    """Split each matrix of a stack (e, m, n) into its leading singular triplets, as many as `target` asks for.

    Returns U (e, m, r), S (e, r) descending and Vᵀ (e, r, n): one rank for the whole stack, whose error counts
    together. By projection (seeded by `key`) where that pays, by LAPACK else. An error is met by the smallest rank,
    or where projected by one that is at most slightly larger. r may be 0: of zeros, and of empty matrices.

    Raises what `randomised_svd` raises.
    """
    shape = (stack.shape[1], stack.shape[2])
    total = sum(_square(matrix) for matrix in stack)
    if not math.isfinite(total):
        raise np.linalg.LinAlgError("values that are not finite")  # LAPACK may return NaN and say nothing
    if stack.size == 0 or total == 0.0:
        return _none(stack.shape)
    found, kept = _none(stack.shape), 0
    for rank in target.trials(shape):
        projected = pays(rank, shape)
        parts = [
            randomised_svd(matrix, rank, (key + e) % 2**64, device=device) if projected else thin_svd(matrix)
            for e, matrix in enumerate(stack)
        ]
        found = (
            np.stack([p[0] for p in parts]),
            np.stack([p[1] for p in parts]),
            np.stack([p[2] for p in parts]),
        )
        kept, enough = _rank_for(found[1], rank, total, target, complete=not projected)
        if enough:
            break
    return found[0][:, :, :kept], found[1][:, :kept], found[2][:, :kept]


def _none(shape: tuple[int, ...]) -> Triplets:
    e, m, n = shape
    return np.zeros((e, m, 0), np.float32), np.zeros((e, 0), np.float32), np.zeros((e, 0, n), np.float32)


def _square(matrix: Floats) -> float:
    """Sum the squares in float64, a few rows at a time."""
    step = max(1, (1 << 18) // max(1, matrix.shape[1]))
    pieces = (matrix[at : at + step].astype(np.float64) for at in range(0, matrix.shape[0], step))
    return float(sum(np.vdot(piece, piece) for piece in pieces))


def _rank_for(
    spectra: Floats, most: int, total: float, target: Target, *, complete: bool
) -> tuple[int, bool]:
    """Return how many of the triplets to keep (at most `most`), and whether the error is met by them."""
    above = int((spectra > target.floor).sum(axis=1).max())
    most = min(most, above)
    if target.error is None or target.rank is not None:
        return most, True
    squares = (spectra.astype(np.float64) ** 2).sum(axis=0)
    if complete:
        left = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
        allowed = target.error**2 * left[0]
    else:
        left = np.maximum(total - np.concatenate([[0.0], np.cumsum(squares)]), 0.0)
        allowed = (target.error**2 - _SLACK) * total
    first = int(np.argmax(left <= allowed)) if (left <= allowed).any() else most + 1
    return min(first, most), first <= most
