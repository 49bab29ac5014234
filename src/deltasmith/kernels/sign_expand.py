"""One bit per element → float32: a magnitude with that sign, or a value where the bit is 1. Packing: sign_bits.py.

Each compiled function stands beside the numpy definition it must equal bit for bit (`*_defined`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from deltasmith.kernels.bits import mixed, uniform_bits_reference
from deltasmith.kernels.sign_bits import STRIP, Bytes, check_bits, flags_of, plain, unpack_flags
from deltasmith.table.checkpoint import Floats

__all__ = [
    "TABLE_BITS",
    "add_signs",
    "add_signs_defined",
    "clear_flagged",
    "clear_flagged_defined",
    "expand_masked",
    "expand_masked_defined",
    "expand_sampled",
    "expand_sampled_defined",
    "expand_signs",
    "expand_signs_defined",
]

TABLE_BITS = 12
"""`expand_sampled` chooses among 2^12 magnitudes by the leading bits of an element's random number."""


def expand_signs(bits: Bytes, offset: int, scales: Floats, width: int, first: int, out: Floats) -> None:
    """Write +scale where the bit is 1 and -scale where it is 0, over 1-D `out`.

    `out[0]` takes bit `offset` and is element `first` of its tensor; element e has scale `scales[e // width]`.
    ValueError if there are too few bits or scales.

    >>> out = np.empty(3, np.float32)
    >>> expand_signs(np.array([0b0110], np.uint8), 1, np.array([2, 3], np.float32), 2, 1, out); out
    array([ 2.,  3., -3.], dtype=float32)
    """
    check_bits(bits, offset, out.size)
    _check_rows(scales, width, first, out.size)
    if out.size:
        _expand_signs(plain(bits), offset, plain(scales), width, first, out)


def expand_signs_defined(
    bits: Bytes, offset: int, scales: Floats, width: int, first: int, out: Floats
) -> None:
    """Define `expand_signs`."""
    scale = scales[np.arange(first, first + out.size) // width]
    out[:] = np.where(unpack_flags(bits, offset, out.size), scale, -scale)


@njit(nogil=True, cache=True)
def _expand_signs(bits: Bytes, offset: int, scales: Floats, width: int, first: int, out: Floats) -> None:
    flags = np.empty(STRIP + 8, np.uint8)
    for start in range(0, out.size, STRIP):
        part = out[start : start + STRIP]
        shown = flags_of(bits, offset + start, part.size, flags)
        at = 0
        while at < part.size:
            row = (first + start + at) // width
            stop = min(part.size, (row + 1) * width - first - start)
            _choose(shown[at:stop], scales[row], part[at:stop])
            at = stop


@njit(nogil=True, cache=True)
def _choose(flags: Bytes, scale: np.float32, part: Floats) -> None:
    minus = -scale
    for i in range(part.size):
        part[i] = scale if flags[i] != 0 else minus


def add_signs(bits: Bytes, offset: int, scale: float, out: Floats) -> None:
    """Add +scale where the bit is 1 and -scale where it is 0 to 1-D `out`, whose first element has bit `offset`."""
    check_bits(bits, offset, out.size)
    if out.size:
        _add_signs(plain(bits), offset, np.float32(scale), out)


def add_signs_defined(bits: Bytes, offset: int, scale: float, out: Floats) -> None:
    """Define `add_signs`."""
    plus = np.float32(scale)
    out += np.where(unpack_flags(bits, offset, out.size), plus, -plus)


@njit(nogil=True, cache=True)
def _add_signs(bits: Bytes, offset: int, scale: np.float32, out: Floats) -> None:
    flags = np.empty(STRIP + 8, np.uint8)
    minus = -scale
    for start in range(0, out.size, STRIP):
        part = out[start : start + STRIP]
        shown = flags_of(bits, offset + start, part.size, flags)
        for i in range(part.size):
            part[i] += scale if shown[i] != 0 else minus


def clear_flagged(bits: Bytes, offset: int, out: Floats) -> None:
    """Write 0 where the bit is 1, over 1-D `out`, whose first element has bit `offset`."""
    check_bits(bits, offset, out.size)
    if out.size:
        _clear_flagged(plain(bits), offset, out)


def clear_flagged_defined(bits: Bytes, offset: int, out: Floats) -> None:
    """Define `clear_flagged`."""
    out[unpack_flags(bits, offset, out.size)] = 0


@njit(nogil=True, cache=True)
def _clear_flagged(bits: Bytes, offset: int, out: Floats) -> None:
    flags = np.empty(STRIP + 8, np.uint8)
    for start in range(0, out.size, STRIP):
        part = out[start : start + STRIP]
        shown = flags_of(bits, offset + start, part.size, flags)
        for i in range(part.size):
            part[i] = np.float32(0) if shown[i] != 0 else part[i]


def expand_masked(bits: Bytes, offset: int, values: Floats, scale: float, out: Floats) -> None:
    """Write scale · value where the bit is 1 and 0 elsewhere; `values` and `out` are 1-D of one length."""
    check_bits(bits, offset, out.size)
    if values.size != out.size:
        raise ValueError(f"{values.size} values for {out.size} elements")
    if out.size:
        _expand_masked(plain(bits), offset, plain(values), np.float32(scale), out)


def expand_masked_defined(bits: Bytes, offset: int, values: Floats, scale: float, out: Floats) -> None:
    """Define `expand_masked`."""
    out[:] = np.where(unpack_flags(bits, offset, out.size), values * np.float32(scale), np.float32(0))


@njit(nogil=True, cache=True)
def _expand_masked(bits: Bytes, offset: int, values: Floats, scale: np.float32, out: Floats) -> None:
    flags = np.empty(STRIP + 8, np.uint8)
    for start in range(0, out.size, STRIP):
        part = out[start : start + STRIP]
        value = values[start : start + part.size]
        shown = flags_of(bits, offset + start, part.size, flags)
        for i in range(part.size):
            part[i] = value[i] * scale if shown[i] != 0 else np.float32(0)


def expand_sampled(bits: Bytes, offset: int, table: Floats, key: int, first: int, out: Floats) -> None:
    """Write a magnitude drawn from `table` (4096,), positive where the bit is 1 and negative where it is 0.

    Element e (`first` for `out[0]`) draws by the leading 12 of the random bits of (key, e): kernels/bits.py.
    """
    check_bits(bits, offset, out.size)
    if table.size != 1 << TABLE_BITS:
        raise ValueError(f"{table.size} magnitudes to draw from, not {1 << TABLE_BITS}")
    if out.size:
        _expand_sampled(plain(bits), offset, plain(table), np.uint64(key), np.uint64(first), out)


def expand_sampled_defined(
    bits: Bytes, offset: int, table: Floats, key: int, first: int, out: Floats
) -> None:
    """Define `expand_sampled`."""
    drawn = table[uniform_bits_reference(key, first, out.size) >> np.uint32(32 - TABLE_BITS)]
    out[:] = np.where(unpack_flags(bits, offset, out.size), drawn, -drawn)


@njit(nogil=True, cache=True)
def _expand_sampled(
    bits: Bytes, offset: int, table: Floats, key: np.uint64, first: np.uint64, out: Floats
) -> None:
    flags = np.empty(STRIP + 8, np.uint8)
    for start in range(0, out.size, STRIP):
        part = out[start : start + STRIP]
        shown = flags_of(bits, offset + start, part.size, flags)
        for i in range(part.size):
            place = mixed(key, first + np.uint64(start + i)) >> np.uint64(32 - TABLE_BITS)
            part[i] = table[place] if shown[i] != 0 else -table[place]


def _check_rows(scales: Floats, width: int, first: int, n: int) -> None:
    if n and scales.size * width < first + n:
        raise ValueError(f"{scales.size} scales of {width} elements do not reach element {first + n}")
