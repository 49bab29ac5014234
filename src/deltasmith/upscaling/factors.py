"""One linear's experts as low-rank factors: U, S Vᵀ and the gate's directions, of one delta after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from deltasmith.errors import MissingExtraError, RefusedError, printable
from deltasmith.kernels.linalg import numerical_rank, thin_svd
from deltasmith.table.checkpoint import Floats
from deltasmith.upscaling.settings import DENSE, Settings

__all__ = ["Split", "factors", "splitter"]

Split = Callable[[Floats], tuple[Floats, Floats, Floats]]
"""A thin singular value decomposition: (m, n) → U (m, k), S (k) descending, Vᵀ (k, n)."""


def factors(
    deltas: Iterable[Floats], rows: int, columns: int, settings: Settings, split: Split
) -> dict[str, Floats]:
    """Return the tensors that a (rows, columns) linear gains, but for biases, from its experts' deltas in order.

    `smile_svh` (T · k, columns) holds S Vᵀ, `smile_u` (rows, T · k) U, each cut to the k leading triplets; or with
    dense experts `smile_dense` (T · rows, columns) the deltas. `smile_gate` (T · router rank, columns) holds the
    leading right singular vectors, not scaled by S. Directions that a delta does not have (singular values at the
    level of rounding; all of them where an expert left the linear alone) are zero in the gate, where the authors'
    code takes whatever basis LAPACK fills up with. float32 in and out; only one delta is held at a time.

    Paper: Tang et al., 2024, SMILE (arXiv 2408.10174).
    """
    count, rank, router_rank = len(settings.experts), settings.rank(rows, columns), settings.router_rank
    found = {"smile_gate": np.zeros((count * router_rank, columns), np.float32)}
    if rank == DENSE:
        found["smile_dense"] = np.zeros((count * rows, columns), np.float32)
    else:
        found["smile_svh"] = np.zeros((count * rank, columns), np.float32)
        found["smile_u"] = np.zeros((rows, count * rank), np.float32)
    for number, delta in enumerate(deltas):
        if rank == DENSE:
            found["smile_dense"][number * rows : (number + 1) * rows] = delta
        if not delta.any():
            continue
        u, s, vt = split(delta)
        real = min(numerical_rank(s, delta.shape), router_rank)
        found["smile_gate"][number * router_rank :][:real] = vt[:real]
        if rank != DENSE:
            at = slice(number * rank, (number + 1) * rank)
            found["smile_svh"][at] = s[:rank, None] * vt[:rank]
            found["smile_u"][:, at] = u[:, :rank]
    return found


def splitter(device: str) -> Split:
    """Return the decomposition on a device: numpy's on `cpu`, torch's on `cuda` or `cuda:N`, both in float32.

    Raises:
        MissingExtraError: torch is not installed.
        RefusedError: on use, where the singular values do not converge.
    """
    if device == "cpu":
        return _on_cpu
    try:
        import torch
    except ImportError as cause:
        raise MissingExtraError(
            f"--device {printable(device)} needs torch", fix='pip install "deltasmith[hf]"'
        ) from cause

    def on_device(matrix: Floats) -> tuple[Floats, Floats, Floats]:
        try:
            parts = torch.linalg.svd(torch.from_numpy(matrix).to(device), full_matrices=False)
        except RuntimeError as cause:
            raise _diverged() from cause
        u, s, vt = (part.cpu().numpy() for part in parts)
        return u, s, vt

    return on_device


def _on_cpu(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    try:
        return thin_svd(matrix)
    except np.linalg.LinAlgError as cause:
        raise _diverged() from cause


def _diverged() -> RefusedError:
    return RefusedError("the singular values do not converge", fix="check the tensor for non-finite values")
