"""Where one delta has the sign of another: the bits, and the sums for fitting one to the other, in one pass.

The compiled function stands beside the numpy definition it must equal bit for bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.kernels.sign_bits import (
    LANES,
    PIECE,
    STEP,
    STRIP,
    Bytes,
    fold_lanes,
    lane_sum,
    pack_flags,
    pack_strip,
    packed_size,
    plain,
)
from deltasmith.table.checkpoint import Floats

__all__ = ["pack_agreement", "pack_agreement_defined"]

Sums = npt.NDArray[np.float64]


def pack_agreement(unified: Floats, delta: Floats) -> tuple[Bytes, Sums]:
    """Pack where the product of 1-D `unified` and `delta` is above 0 (by signs: no underflow), and sum each piece.

    Returns the bits, and (pieces, 6) float64 for pieces of PIECE elements: Σ|δ|, Σ|Mτ|, Σ δ·Mτ, Σ (Mτ)², the number
    of elements, and Σδ², where Mτ is `unified` at the ones and 0 elsewhere.

    >>> bits, sums = pack_agreement(np.array([3.0, -1.0, 0.0], np.float32), np.array([2.0, 1.0, 5.0], np.float32))
    >>> bin(bits[0]), sums.tolist()
    ('0b1', [[8.0, 3.0, 6.0, 9.0, 3.0, 30.0]])
    """
    if unified.size != delta.size:
        raise ValueError(f"{unified.size} and {delta.size} elements cannot be compared")
    bits = np.zeros(packed_size(delta.size), np.uint8)
    sums = np.empty((-(-delta.size // PIECE), 6), np.float64)
    if delta.size:
        _pack_agreement(plain(unified), plain(delta), bits, sums)
    return bits, sums


def pack_agreement_defined(unified: Floats, delta: Floats) -> tuple[Bytes, Sums]:
    """Define `pack_agreement`."""
    agree = ((unified > 0) & (delta > 0)) | ((unified < 0) & (delta < 0))
    own, kept = delta.astype(np.float64), np.where(agree, unified, 0).astype(np.float64)
    terms = (np.abs(own), np.abs(kept), own * kept, kept * kept, np.ones(own.size), own * own)
    sums = [[lane_sum(t[at : at + PIECE]) for t in terms] for at in range(0, own.size, PIECE)]
    return pack_flags(agree), np.array(sums, np.float64).reshape(-1, 6)


@njit(nogil=True, cache=True)
def _pack_agreement(unified: Floats, delta: Floats, bits: Bytes, sums: Sums) -> None:
    flags = np.zeros(STRIP, np.uint8)
    kept = np.zeros(STRIP, np.float32)
    own = np.zeros(STRIP, np.float32)
    lanes = np.empty((5, LANES), np.float64)
    for piece in range(sums.shape[0]):
        lanes[:] = 0.0
        stop = min(delta.size, (piece + 1) * PIECE)
        for start in range(piece * PIECE, stop, STRIP):
            u, d = unified[start : min(stop, start + STRIP)], delta[start : min(stop, start + STRIP)]
            if d.size < STRIP:
                flags[:] = 0
                kept[:] = 0
                own[:] = 0
            _mark(u, d, flags, kept)
            own[: d.size] = d
            pack_strip(flags, bits[start >> 3 : (start + d.size + 7) >> 3])
            rows = (d.size + STEP - 1) // STEP
            _add_terms(
                own.reshape(-1, 4, LANES)[:rows],
                kept.reshape(-1, 4, LANES)[:rows],
                lanes[0],
                lanes[1],
                lanes[2],
                lanes[3],
                lanes[4],
            )
        fold_lanes(lanes)
        sums[piece, :4] = lanes[:4, 0]
        sums[piece, 4] = stop - piece * PIECE
        sums[piece, 5] = lanes[4, 0]


@njit(nogil=True, cache=True)
def _mark(unified: Floats, delta: Floats, flags: Bytes, kept: Floats) -> None:
    for i in range(delta.size):
        agree = ((unified[i] > 0) & (delta[i] > 0)) | ((unified[i] < 0) & (delta[i] < 0))
        flags[i] = agree
        kept[i] = unified[i] if agree else np.float32(0)


@njit(nogil=True, cache=True)
def _add_terms(
    own: Floats, kept: Floats, size: Sums, kept_size: Sums, dot: Sums, kept_squares: Sums, squares: Sums
) -> None:
    for r in range(own.shape[0]):
        for j in range(LANES):
            a, b = np.float64(own[r, 0, j]), np.float64(own[r, 1, j])
            c, d = np.float64(own[r, 2, j]), np.float64(own[r, 3, j])
            e, f = np.float64(kept[r, 0, j]), np.float64(kept[r, 1, j])
            g, h = np.float64(kept[r, 2, j]), np.float64(kept[r, 3, j])
            size[j] += (abs(a) + abs(b)) + (abs(c) + abs(d))
            kept_size[j] += (abs(e) + abs(f)) + (abs(g) + abs(h))
            dot[j] += (a * e + b * f) + (c * g + d * h)
            kept_squares[j] += (e * e + f * f) + (g * g + h * h)
            squares[j] += (a * a + b * b) + (c * c + d * d)
