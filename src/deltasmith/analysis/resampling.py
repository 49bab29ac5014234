"""Resampling the chunks of the data: how far a mean over them would differ on other data of the same kind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deltasmith.analysis.objective import Vector
from deltasmith.kernels.bits import uniform_bits
from deltasmith.operation.randomness import cell_key

__all__ = ["RESAMPLES", "multiplicities", "percentile_interval", "resampled_mean"]

RESAMPLES = 2000


def multiplicities(chunks: int, seed: int, resamples: int = RESAMPLES) -> npt.NDArray[np.float64]:
    """Draw how often each chunk occurs when as many chunks as there are get drawn with replacement.

    (resamples, chunks); every row adds up to `chunks`. The same for the same seed and number of chunks.
    """
    bits = uniform_bits(cell_key(seed, "resample", str(chunks)), 0, resamples * chunks).astype(np.uint64)
    drawn = ((bits * np.uint64(chunks)) >> np.uint64(32)).astype(np.int64).reshape(resamples, chunks)
    flat = (drawn + chunks * np.arange(resamples)[:, None]).reshape(-1)
    return np.bincount(flat, minlength=resamples * chunks).reshape(resamples, chunks).astype(np.float64)


def percentile_interval(draws: Vector) -> tuple[float, float]:
    """Return what the middle 95 % of the draws span."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def resampled_mean(values: Vector, counts: Vector, seed: int) -> tuple[float, tuple[float, float] | None]:
    """Average (chunks,) values by count, with the 95 % interval of that ratio; no interval below two chunks."""
    mean = float(values @ counts / counts.sum())
    if len(values) < 2:
        return mean, None
    drawn = multiplicities(len(values), seed)
    return mean, percentile_interval((drawn @ (values * counts)) / (drawn @ counts))
