"""Low-rank deltas without their matrices: sums, norms and cosines in factor space, and merging adapters there.

Everything costs (m + n) r² for factors of rank r, and never the m · n of the matrix. Sums and decompositions are
computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltasmith.errors import RefusedError, printable
from deltasmith.formats.adapter import Adapter, Pair
from deltasmith.formats.adapter_names import PairKind
from deltasmith.kernels.decode import count_nonfinite
from deltasmith.table.checkpoint import Spec

__all__ = [
    "AdapterPair",
    "Factors",
    "concatenate",
    "cosine",
    "inner",
    "norm",
    "pairs_of",
    "recompress",
]

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """A matrix (m, n) as left (m, r) @ right (r, n), in float64; r may be 0, and more than m and n."""

    left: Doubles
    right: Doubles

    @property
    def rank(self) -> int:
        """Return r, a bound on the rank of the matrix."""
        return int(self.left.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Return (m, n)."""
        return self.left.shape[0], self.right.shape[1]


def concatenate(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Return Σ w_i L_i R_i exactly: [w_1 L_1 … w_k L_k] @ [R_1; …; R_k], of rank Σ r_i. At least one part.

    >>> one = Factors(np.ones((2, 1)), np.ones((1, 3)))
    >>> both = concatenate([(1.0, one), (0.5, one)])
    >>> both.rank, (both.left @ both.right).tolist()[0]
    (2, [1.5, 1.5, 1.5])
    """
    left = np.concatenate([weight * f.left for weight, f in parts], axis=1)
    return Factors(left, np.concatenate([f.right for _, f in parts], axis=0))


def inner(a: Factors, b: Factors) -> float:
    """Return the sum of products of the elements of two matrices: Σ (L_aᵀ L_b) ∘ (R_a R_bᵀ), two r × r products."""
    return float(np.vdot(a.left.T @ b.left, a.right @ b.right.T))


def norm(a: Factors) -> float:
    """Return the Frobenius norm."""
    return math.sqrt(max(0.0, inner(a, a)))


def cosine(a: Factors, b: Factors) -> float:
    """Return the cosine between two matrices, in [-1, 1]; 0 if one of them is zero."""
    both = norm(a) * norm(b)
    return max(-1.0, min(1.0, inner(a, b) / both)) if both else 0.0


def recompress(a: Factors, rank: int | None = None, error: float | None = None) -> tuple[Factors, float]:
    """Return the nearest factors of fewer columns, and the sum of squares of what they miss.

    L = Q_L T_L and Rᵀ = Q_R T_R, so that L R has the singular values of the small T_L T_Rᵀ. At most `rank` of them
    are kept; with `error`, as few as leave a relative error of at most that; with neither, all above rounding. √S
    multiplies both factors.
    """
    q_left, t_left = np.linalg.qr(a.left)
    q_right, t_right = np.linalg.qr(a.right.T)
    u, s, vt = np.linalg.svd(t_left @ t_right.T, full_matrices=False)
    tails = np.concatenate([np.cumsum(np.square(s[::-1]))[::-1], [0.0]])  # what rank 0, 1, … would miss
    allowed = max(error or 0.0, 1e-14) ** 2 * tails[0]
    kept = int(np.argmax(tails <= allowed))
    kept = kept if rank is None else min(kept, rank)
    root = np.sqrt(s[:kept])
    near = Factors((q_left @ u[:, :kept]) * root, root[:, None] * (vt[:kept] @ q_right.T))
    return near, float(tails[kept])


@dataclass(frozen=True)
class AdapterPair:
    """One delta of an adapter: how PEFT holds it, its tensor's shape and rank, and its factors, read when asked for."""

    kind: PairKind
    shape: tuple[int, ...]
    rank: int
    dtype: str
    read: Callable[[], Factors]


def pairs_of(adapter: Adapter, specs: Mapping[str, Spec] | None = None) -> dict[str, AdapterPair]:
    """Return the deltas of an opened adapter by tensor name: the base's names where its `specs` are given.

    The scaling is part of the factors. Raises RefusedError for an adapter that replaces whole tensors, which add
    up only over a base; and, with `specs`, what `Adapter.bind` raises.
    """
    if adapter.full:
        raise RefusedError(
            f"the adapter replaces {len(adapter.full)} whole tensors, the first "
            f"{printable(min(adapter.full), 120)}, which have no factors",
            where=str(adapter.path),
            fix="merge it by a recipe with a base, and use `deltasmith extract-lora` on that",
        )
    found: Mapping[str, Pair] = {f"{pair.module}.weight": pair for pair in adapter.pairs}
    if specs is not None:
        found = adapter.bind(specs).pairs
    return {name: _adapter_pair(adapter, pair) for name, pair in found.items()}


def _adapter_pair(adapter: Adapter, pair: Pair) -> AdapterPair:
    kind: PairKind = "convolution" if len(pair.a.shape) > 2 else "linear"
    if pair.flipped:
        kind = "embedding" if ".lora_embedding_" in pair.a.name else "flipped"
    types = {pair.a.dtype.name, pair.b.dtype.name}
    return AdapterPair(
        kind,
        pair.shape,
        pair.a.shape[0],
        types.pop() if len(types) == 1 else "float32",
        lambda: _read(adapter, pair),
    )


def _read(adapter: Adapter, pair: Pair) -> Factors:
    """Read A and B, turned so that their product is the delta of the tensor."""
    a, b = (_whole(adapter, spec) for spec in (pair.a, pair.b))
    rank = pair.a.shape[0]
    a, b = a.reshape(rank, -1), pair.scaling * b.reshape(-1, rank)
    return Factors(a.T, b.T) if pair.flipped else Factors(b, a)


def _whole(adapter: Adapter, spec: Spec) -> Doubles:
    values = np.empty(spec.size, np.float32)
    adapter.file.read(spec.name, 0, values)
    if count_nonfinite(values):
        raise RefusedError(
            "values that are not finite numbers",
            where=printable(spec.name),
            fix="use an adapter whose training did not diverge",
        )
    return values.astype(np.float64)
