"""Dot products of tensors and their linear combinations: all that the spherical methods compute on elements.

Each compiled loop stands beside its numpy definition; sums differ from numpy's in the order of addition only.
The order is fixed (sixteen interleaved lanes), so it does not depend on the machine's vector width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["combine", "combine_rows", "dots", "gram", "row_grams"]

Doubles = npt.NDArray[np.float64]


@njit(nogil=True, cache=True)
def dots(a: Floats, b: Floats) -> tuple[float, float, float]:
    """Sum a·a, a·b and b·b of two flat arrays in float64, in one pass and without float64 copies.

    numpy: `x, y = a.astype("f8"), b.astype("f8"); x @ x, x @ y, y @ y`.
    """
    # Sixteen independent sums: a single chain of additions waits for itself, and may not be reordered.
    aa, ab, bb = np.zeros(16), np.zeros(16), np.zeros(16)
    whole = a.size - a.size % 16
    for i in range(0, whole, 16):
        for j in range(16):
            x, y = np.float64(a[i + j]), np.float64(b[i + j])
            aa[j] += x * x
            ab[j] += x * y
            bb[j] += y * y
    for i in range(whole, a.size):
        x, y = np.float64(a[i]), np.float64(b[i])
        aa[i - whole] += x * x
        ab[i - whole] += x * y
        bb[i - whole] += y * y
    return aa.sum(), ab.sum(), bb.sum()


@njit(nogil=True, cache=True)
def _row_dots(a: Floats, b: Floats, out: Doubles) -> None:
    """Write the three sums of `dots` for every row of two matrices."""
    for row in range(a.shape[0]):
        out[row, 0], out[row, 1], out[row, 2] = dots(a[row], b[row])


@njit(nogil=True, cache=True)
def _combine(cells: Floats, coefficients: Floats, pivot: int, total: np.float32, out: Floats) -> None:
    """Write total · cells[pivot] + Σ coefficients[k] · (cells[k] − cells[pivot])."""
    for i in range(out.size):
        out[i] = total * cells[pivot, i]
    for k in range(cells.shape[0]):
        if k != pivot and coefficients[k] != 0:
            for i in range(out.size):
                out[i] += coefficients[k] * (cells[k, i] - cells[pivot, i])


@njit(nogil=True, cache=True)
def _combine_rows(cells: Floats, coefficients: Floats, pivots: npt.NDArray[np.int64], out: Floats) -> None:
    """Do what `_combine` does for each row by itself; `coefficients` ends in a column of totals."""
    models = cells.shape[0]
    for row in range(out.shape[0]):
        pivot = pivots[row]
        total = coefficients[row, models]
        for i in range(out.shape[1]):
            out[row, i] = total * cells[pivot, row, i]
        for k in range(models):
            factor = coefficients[row, k]
            if k != pivot and factor != 0:
                for i in range(out.shape[1]):
                    out[row, i] += factor * (cells[k, row, i] - cells[pivot, row, i])


def gram(cells: Sequence[Floats]) -> Doubles:
    """Return the float64 matrix of all dot products of T arrays of one size and any shape."""
    flat = [np.ascontiguousarray(cell).reshape(-1) for cell in cells]
    found = np.zeros((len(flat), len(flat)))
    for i, a in enumerate(flat):
        # A lone tensor meets itself; otherwise the diagonal comes with the pairs.
        for j in range(i + 1, len(flat)) if len(flat) > 1 else (0,):
            found[i, i], found[i, j], found[j, j] = dots(a, flat[j])
            found[j, i] = found[i, j]
    return found


def row_grams(cells: Floats) -> Doubles:
    """Return the (rows, T, T) dot products of the rows of (T, rows, width) cells."""
    models, rows, _ = cells.shape
    found = np.zeros((rows, models, models))
    sums = np.empty((rows, 3))
    for i in range(models):
        for j in range(i + 1, models) if models > 1 else (0,):
            _row_dots(cells[i], cells[j], sums)
            found[:, i, i], found[:, j, j] = sums[:, 0], sums[:, 2]
            found[:, i, j] = found[:, j, i] = sums[:, 1]
    return found


def combine(cells: Floats, coefficients: Doubles) -> Floats:
    """Return Σ c_k · cells[k] for (T, n) cells, as c · pivot + Σ c_k · (cell_k − pivot) in float32.

    The pivot is the cell of the largest |c_k| and c = Σ c_k in float64. So T identical cells give exactly
    that cell where Σ c_k = 1, close cells lose no digits, and a lone coefficient of 1 gives exactly its cell.
    """
    cells = np.ascontiguousarray(cells)
    out = np.empty(cells.shape[1:], dtype=np.float32)
    if out.size:
        pivot, total = int(np.abs(coefficients).argmax()), np.float32(coefficients.sum())
        _combine(cells, coefficients.astype(np.float32), pivot, total, out)
    return out


def combine_rows(cells: Floats, coefficients: Doubles) -> Floats:
    """Do what `combine` does for each row of (T, rows, width) cells, with (rows, T) coefficients."""
    cells = np.ascontiguousarray(cells)
    out = np.empty(cells.shape[1:], dtype=np.float32)
    if out.size:
        totals = np.concatenate([coefficients, coefficients.sum(axis=1, keepdims=True)], axis=1)
        _combine_rows(cells, totals.astype(np.float32), np.abs(coefficients).argmax(axis=1), out)
    return out
