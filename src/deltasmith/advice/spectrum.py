"""A histogram of |δ| with cells of 1/128 octave, exact in its counts: quantiles, shares, sums of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltasmith.kernels.spectrum import CELLS

__all__ = ["Spectrum", "relative_quantile"]

Counts = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


def _edges(first: int, last: int) -> Vector:
    """Return the lower ends of cells [first, last): the bfloat16 numbers whose bits are the cell's number."""
    cells: npt.NDArray[np.uint32] = np.arange(first, last, dtype=np.uint32) << np.uint32(16)
    return cells.view(np.float32).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How many elements have |δ| in each cell; `counts[i]` belongs to cell `first + i`; `zeros` have no cell."""

    zeros: int
    first: int
    counts: Counts

    @classmethod
    def of(cls, counts: Counts) -> Spectrum:
        """Keep the cells that hold something of a full histogram (CELLS,); cell 0 is the zeros."""
        held = np.flatnonzero(counts[1:]) + 1
        if not held.size:
            return cls(int(counts[0]), 0, np.zeros(0, np.int64))
        return cls(int(counts[0]), int(held[0]), counts[held[0] : held[-1] + 1].copy())

    @classmethod
    def total(cls, parts: Iterable[Spectrum]) -> Spectrum:
        """Add up histograms."""
        full = np.zeros(CELLS, np.int64)
        for part in parts:
            full[0] += part.zeros
            full[part.first : part.first + part.counts.size] += part.counts
        return cls.of(full)

    @property
    def size(self) -> int:
        """Count the elements."""
        return self.zeros + int(self.counts.sum())

    @property
    def middles(self) -> Vector:
        """Return the value that stands for each cell: the middle between its ends."""
        ends = _edges(self.first, self.first + self.counts.size + 1)
        return (ends[:-1] + ends[1:]) / 2

    def quantile(self, share: float) -> float:
        """Return the |δ| that `share` of all elements (zeros too) do not exceed, within 0.4 %; 0 of nothing.

        >>> counts = np.zeros(CELLS, np.int64)
        >>> counts[[0, 0x3F80]] = 90, 10  # ninety zeros, ten ones
        >>> Spectrum.of(counts).quantile(0.5), round(Spectrum.of(counts).quantile(0.95), 2)
        (0.0, 1.0)
        """
        wanted = share * self.size
        if wanted <= self.zeros:
            return 0.0
        at = int(np.searchsorted(self.zeros + np.cumsum(self.counts), wanted))
        return float(self.middles[min(at, self.counts.size - 1)])

    def above(self, value: float) -> int:
        """Count the elements with |δ| above `value`; a cell that holds `value` counts by the part that lies above."""
        ends = _edges(self.first, self.first + self.counts.size + 1)
        widths = np.diff(ends)
        inside = np.clip((ends[1:] - value) / np.where(widths > 0, widths, 1.0), 0.0, 1.0)
        return round(float(self.counts @ inside))


def relative_quantile(parts: Sequence[tuple[Spectrum, float]], share: float) -> float:
    """Return the quantile of |δ| / σ over several histograms, each with its own σ; parts with σ = 0 are left out."""
    kept = [(part, sigma) for part, sigma in parts if sigma > 0 and part.size]
    if not kept:
        return 0.0
    values = np.concatenate([[0.0], *(part.middles / sigma for part, sigma in kept)])
    counts = np.concatenate([[sum(part.zeros for part, _ in kept)], *(part.counts for part, _ in kept)])
    order = np.argsort(values, kind="stable")
    at = int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum()))
    return float(values[order][min(at, values.size - 1)])
