"""Low rank: a matrix as the product of a tall and a wide one, its largest singular triplets.

Layout. A matrix (m, n) is stored as `left` (m, r) and `right` (r, n), and stands for left @ right: U √S and √S Vᵀ of
the truncated singular value decomposition, rounded. A stack of experts (e, m, n) has `left` (e, m, r) and `right`
(e, r, n). A tensor of another shape with three or more dimensions is coded as the matrix (first axis, all others).
Products are added in float32 in the order of r, so an element does not depend on the range it is decoded with.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from deltasmith.codecs.protocol import Array, Arrays, Cell, WholeCodec, Words, numpy_type
from deltasmith.kernels.decode import decode, expand_low_rank
from deltasmith.kernels.linalg import is_matrix
from deltasmith.kernels.randomised import Device, Target, decompose, pays
from deltasmith.table.checkpoint import Floats

__all__ = ["LowRank", "stack_shape"]

FactorType = Literal["float32", "bfloat16", "float16"]
_ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
_ARITHMETIC = 2.0**-14  # what float32 decomposition and products may add


def stack_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (e, m, n): how many matrices a tensor is, and of which shape. At least two dimensions.

    >>> stack_shape("conv.weight", (8, 3, 2, 2)), stack_shape("experts.up", (4, 8, 3)), stack_shape("q", (8, 3))
    ((1, 8, 12), (4, 8, 3), (1, 8, 3))
    """
    if _is_stack(name, shape):
        return shape[0], shape[1], shape[2]
    return 1, shape[0], math.prod(shape[1:])


def _is_stack(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and is_matrix(name, shape)


class LowRank(WholeCodec):
    """Store the largest singular triplets of each matrix of a delta: the nearest matrix of that rank, in two factors.

    Give one of `rank`, `error` and `energy`. Stacked experts are matrices of one common rank, whose error counts
    together. Zeros take no triplets. Where few triplets of a large matrix are wanted they come from a randomised
    decomposition, seeded by the tensor: its error is within a per cent of the least possible, see
    `kernels.randomised`. 1-D tensors and scalars are refused.

    bfloat16 is the default for the factors, because its range is that of the deltas: float16 rounds eight times
    finer, and is refused (ValueError) for deltas so small or large that its range would spoil that. Either is far
    below what truncation leaves unless the rank is nearly full.

    Paper: Eckart and Young, 1936 (doi 10.1007/BF02288367); as a codec of deltas the baseline of Liu et al., 2024,
    BitDelta (arXiv 2402.10193).

    >>> from deltasmith.table.checkpoint import Spec
    >>> from deltasmith.table.dtypes import DTYPES
    >>> delta = np.outer([1, 2, 4], [1, -1]).astype(np.float32)
    >>> cell = Cell(Spec("w", (3, 2), DTYPES["float32"]))
    >>> codec = LowRank(error=0.01)
    >>> arrays = codec.encode(delta, cell)
    >>> arrays["left"].shape, bool(np.abs(codec.decode(arrays, cell) - delta).max() < 0.04)
    ((3, 1), True)
    """

    rank: Annotated[int, Field(ge=1)] | None = None
    """The number of triplets; never more than the smaller side of the matrix."""
    error: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The relative error in Frobenius norm that truncation may leave; the smallest rank that keeps to it is taken."""
    energy: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of the sum of squared singular values to keep: an error of √(1 − energy)."""
    max_rank: Annotated[int, Field(ge=1)] | None = None
    """The largest rank that `error` or `energy` may lead to; beyond it they are not kept."""
    dtype: FactorType = "bfloat16"
    """The element type of the factors."""

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(field is not None for field in (self.rank, self.error, self.energy)) != 1:
            raise ValueError("give one of rank, error and energy")
        if self.rank is not None and self.max_rank is not None:
            raise ValueError("max_rank goes with error or energy; rank is a limit by itself")
        return self

    @property
    def target(self) -> Target:
        """Return how many triplets to keep, as the decomposition takes it."""
        error = math.sqrt(1.0 - self.energy) if self.energy is not None else self.error
        return Target(self.rank, error, self.max_rank)

    @property
    def bound(self) -> float:
        """Return the error asked for and 3 u, u being half a step of the factors; 1 where a rank limits it.

        One factor of the truncated product has orthogonal columns, the other orthogonal rows, of norms √s_k. Rounding
        one of them therefore moves the product by at most u √Σs², and both by (2 + u √r) u √Σs² ≤ 3 u ‖δ‖.
        """
        error = self.target.error
        if error is None or self.max_rank is not None:
            return 1.0
        return min(1.0, error + 3.0 * _ROUNDING[self.dtype] + _ARITHMETIC)

    def refusal(self, cell: Cell) -> str:
        """Refuse what is no matrix."""
        return super().refusal(cell) or ("it is no matrix" if len(cell.spec.shape) < 2 else "")

    def workspace(self, cell: Cell) -> int:
        """Return the bytes of the factors and of a decomposition of one matrix beside its values."""
        shape = cell.spec.shape
        experts, m, n = (shape[0], *shape[1:]) if len(shape) == 3 else (1, shape[0], math.prod(shape[1:]))
        rank = self.target.most((m, n))
        factors = 3 * 4 * experts * rank * (m + n)
        if self.rank is not None and pays(rank, (m, n)):
            return factors + 4 * 4 * (rank + 16) * (m + n)
        side = min(m, n)
        return factors + 4 * (m * n + 2 * side * (m + n) + 8 * side * side)

    def encode(self, values: Array, cell: Cell, predicted: Words | None = None) -> dict[str, Array]:
        """Decompose and round; ValueError for values that are not finite, or that float16 factors cannot hold."""
        shape = stack_shape(cell.spec.name, cell.spec.shape)
        try:
            u, s, vt = decompose(values.reshape(shape), self.target, cell.key, self.where)
        except np.linalg.LinAlgError as cause:
            raise ValueError("the singular values do not converge") from cause
        (on_left, on_right), kind = self.shares(s), numpy_type(self.dtype)
        with np.errstate(over="ignore"):
            exact = u * on_left[:, None, :], on_right[:, :, None] * vt
            left, right = (np.ascontiguousarray(factor, kind) for factor in exact)
        if self.dtype == "float16":
            _refuse_lost(exact, (left, right))
        if _is_stack(cell.spec.name, cell.spec.shape):
            return {"left": left, "right": right}
        return {"left": left[0], "right": right[0]}

    @property
    def where(self) -> Device:
        """Say where randomised decompositions are computed."""
        return "cpu"

    def shares(self, spectrum: Floats) -> tuple[Floats, Floats]:
        """Say what each triplet's left and right vectors are multiplied by: √s both."""
        root = np.sqrt(spectrum)
        return root, root

    def decode_range(self, arrays: Arrays, cell: Cell, start: int, out: Floats) -> None:
        """Multiply as many rows as the range touches; ValueError unless the factors fit each other and the tensor."""
        left, right = _factors(arrays, cell)
        rows, columns = left.shape[1], right.shape[2]
        done = 0
        while done < out.size:
            expert, at = divmod(start + done, rows * columns)
            piece = out[done : done + min(rows * columns - at, out.size - done)]
            first, offset = divmod(at, columns)
            last = -(-(at + piece.size) // columns)
            if last - first == 1:
                near = _widened(right[expert, :, offset : offset + piece.size])
                offset = 0
            else:
                near = _widened(right[expert])
            expand_low_rank(_widened(left[expert, first:last]), near, 1.0, offset, piece)
            done += piece.size


def _refuse_lost(exact: tuple[Array, Array], rounded: tuple[Array, Array]) -> None:
    """Raise ValueError where rounding to float16 costs more than half a step: too small or too large a number."""
    for factor, stored, axis in zip(exact, rounded, (1, 2), strict=True):
        wide = factor.astype(np.float64)
        other = np.square(exact[2 - axis].astype(np.float64)).sum(axis=3 - axis)
        lost = np.square(wide - stored.astype(np.float64)).sum(axis=axis) * other
        whole = np.square(wide).sum(axis=axis) * other
        if not float(lost.sum()) <= _ROUNDING["float16"] ** 2 * float(whole.sum()) * (1 + 1e-6):
            raise ValueError("the factors are out of the range of float16: take dtype=bfloat16")


def _factors(arrays: Arrays, cell: Cell) -> tuple[Array, Array]:
    """Return left (e, m, r) and right (e, r, n) once they are known to be those of such a tensor."""
    if set(arrays) != {"left", "right"} or len(cell.spec.shape) < 2:
        raise ValueError("left and right are not all of its arrays")
    left, right = arrays["left"], arrays["right"]
    e, m, n = stack_shape(cell.spec.name, cell.spec.shape)
    lead = (e,) if _is_stack(cell.spec.name, cell.spec.shape) else ()
    rank = left.shape[-1] if left.ndim else 0
    if left.shape != (*lead, m, rank) or right.shape != (*lead, rank, n):
        raise ValueError(f"factors of {list(left.shape)} and {list(right.shape)} for {list(cell.spec.shape)}")
    if any(factor.dtype.name not in _ROUNDING for factor in (left, right)):
        raise ValueError(f"factors of {left.dtype.name} and {right.dtype.name}")
    return left.reshape(e, m, rank), right.reshape(e, rank, n)


def _widened(factor: Array) -> Floats:
    """Return a factor in float32, contiguous."""
    flat = np.ascontiguousarray(factor)
    out = np.empty(flat.shape, np.float32)
    decode(flat.dtype.name, flat.reshape(-1).view(np.uint8), out.reshape(-1))
    return out
