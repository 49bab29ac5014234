"""Drop: keep each element of a delta with the same probability (DARE), and how to rescale what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deltasmith.kernels import drops
from deltasmith.operation.protocols import BlockSums, Edit, Found, Place, Scope, Survey
from deltasmith.operation.schedule import Density
from deltasmith.table.checkpoint import Floats

__all__ = [
    "Drop",
    "DropMatchL1",
    "DropUnscaled",
    "MaskedNorms",
    "Norms",
    "l1_ratio",
    "variance_of",
    "variance_ratio",
]

Doubles = npt.NDArray[np.float64]

_TOO_SMALL = 1e-7  # mergekit leaves the masked tensor alone where either L1 norm is below this


def variance_ratio(density: float, k: float = 0.0) -> float:
    """Return the variance that dropping adds to an element, in units of its square: (1 - k)² p / (1 - p).

    p = 1 - density. `drop` is k = 0; for `drop_partly` k is the factor on what is dropped.

    Paper: A Unified View of Delta Parameter Editing, arXiv 2410.13841v1, extension of DARE; the variance is a
    consequence of its formula that it does not state.

    >>> variance_ratio(0.1), variance_ratio(0.5, k=0.5), variance_ratio(0.5, k=1.0)
    (9.0, 0.25, 0.0)
    """
    return (1.0 - k) ** 2 * (1.0 - density) / density


def variance_of(delta: Floats, ratio: Doubles | float) -> Floats:
    """Return ratio · delta², elementwise, in float32; the squares are taken in float64."""
    return np.asarray(ratio * np.square(delta, dtype=np.float64), np.float32)


class Drop(Edit):
    """Keep each element with probability `density`, divided by it; zero the others.

    The expectation over seeds is the delta itself. Which elements are kept depends on the seed, the model's
    label, the tensor's name and the element's index, and on nothing else. Density 1 changes nothing. Short
    tensors may lose everything: a scalar is kept or zeroed as a whole.

    Paper: Yu et al., "Language Models are Super Mario" (DARE, arXiv 2311.03099), drop and rescale; p = 1 -
    density. The probability is rounded to a multiple of 2^-32. The released code is the same up to its random
    generator.

    >>> Drop(density=1.0).apply(np.array([0.5, -2.0], np.float32), Place("w", (2,)), Found()).tolist()
    [0.5, -2.0]
    """

    density: Density
    """The fraction kept on average, in (0, 1]."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return kept / density."""
        return drops.drop(delta, place.key, place.start, self.density, self.density)

    def variance(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the variance of each edited element over seeds: (1 - density) / density · delta²."""
        return variance_of(delta, variance_ratio(self.density))


class DropUnscaled(Edit):
    """Keep each element with probability `density` as it is; zero the others.

    The expectation over seeds is density * delta: an ablation, or a step before a rescaling of your own.

    Paper: Yu et al. (arXiv 2311.03099), the "without rescaling" rows. Keeps the same elements as `drop`.
    """

    density: Density
    """The fraction kept on average, in (0, 1]."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return kept."""
        return drops.drop(delta, place.key, place.start, self.density, 1.0)


@dataclass(frozen=True, slots=True)
class Norms:
    """The L1 norms of one tensor's delta before and after masking."""

    before: float
    after: float


def l1_ratio(norms: Norms) -> float:
    """Return what restores the L1 norm, or 1 where either norm is below 1e-7."""
    if norms.before < _TOO_SMALL or norms.after < _TOO_SMALL:
        return 1.0
    return norms.before / norms.after


@dataclass(frozen=True)
class MaskedNorms:
    """A survey of one tensor: the L1 norms of the delta and of what `masked` leaves of it."""

    masked: Callable[[Floats, Place], Floats]
    scope: ClassVar[Scope] = "tensor"
    sample: ClassVar[int] = 0

    def start(self) -> BlockSums:
        """Return an empty tally."""
        return BlockSums()

    def tally(self, acc: BlockSums, cells: Sequence[Floats], place: Place) -> None:
        """Add both norms of one block."""
        flat = np.ascontiguousarray(cells[0]).reshape(-1)
        acc.add(place, (drops.abs_sum(flat), drops.abs_sum(self.masked(flat, place))))

    def conclude(self, accs: Sequence[BlockSums]) -> Norms:
        """Add the blocks in index order."""
        for before, after in BlockSums.total(accs).values():
            return Norms(float(before), float(after))
        return Norms(0.0, 0.0)


class DropMatchL1(Edit):
    """Keep each element with probability `density`; scale each tensor back to the L1 norm it had.

    Where the norm before or after is below 1e-7 nothing is scaled. Unlike `drop` this is a random factor per
    tensor, not 1 / density: about right for large tensors, erratic for short ones (at density 0.1 a vector of
    32 elements is scaled by 32 +- 99 instead of 10).

    Paper: none; mergekit 0.1.5, `bernoulli` with `rescale_norm: l1`. Computed in float32 with float64 norms.
    """

    density: Density
    """The fraction kept on average, in (0, 1]."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for the tensor's norms before and after masking."""
        return None if found.local else MaskedNorms(self._masked)

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return kept * L1(delta) / L1(kept)."""
        scaled: Floats = self._masked(delta, place) * np.float32(l1_ratio(found.local[0]))
        return scaled

    def _masked(self, delta: Floats, place: Place) -> Floats:
        return drops.drop(delta, place.key, place.start, self.density, 1.0)
