"""Drop partly (k-DARE): shrink, keep or turn round what DARE would zero, and rescale the rest to make up for it."""

from __future__ import annotations

import math
from fractions import Fraction

from deltasmith.edits.drop import variance_of, variance_ratio
from deltasmith.kernels import drops
from deltasmith.operation.protocols import Edit, Found, Place
from deltasmith.operation.schedule import Density, Number
from deltasmith.table.checkpoint import Floats

__all__ = ["DropPartly", "kept_divisor", "kept_factor"]


def _left(density: float, k: float) -> Fraction:
    """Return 1 - k p, p = 1 - density, without rounding."""
    return 1 - Fraction(k) * (1 - Fraction(density))


def kept_factor(density: float, k: float) -> float:
    """Return (1 - k p) / (1 - p), p = 1 - density, rounded once; infinite where float64 ends.

    >>> kept_factor(0.5, 0.0), kept_factor(0.5, 0.5), kept_factor(1e-10, 1.0), kept_factor(0.5, 2.0)
    (2.0, 1.5, 1.0, 0.0)
    """
    factor = _left(density, k) / Fraction(density)
    try:
        return float(factor)
    except OverflowError:
        return math.inf if factor > 0 else -math.inf


def kept_divisor(density: float, k: float) -> float:
    """Return (1 - p) / (1 - k p), p = 1 - density: what the kept elements are divided by; infinite where k p = 1.

    Computed without rounding but the last one, so that k = 0 gives the density itself and k = 1 exactly 1.

    >>> kept_divisor(0.1, 0.0), kept_divisor(1e-10, 1.0), kept_divisor(0.5, 2.0)
    (0.1, 1.0, inf)
    """
    rest = _left(density, k)
    return float(Fraction(density) / rest) if rest else math.inf


class DropPartly(Edit):
    """Keep each element with probability `density`, times (1 - k p) / (1 - p); multiply the others by k.

    p = 1 - density. The expectation over seeds is the delta itself for every k; the variance of an element d is
    (1 - k)² p / (1 - p) · d². k = 0 is `drop`, bit for bit; k = 0.5 has a quarter of its variance, k = -1 four
    times as much, and k = 1 changes nothing. With k p = 1 the kept elements become 0. Which elements are kept is
    decided as in `drop`, and they are the same ones.

    For k other than 0 the result is not sparse: nothing is saved by it. That the loss does not change
    ("competitive") holds to first order only: the variance costs ½ (1 - k)² p / (1 - p) Σ H_ii d_i² on average,
    H the Hessian of the loss.

    Paper: A Unified View of Delta Parameter Editing, arXiv 2410.13841v1, the extension of DARE: W = W_PRE +
    k·M⊙ΔW + (1 - kp)/(1 - p)·(1 - M)⊙ΔW, M = 1 where dropped. There is no released code.

    >>> import numpy as np
    >>> delta = np.array([1.0, 2.0, -3.0], np.float32)
    >>> DropPartly(density=0.5, k=0.5).apply(delta, Place("w", (3,)), Found()).tolist()
    [0.5, 3.0, -4.5]
    """

    density: Density
    """The fraction kept (rescaled) on average, in (0, 1]."""
    k: Number
    """What the other elements are multiplied by; any finite number: 0 drops them, 1 changes nothing."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return kept / divisor and others * k."""
        divisor = kept_divisor(self.density, self.k)
        return drops.drop_partly(delta, place.key, place.start, self.density, divisor, self.k)

    def variance(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the variance of each edited element over seeds: (1 - k)² p / (1 - p) · delta²."""
        return variance_of(delta, variance_ratio(self.density, self.k))
