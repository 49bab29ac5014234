"""Counting deltas by size: a histogram over bfloat16 cells of |δ|, and over |δ| in steps of the base's own grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats

__all__ = ["CELLS", "STEPS", "add_sizes", "add_sizes_definition", "add_steps", "add_steps_definition"]

Counts = npt.NDArray[np.int64]

CELLS = 1 << 15
"""Cells of the histogram of |δ|: the upper 16 bits of a float32 without its sign, 128 cells an octave."""

STEPS = 64
"""Cells of the histogram of |δ| / step: cell k holds ratios in [2^(k - 32), 2^(k - 31)), the ends what lies beyond."""


@njit(nogil=True, cache=True)
def _add_sizes(bits: Any, counts: Any) -> None:
    for i in range(bits.size):
        counts[np.int64(bits[i] >> np.uint32(16)) & 0x7FFF] += 1


def add_sizes(delta: Floats, counts: Counts) -> None:
    """Add a tile of deltas to `counts` (CELLS,): one for the cell of every |δ|; zeros fall into cell 0.

    Cell 0 also holds denormals below 2⁻¹³³, which no difference of 16-bit numbers is.
    """
    _add_sizes(delta.reshape(-1).view(np.uint32), counts)


def add_sizes_definition(delta: Floats, counts: Counts) -> None:
    """Define `add_sizes`: the cell of a float32 is what its bits hold above the lower 16, without the sign."""
    cells = np.abs(delta.reshape(-1)).view(np.uint32) >> 16
    counts += np.bincount(cells.astype(np.int64), minlength=CELLS)


@njit(nogil=True, cache=True)
def _add_steps(base: Any, delta: Any, mantissa: Any, smallest: Any, zeros: Any, steps: Any) -> None:
    for i in range(base.size):
        exponent = max(np.int64(base[i] >> np.uint32(23)) & 0xFF, smallest)
        bits = np.int64(delta[i]) & 0x7FFFFFFF
        if bits == 0:
            zeros[exponent] += 1
        else:
            cell = (bits >> 23) - (exponent - mantissa) + 32
            steps[exponent, min(max(cell, 0), 63)] += 1


def add_steps(
    base: Floats, delta: Floats, mantissa: int, smallest: int, zeros: Counts, steps: Counts
) -> None:
    """Count deltas by the exponent of the base's value (its grid) and by |δ| / step of that grid.

    The grid is that of an element type with `mantissa` bits behind the leading one (bfloat16: 7, float16: 10):
    next to w the step is 2^(e - mantissa), e being w's exponent, biased as in float32 and at least `smallest` (the
    type's least normal exponent: bfloat16 1, float16 113). `zeros` (256,) counts δ = 0 by exponent; `steps`
    (256, STEPS) the other deltas.
    """
    _add_steps(
        base.reshape(-1).view(np.uint32), delta.reshape(-1).view(np.uint32), mantissa, smallest, zeros, steps
    )


def add_steps_definition(
    base: Floats, delta: Floats, mantissa: int, smallest: int, zeros: Counts, steps: Counts
) -> None:
    """Define `add_steps` with whole arrays: floor(log2(|δ| / step)) of every δ, cut to the cells there are."""
    exponents = np.maximum((base.reshape(-1).view(np.uint32) >> 23) & 0xFF, smallest).astype(np.int64)
    bits = delta.reshape(-1).view(np.uint32) & 0x7FFFFFFF
    cells = np.clip((bits >> 23).astype(np.int64) - (exponents - mantissa) + 32, 0, STEPS - 1)
    np.add.at(zeros, exponents[bits == 0], 1)
    np.add.at(steps, (exponents[bits != 0], cells[bits != 0]), 1)
