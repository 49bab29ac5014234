"""One matrix, column by column: centroids, codes, kept values, and what the next columns take over."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.claq_columns import kept_in
from deltasmith.codecs.protocol import Array, numpy_type
from deltasmith.kernels.codebook import pack_rows
from deltasmith.kernels.gptq import spread
from deltasmith.kernels.kmeans import assign, centroids
from deltasmith.table.checkpoint import Floats
from deltasmith.table.dtypes import DTYPES

__all__ = ["MatrixCoder", "code_columns", "code_with_feedback", "offsets_of", "row_bytes"]

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

_BLOCK = 128
"""Columns whose feedback to all later ones is gathered into one matrix product, as in the released code."""
_AHEAD = 1024
"""Columns that such a product updates at a time, for the sake of memory."""


def offsets_of(sizes: npt.NDArray[np.integer]) -> Indices:
    """Return where each of consecutive pieces begins: the sums of the sizes before it, along the last axis."""
    ends = np.cumsum(sizes, axis=-1, dtype=np.int64)
    return ends - sizes.astype(np.int64)


def row_bytes(widths: Bytes) -> int:
    """Return the whole bytes that one row of codes takes."""
    return (int(widths.sum(dtype=np.int64)) + 7) // 8


@dataclass
class MatrixCoder:
    """Takes the columns of one (out, in) matrix in any order and keeps what is stored of them.

    `widths`: the bits of each column; `tails`: the fraction of each to keep at either end, None to keep nothing;
    `dtype`: how centroids and kept values are stored. After all columns: `books` by column, `kept` as (rows, columns,
    values), and the squared norm and error against the matrix.
    """

    matrix: Floats
    widths: Bytes
    tails: npt.NDArray[np.float64] | None
    dtype: str
    books: dict[int, Array] = field(default_factory=dict)
    kept: list[tuple[Indices, Indices, Array]] = field(default_factory=list)
    squared_norm: float = 0.0
    squared_error: float = 0.0

    def __post_init__(self) -> None:
        """Make room for one code for each value."""
        self._codes = np.empty(self.matrix.shape[::-1], np.uint8)

    def take(self, j: int, column: Floats) -> Floats:
        """Code `column` as column j and return what it decodes to."""
        book = self._stored(centroids(column, 1 << int(self.widths[j])))
        centres = book.astype(np.float32)
        assign(column, centres, self._codes[j])
        decoded: Floats = centres[self._codes[j]]
        if self.tails is not None:
            self._keep(j, column, decoded)
        self.books[j] = book
        self._measure(self.matrix[:, j], decoded)
        return decoded

    def packed(self) -> Bytes:
        """Return the codes, (out, bytes of a row)."""
        out = np.zeros((self.matrix.shape[0], row_bytes(self.widths)), np.uint8)
        pack_rows(self._codes, offsets_of(self.widths), out)
        return out

    def _keep(self, j: int, column: Floats, decoded: Floats) -> None:
        """Replace the ends of a column by what they are stored as; values that a centroid hits are not stored."""
        assert self.tails is not None
        rows = np.flatnonzero(kept_in(column, float(self.tails[j])))
        values = self._stored(column[rows].astype(np.float64))
        better = values.astype(np.float32) != decoded[rows]
        rows, values = rows[better], values[better]
        decoded[rows] = values
        self.kept.append((rows, np.full(rows.size, j, np.int64), values))

    def _stored(self, values: npt.NDArray[np.float64]) -> Array:
        """Round to the stored type; values beyond its largest become the largest."""
        largest = DTYPES[self.dtype].largest
        return np.clip(values, -largest, largest).astype(numpy_type(self.dtype))

    def _measure(self, column: Floats, decoded: Floats) -> None:
        exact = column.astype(np.float64)
        self.squared_norm += float(exact @ exact)
        exact -= decoded
        self.squared_error += float(exact @ exact)


def code_columns(coder: MatrixCoder) -> MatrixCoder:
    """Code every column by itself."""
    width = coder.matrix.shape[1]
    for first in range(0, width, _BLOCK):
        block = np.ascontiguousarray(coder.matrix[:, first : first + _BLOCK].T)
        for j, column in enumerate(block, first):
            coder.take(j, column)
    return coder


def code_with_feedback(coder: MatrixCoder, factor: Floats, order: Indices) -> MatrixCoder:
    """Code the columns in `order`, each after it has taken over what the earlier ones could not hold.

    `factor` is `kernels.gptq.feedback` of the Gram matrix in that order. Float32, as the columns are.
    """
    columns = np.ascontiguousarray(coder.matrix.T[order])
    width = len(columns)
    for first in range(0, width, _BLOCK):
        last = min(first + _BLOCK, width)
        errors = np.empty((last - first, columns.shape[1]), np.float32)
        for j in range(first, last):
            decoded = coder.take(int(order[j]), columns[j])
            np.subtract(columns[j], decoded, out=errors[j - first])
            errors[j - first] /= factor[j, j]
            spread(errors[j - first], factor[j, j + 1 : last], columns[j + 1 : last])
        for at in range(last, width, _AHEAD):
            columns[at : at + _AHEAD] -= factor[first:last, at : at + _AHEAD].T @ errors
    return coder
