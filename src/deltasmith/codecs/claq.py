"""A codebook for each input column, more bits for the columns with outliers, outliers themselves kept if asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from deltasmith.codecs.claq_columns import bits_of_columns, outlier_counts, tails_of_columns
from deltasmith.codecs.claq_matrix import (
    MatrixCoder,
    code_columns,
    code_with_feedback,
    offsets_of,
    row_bytes,
)
from deltasmith.codecs.protocol import (
    Array,
    Arrays,
    Cell,
    Decoder,
    Domain,
    Held,
    Source,
    WholeCodec,
    Words,
    numpy_type,
)
from deltasmith.errors import RefusedError
from deltasmith.kernels.codebook import look_up
from deltasmith.kernels.gptq import feedback
from deltasmith.kernels.linalg import is_matrix
from deltasmith.table.checkpoint import Floats, Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["Claq"]

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

_WIDEST = 8
_FEEDBACK = 24  # bytes per element of the Gram matrix: itself, and its factor in float64 on the way


class Claq(WholeCodec):
    """Replace each value by the nearest of 2ᵇ centroids of its input column, the best there are for that column.

    For matrices (out, in), for each matrix of a stack of experts, and for tensors of more dimensions as (out, rest).
    The centroids are the optimal 1-D k-means of the column, rounded to `dtype`. A fractional `bits` gives `high`
    bits to the columns with most values beyond `threshold` · mean |w| of the matrix, ⌊bits⌋ to the rest (of equal
    counts, the lower column first). `reserve` keeps the ends of each column as they are.

    Where calibration statistics are given (the Gram matrix in × in of the layer's inputs), columns are coded one
    after the other and the later ones make up for the error of the earlier as GPTQ does: the error of the layer's
    outputs becomes smaller, that of the weights larger. A matrix whose weights would end further off than without
    its delta is coded without. An input that no example had takes no part. The factor needs 24 · in² bytes.

    Arrays: `codes` (E · out, ⌈Σ b / 8⌉) uint8, row by row, lowest bit first, each row in whole bytes; `bits` (E, in)
    uint8; `codebook` (Σ 2ᵇ,) `dtype`, column by column, ascending. If values are reserved also, row by row,
    `kept_count` (E · out,), how many; `kept_index`, their columns; and `kept_value` in `dtype`. Counts and columns are
    uint16, in rows of 65,536 and more uint32. E is 1 without experts.

    Paper: Wang et al., 2024, CLAQ: Pushing the Limits of Low-Bit Post-Training Quantization for LLMs (arXiv
    2405.17233), after the released code, since its text was not at hand. Departures: deltas by default (`of: weight` is
    the paper); an exact k-means instead of one random start; the released code picks each column's reserved fraction
    by the position within its block of 128 columns, so that every block repeats the first one's, repaired here; ties
    in the ranking, left to an unstable sort there; columns without calibration inputs are coded, not zeroed.

    >>> column = np.float32([[0], [1], [9], [9]])
    >>> codec = Claq(bits=1, dtype="float32")
    >>> cell = Cell(Spec("w", (4, 1), DTYPES["float32"]))
    >>> codec.decode(codec.encode(column, cell), cell).ravel().tolist()
    [0.5, 0.5, 9.0, 9.0]
    """

    bits: Annotated[float, Field(ge=1.0, le=_WIDEST)] = 2.0
    """Mean bits of a code, 1 to 8: 2.12 is 2 bits in 94 % of the columns and 4 in the others."""
    high: Annotated[int, Field(ge=2, le=_WIDEST)] | None = None
    """Bits of the columns with most outliers, if `bits` is fractional; default 4 below 4 bits, else ⌊bits⌋ + 1."""
    threshold: Annotated[float, Field(gt=0.0)] = 13.0
    """An outlier is at least this many times the matrix's mean magnitude."""
    reserve: Annotated[float, Field(ge=0.0, le=0.2)] = 0.0
    """Fraction of the values kept as they are, both ends of the columns together; the paper's setting is 0.01."""
    reserve_columns: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Fraction of the columns, those with most outliers, that keep more."""
    reserve_ratio: Annotated[float, Field(ge=1.0, le=100.0)] = 3.5
    """How many times as much these keep: 1.4 % against 0.4 % at either end, for 0.01 in all."""
    of: Literal["delta", "weight"] = "delta"
    """What is coded: the delta, or (the paper) the fine-tuned weights, which then need no base."""
    order: Literal["columns", "activations"] = "columns"
    """With statistics: code columns as they come, or those with the largest inputs first."""
    damping: Annotated[float, Field(gt=0.0)] = 0.01
    """With statistics: added to the Gram matrix's diagonal, in units of its mean."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """How centroids and kept values are stored."""

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.high is not None and self.high <= math.floor(self.bits):
            raise ValueError(f"high = {self.high} must exceed bits = {self.bits}")
        return self

    @property
    def domain(self) -> Domain:
        """Say what is coded."""
        return self.of

    def refusal(self, cell: Cell) -> str:
        """Refuse vectors and scalars."""
        return super().refusal(cell) or ("" if len(cell.spec.shape) > 1 else "it is not a matrix")

    def workspace(self, cell: Cell) -> int:
        """Count the values transposed, their codes, the arrays of a column, and what error feedback holds."""
        shape = cell.spec.shape
        plain = cell.spec.size * 6 + 64 * (shape[0] if shape else 1) * (1 << math.ceil(self.bits))
        return plain if cell.gram is None else plain + _FEEDBACK * math.prod(shape[1:]) ** 2

    def encode(self, values: Array, cell: Cell, predicted: Words | None = None) -> dict[str, Array]:
        """Code a whole tensor.

        Raises:
            RefusedError: a Gram matrix of the wrong shape, or one that is not positive definite.
        """
        shape = _stacked(cell.spec)
        stored = numpy_type(self.dtype)
        if not values.size:
            bits = np.full((shape[0], shape[2]), math.floor(self.bits), np.uint8)
            arrays: dict[str, Array] = {
                "codes": np.zeros((shape[0] * shape[1], row_bytes(bits[:1])), np.uint8),
                "codebook": np.zeros(int((1 << bits.astype(np.int64)).sum()), stored),
            }
            return {**arrays, "bits": bits, **(_kept([], shape, stored) if self.reserve else {})}
        grams = None if cell.gram is None else _grams(cell.gram(), cell.spec.name, shape)
        coded = [
            self._matrix(matrix, cell.spec.name, None if grams is None else grams[e])
            for e, matrix in enumerate(values.reshape(shape))
        ]
        arrays = {
            "codes": np.concatenate([c.packed() for c in coded]),
            "bits": np.stack([c.widths for c in coded]),
            "codebook": np.concatenate([c.books[j] for c in coded for j in range(shape[2])]),
        }
        return arrays | (_kept(coded, shape, stored) if self.reserve else {})

    def decode_range(self, arrays: Arrays, cell: Cell, start: int, out: Floats) -> None:
        """Write elements [start, start + out.size)."""
        self.decoder(cell, Held(arrays)).read(start, out)

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Hold codebook and kept values; rows of codes are read when they are asked for."""
        shape = _stacked(cell.spec)
        kept = _read_kept(source, shape, self.dtype) if self.reserve else None
        return _Decoder(source, shape, *_read_books(source, shape, self.dtype), kept)

    def _matrix(self, matrix: Floats, name: str, gram: Floats | None) -> MatrixCoder:
        """Code one (out, in) matrix."""
        counts = outlier_counts(matrix, self.threshold)
        above = self.high or (4 if self.bits < 4 else math.floor(self.bits) + 1)
        bits = bits_of_columns(counts, self.bits, above)
        tails = None
        if self.reserve:
            tails = tails_of_columns(counts, self.reserve, self.reserve_columns, self.reserve_ratio)

        def fresh() -> MatrixCoder:
            return MatrixCoder(matrix, bits, tails, self.dtype)

        if gram is None:
            return code_columns(fresh())
        order = np.arange(len(gram))
        if self.order == "activations":
            order = np.argsort(-np.diagonal(gram), kind="stable")
            gram = gram[np.ix_(order, order)]
        try:
            factor = feedback(gram, self.damping)
        except ValueError as cause:
            raise RefusedError(str(cause), where=name, fix="collect the statistics anew") from cause
        coder = code_with_feedback(fresh(), factor, order)
        # The bound of every codec: no further from the fine-tuned model than the base is.
        return coder if coder.squared_error <= coder.squared_norm else code_columns(fresh())


Shape = tuple[int, int, int]


def _stacked(spec: Spec) -> Shape:
    """Return (experts, out, in) of a tensor."""
    shape = spec.shape
    if len(shape) == 3 and is_matrix(spec.name, shape):
        return shape[0], shape[1], shape[2]
    return 1, shape[0], math.prod(shape[1:])


def _grams(gram: Floats, name: str, shape: Shape) -> Floats:
    """Return (experts, in, in) Gram matrices."""
    wanted = (shape[0], shape[2], shape[2])
    if gram.shape != wanted and not (shape[0] == 1 and gram.shape == wanted[1:]):
        raise RefusedError(
            f"a Gram matrix of shape {gram.shape}",
            where=name,
            fix=f"collect one of shape {wanted[1:]} a matrix",
        )
    return gram.reshape(wanted)


def _kept(coded: list[MatrixCoder], shape: Shape, dtype: np.dtype[np.generic]) -> dict[str, Array]:
    """Return the kept values of all matrices, row by row."""
    rows, columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, dtype)]
    for expert, coder in enumerate(coded):
        for row, column, value in coder.kept:
            rows.append(row + expert * shape[1])
            columns.append(column)
            values.append(value)
    row, column = np.concatenate(rows), np.concatenate(columns)
    by_row = np.lexsort((column, row))
    return {
        "kept_count": np.bincount(row, minlength=shape[0] * shape[1]).astype(_index_type(shape)),
        "kept_index": column[by_row].astype(_index_type(shape)),
        "kept_value": np.concatenate(values)[by_row],
    }


def _index_type(shape: Shape) -> str:
    return "uint16" if shape[2] < 1 << 16 else "uint32"


def _held(source: Source, name: str, dtype: str, shape: tuple[int, ...] | None = None) -> Array:
    """Return a whole array that must be there, of this type and (if given) with this many elements."""
    spec = source.specs.get(name)
    if spec is None or spec.dtype is not DTYPES[dtype]:
        raise ValueError(f"no array {name} of type {dtype}")
    if shape is not None and spec.size != math.prod(shape):
        raise ValueError(f"{name} has {spec.size} elements, not {math.prod(shape)}")
    array = source.whole(name)
    return array.reshape(-1) if shape is None else array.reshape(shape)


def _read_books(source: Source, shape: Shape, dtype: str) -> tuple[Bytes, Indices, Indices, Floats]:
    """Return the bits of each column, where its codes and its centroids begin, and all centroids."""
    bits = _held(source, "bits", "uint8", (shape[0], shape[2]))
    if bits.size and not (bits.min() >= 1 and bits.max() <= _WIDEST):
        raise ValueError(f"a column has {int(bits.max())} bits")
    sizes = np.int64(1) << bits.astype(np.int64)
    codebook = _held(source, "codebook", dtype, (int(sizes.sum()),)).astype(np.float32)
    strides = {row_bytes(row) for row in bits} or {0}
    if len(strides) > 1:
        raise ValueError("experts whose rows differ in length")
    books = offsets_of(sizes.reshape(-1)).reshape(sizes.shape)
    spec = source.specs.get("codes")
    wanted = shape[0] * shape[1] * strides.pop()
    if spec is None or spec.dtype is not DTYPES["uint8"] or spec.size != wanted:
        raise ValueError(f"codes are not {wanted} bytes")
    return np.ascontiguousarray(bits), offsets_of(bits), books, codebook


@dataclass(frozen=True)
class _Kept:
    """Values stored as they are, row by row: row r's are numbers rows[r] to rows[r + 1]."""

    rows: Indices
    columns: Indices
    values: Floats

    def restore(self, start: int, width: int, out: Floats) -> None:
        """Write those that lie in elements [start, start + out.size)."""
        first, last = start // width, -(-(start + out.size) // width)
        part = slice(self.rows[first], self.rows[last])
        rows = np.repeat(np.arange(first, last), np.diff(self.rows[first : last + 1]))
        place = rows * width + self.columns[part] - start
        inside = (place >= 0) & (place < out.size)
        out[place[inside]] = self.values[part][inside]


def _read_kept(source: Source, shape: Shape, dtype: str) -> _Kept:
    counts = _held(source, "kept_count", _index_type(shape), (shape[0] * shape[1],))
    rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    values = _held(source, "kept_value", dtype).astype(np.float32)
    columns = _held(source, "kept_index", _index_type(shape), values.shape).astype(np.int64)
    if rows[-1] != values.size:
        raise ValueError(f"kept_count counts {rows[-1]} values, and there are {values.size}")
    if columns.size and columns.max() >= shape[2]:
        raise ValueError("a kept value lies outside its row")
    return _Kept(rows, columns, values)


@dataclass(frozen=True)
class _Decoder:
    source: Source
    shape: Shape
    bits: Bytes
    offsets: Indices
    books: Indices
    codebook: Floats
    kept: _Kept | None

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        if not out.size:
            return
        _, rows, width = self.shape
        stride = row_bytes(self.bits[0])
        first, last = start // width, -(-(start + out.size) // width)
        codes = np.ascontiguousarray(self.source.read("codes", first * stride, last * stride))
        look_up(codes, first, rows, stride, self.bits, self.offsets, self.books, self.codebook, start, out)
        if self.kept is not None:
            self.kept.restore(start, width, out)
