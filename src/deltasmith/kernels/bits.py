"""Counter-based random bits: a pure function of a 64-bit key and an element's index, so nothing has an order.

The bits of element i are the upper half of the i-th output of SplitMix64 seeded with the key (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; the finaliser is variant 13 of
Stafford's search for better MurmurHash3 mixers). A sequential generator in the literature, it is here
evaluated at any index: its state after i steps is key + (i + 1) * GOLDEN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["mixed", "threshold_of", "uniform_bits", "uniform_bits_reference"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the odd integer nearest 2^64 / golden ratio: SplitMix64's increment
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # Stafford's variant 13
MIX_2 = np.uint64(0x94D049BB133111EB)

Bits = npt.NDArray[np.uint32]


def uniform_bits_reference(key: int, start: int, n: int) -> Bits:
    """Return the 32 random bits of elements start .. start + n - 1: the definition of the kernels."""
    z = np.arange(start, start + n, dtype=np.uint64) + np.uint64(1)
    z *= GOLDEN
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= MIX_1
    z ^= z >> np.uint64(27)
    z *= MIX_2
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)).astype(np.uint32)


@njit(nogil=True, cache=True, inline="always")
def mixed(key: np.uint64, index: np.uint64) -> np.uint64:
    """Return the upper 32 bits of SplitMix64's output number `index` (for use inside other kernels)."""
    z = key + (index + np.uint64(1)) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    z = z ^ (z >> np.uint64(31))
    return z >> np.uint64(32)


@njit(nogil=True, cache=True)
def _fill(key: np.uint64, start: np.uint64, out: Bits) -> None:
    for i in range(out.size):
        out[i] = np.uint32(mixed(key, start + np.uint64(i)))


def uniform_bits(key: int, start: int, n: int) -> Bits:
    """Return the 32 random bits of elements start .. start + n - 1 of the stream `key`.

    `key` lies in [0, 2^64); any start and n >= 0. Splitting a range changes no bit.

    >>> [f"{b:08x}" for b in uniform_bits(0, 0, 3).tolist()]
    ['e220a839', '6e789e6a', '06c45d18']
    >>> bool((uniform_bits(7, 0, 9)[4:] == uniform_bits(7, 4, 5)).all())
    True
    """
    out = np.empty(n, np.uint32)
    _fill(np.uint64(key), np.uint64(start), out)
    return out


def threshold_of(density: float) -> int:
    """Return t such that `bits < t` has probability `density`, to the nearest 2^-32; at 1 it is certain."""
    return round(density * 2.0**32)
