"""Drop by rank (MAGPRUNE): the larger an element within its row, the likelier it is kept.

The three records differ in how a rank becomes a probability, in what their width means, and in the rescaling.
In all of them rank 0 is the element of largest magnitude, equal magnitudes rank in index order, zeros are
ranked like any other value, density 1 changes nothing, and a row of one element is kept unchanged.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from deltasmith.edits.drop import MaskedNorms, l1_ratio, variance_of
from deltasmith.kernels import drops
from deltasmith.kernels.ranks import rank_rows
from deltasmith.operation.protocols import Edit, Found, Place, Reach, Survey
from deltasmith.operation.schedule import Density, Rate
from deltasmith.table.checkpoint import Floats

__all__ = [
    "DropByRank",
    "DropByRankInclusive",
    "DropByRankMatchL1",
    "keep_line",
    "keep_line_inclusive",
    "keep_probabilities",
]

Line = tuple[float, float]


def keep_line(width: int, density: float, window: float) -> Line:
    """Return (top, slope): the element of rank r is kept with probability top - slope * r (paper: n steps).

    >>> keep_line(4, 0.5, 0.4)
    (0.7, 0.1)
    """
    if width == 1 or density == 1.0:
        return 1.0, 0.0
    return density + window / 2, window / width


def keep_line_inclusive(width: int, density: float, window: float) -> Line:
    """Return (top, slope) such that rank 0 and rank n - 1 lie exactly window / 2 above and below the density.

    >>> keep_line_inclusive(3, 0.5, 0.4)
    (0.7, 0.2)
    """
    if width == 1 or density == 1.0:
        return 1.0, 0.0
    return density + window / 2, window / (width - 1)


def keep_probabilities(ranks: npt.NDArray[np.uint32], line: Line) -> npt.NDArray[np.float64]:
    """Return the probability with which each element is kept."""
    return line[0] - line[1] * ranks.astype(np.float64)


def _problem(density: float, half: float) -> str:
    """Say what is wrong with keep probabilities of density +- half, or nothing."""
    if density == 1.0 or (density - half > 0.0 and density + half <= 1.0):
        return ""
    return (
        f"keep probabilities would range from {density - half:.4g} to {density + half:.4g} "
        f"(density {density:g} with half a width of {half:g}); they must lie in (0, 1]"
    )


class _ByRank(Edit):
    """What the three records share: the row reach, and the refusal of impossible probabilities."""

    reach: ClassVar[Reach] = "row"

    density: Density
    """The fraction kept on average, in (0, 1]."""

    def _half(self) -> float:
        """Return half the width of the range of probabilities; no float where the width is a schedule."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _possible(self) -> Self:
        # Schedules are checked when they are resolved to the constants of one tensor.
        half = self._half()
        if (
            isinstance(self.density, float)
            and isinstance(half, float)
            and (says := _problem(self.density, half))
        ):
            raise ValueError(says)
        return self


class DropByRank(_ByRank):
    """Keep rank r of a row of n with probability p = density + window/2 - r * window/n, divided by p.

    Zero the others. The expectation over seeds is the delta itself. A window of 0 is `drop`. Width and
    density must leave every probability in (0, 1]. Ranks see the float32 delta, whole rows at a time; what a
    row is: one output unit (a 1-D tensor is one row).

    Paper: Deep et al., "DELLA-Merging" (arXiv 2406.11617), step 1, MAGPRUNE: drop probability p_min + (eps /
    n) r with p_min = p - eps/2, p = 1 - density, eps = window; so the mean density is density + window /
    (2n), not density. Departure: a row of one element is kept unchanged.

    >>> row = np.array([[3.0, -1.0]], np.float32)
    >>> DropByRank(density=1.0).apply(row, Place("w", (1, 2)), Found()).tolist()
    [[3.0, -1.0]]
    """

    window: Rate = 0.0
    """The full width of the range of probabilities (the paper's epsilon), in [0, 1)."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the kept elements of (rows, width), each divided by its probability."""
        line = keep_line(delta.shape[-1], self.density, self.window)
        return drops.drop_by_rank(delta, rank_rows(delta), place.key, place.start, line)

    def variance(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the variance of each edited element over seeds: (1 - p) / p · delta², p the one of its rank."""
        kept = keep_probabilities(rank_rows(delta), keep_line(delta.shape[-1], self.density, self.window))
        return variance_of(delta, (1.0 - kept) / kept)

    def _half(self) -> float:
        return self.window / 2 if isinstance(self.window, float) else self.window


class DropByRankInclusive(_ByRank):
    """Keep rank r of a row of n with p = density + window/2 - r * window/(n - 1), divided by p.

    Zero the others. The largest and the smallest element sit exactly window/2 above and below the density,
    and the mean density of a row is exactly `density`. The expectation over seeds is the delta itself.

    Paper: Deep et al. (arXiv 2406.11617), as released (declare-lab/della, `rank_magnitude`). Departures: the
    released code prints a message where probabilities leave (0, 1] and goes on, and fails on rows of one
    element; here the former is refused and the latter kept unchanged. Its bfloat16 ranks are not imitated.
    """

    window: Rate = 0.0
    """The full width of the range of probabilities (the released `window_size`), in [0, 1)."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the kept elements of (rows, width), each divided by its probability."""
        line = keep_line_inclusive(delta.shape[-1], self.density, self.window)
        return drops.drop_by_rank(delta, rank_rows(delta), place.key, place.start, line)

    def variance(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the variance of each edited element over seeds: (1 - p) / p · delta², p the one of its rank."""
        kept = keep_probabilities(
            rank_rows(delta), keep_line_inclusive(delta.shape[-1], self.density, self.window)
        )
        return variance_of(delta, (1.0 - kept) / kept)

    def _half(self) -> float:
        return self.window / 2 if isinstance(self.window, float) else self.window


class DropByRankMatchL1(_ByRank):
    """Keep rank r with p = density + epsilon - r * 2 epsilon/(n - 1); match each tensor's L1 norm.

    What is kept is multiplied by one factor per tensor, L1(delta) / L1(kept), or left alone where either norm
    is below 1e-7. Biased: large elements come out too large on average and small ones too small (at density
    0.4 and epsilon 0.1 by 1.11 and 0.71), because one factor cannot undo probabilities that differ.

    Paper: none; mergekit 0.1.5, `della_magprune` with `rescale_norm: l1`. Computed in float32 with float64
    norms. Departure: rows of one element, on which mergekit fails, are kept.
    """

    epsilon: Rate = 0.15
    """HALF the width of the range of probabilities, in [0, 1): density - epsilon to density + epsilon."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for the tensor's norms before and after masking."""
        return None if found.local else MaskedNorms(self._masked_block)

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the kept elements of (rows, width), scaled."""
        scaled: Floats = self._masked(delta, place) * np.float32(l1_ratio(found.local[0]))
        return scaled

    def _masked(self, rows: Floats, place: Place) -> Floats:
        line = keep_line_inclusive(rows.shape[-1], self.density, 2 * self.epsilon)
        return drops.mask_by_rank(rows, rank_rows(rows), place.key, place.start, line)

    def _masked_block(self, flat: Floats, place: Place) -> Floats:
        return self._masked(flat.reshape(-1, place.width), place).reshape(-1)

    def _half(self) -> float:
        return self.epsilon
