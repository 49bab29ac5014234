"""From stored bytes to float32, and from low-rank factors to rows; finding what is not finite. No files here.

Every loop is written so that the value of an element depends on that element alone: neither the length of a
piece nor where it begins changes a bit of the result. Little-endian machines only, as everything numba
compiles for.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats
from deltasmith.table.dtypes import DTYPES

__all__ = [
    "count_nonfinite",
    "decode",
    "decode_difference",
    "expand_low_rank",
    "first_nonfinite",
    "subtract_bfloat16",
]

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.uint32]
Halves = npt.NDArray[np.uint16]

_STRIP = 2048  # elements that stay in the first-level cache between two loops
_EXPONENT = np.uint32(0x7F80_0000)
_HALF_BIAS = np.float32(2.0**112)  # between the exponent biases of float32 (127) and float16 (15)


def decode(dtype_name: str, raw: Bytes, out: Floats) -> None:
    """Widen or round the stored little-endian elements in `raw` to float32, into `out`.

    `raw` is 1-D uint8 of `out.size` elements' bytes, of any alignment; `out` is 1-D and contiguous. float64
    is rounded to nearest even and becomes infinite beyond 3.4e38 (and is then found by `count_nonfinite`);
    all other types are exact, with -0.0, subnormals, infinities and NaNs kept (payloads too, but for float64
    and fp8).

    Raises:
        ValueError: `dtype_name` is no floating type, or the sizes do not agree.

    >>> out = np.empty(2, dtype=np.float32)
    >>> decode("bfloat16", np.array([0x80, 0x3F, 0x00, 0xC0], dtype=np.uint8), out)
    >>> out.tolist()
    [1.0, -2.0]
    """
    dtype = DTYPES[dtype_name]
    if not dtype.floating:
        raise ValueError(f"{dtype_name} is not a floating type and is never turned into float32")
    if raw.size != out.size * dtype.itemsize:
        raise ValueError(f"{raw.size} bytes are not {out.size} elements of {dtype_name}")
    stored = raw.view(dtype.storage)
    if not stored.flags.aligned:
        stored = stored.copy()
    if dtype_name == "bfloat16":
        _widen_bfloat16(stored, out.view(np.uint32))
    elif dtype_name == "float16":
        _widen_float16(stored.view(np.uint16), out.view(np.uint32), out)
    elif dtype.itemsize == 1:
        _look_up(_fp8_values(dtype_name), stored, out)
    elif dtype_name == "float32":
        out.view(np.uint32)[:] = stored.view(np.uint32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, stored, casting="same_kind")


def decode_difference(dtype_name: str, raw: Bytes, base: Floats, out: Floats) -> None:
    """Write the stored elements less `base` to `out`, in float32: `decode`, then a subtraction.

    >>> out = np.empty(1, dtype=np.float32)
    >>> decode_difference("bfloat16", np.array([0x80, 0x3F], np.uint8), np.array([0.25], np.float32), out)
    >>> out.tolist()
    [0.75]
    """
    stored = raw.view(np.uint16) if dtype_name == "bfloat16" and raw.size == 2 * out.size else None
    if stored is not None and stored.flags.aligned:
        _subtract_bfloat16(stored, base, out.view(np.uint32), out)
    else:
        decode(dtype_name, raw, out)
        np.subtract(out, base, out=out)


def subtract_bfloat16(stored: Halves, base: Halves, out: Floats) -> bool:
    """Write bfloat16 words less others, in float32, into `out`; return whether all differences are finite.

    The same as `decode` of both and a subtraction, with two trips through memory less.

    >>> out = np.empty(1, np.float32)
    >>> subtract_bfloat16(np.array([0x3F80], np.uint16), np.array([0x3F00], np.uint16), out), out.tolist()
    (True, [0.5])
    """
    return bool(_subtract_halves(stored, base, out.view(np.uint32), out) < _EXPONENT)


def count_nonfinite(x: Floats) -> int:
    """Count the elements of 1-D float32 `x` that are infinite or NaN, signalling ones included."""
    return int(_count_nonfinite(x.view(np.uint32)))


def first_nonfinite(x: Floats) -> int:
    """Return the index of the first infinite or NaN element of 1-D float32 `x`, or -1 if all are finite."""
    return int(_first_nonfinite(x.view(np.uint32)))


def expand_low_rank(left: Floats, right: Floats, scaling: float, start: int, out: Floats) -> None:
    """Write elements [start, start + out.size) of scaling · left @ right, row-major, into 1-D `out`.

    `left` is (rows, r), `right` is (r, columns), both C-contiguous float32. Products are added in the order
    of r in float32 and scaled once at the end. A BLAS would add in an order that depends on the shape of the
    piece.
    """
    _expand_low_rank(left, right, np.float32(scaling), start, out)


@cache
def _fp8_values(dtype_name: str) -> Floats:
    """List the float32 values of the 256 bytes of one fp8 kind."""
    import ml_dtypes

    kind = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}[dtype_name]
    values: Floats = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    return values


@njit(nogil=True, cache=True)
def _widen_bfloat16(stored: Halves, bits: Bits) -> None:
    """Shift each bfloat16 into the upper half of a float32: integers only, so that NaN payloads survive."""
    for i in range(stored.size):
        bits[i] = np.uint32(stored[i]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _subtract_bfloat16(stored: Halves, base: Floats, bits: Bits, out: Floats) -> None:
    """Widen and subtract strip by strip; `bits` and `out` are one piece of memory.

    Slices, so that loops run from 0: with other bounds the compiler keeps them scalar.
    """
    for start in range(0, stored.size, _STRIP):
        halves, widened = stored[start : start + _STRIP], bits[start : start + _STRIP]
        values, ground = out[start : start + _STRIP], base[start : start + _STRIP]
        for i in range(halves.size):
            widened[i] = np.uint32(halves[i]) << np.uint32(16)
        for i in range(halves.size):
            values[i] -= ground[i]


@njit(nogil=True, cache=True)
def _subtract_halves(stored: Halves, base: Halves, bits: Bits, out: Floats) -> np.uint32:
    """Subtract strip by strip and return the largest exponent field; `bits` and `out` are one piece of memory."""
    worst = np.uint32(0)
    for start in range(0, stored.size, _STRIP):
        mine, ground = stored[start : start + _STRIP], base[start : start + _STRIP]
        written, values = bits[start : start + _STRIP], out[start : start + _STRIP]
        for i in range(mine.size):
            a = np.uint32(np.uint32(mine[i]) << np.uint32(16)).view(np.float32)
            values[i] = a - np.uint32(np.uint32(ground[i]) << np.uint32(16)).view(np.float32)
        for i in range(mine.size):
            worst = max(worst, written[i] & _EXPONENT)
    return worst


@njit(nogil=True, cache=True)
def _widen_float16(stored: Halves, bits: Bits, out: Floats) -> None:
    """Move the magnitude bits into place, mend the exponent by a multiplication, then put the sign back.

    `bits` and `out` are one piece of memory. The multiplication is by a power of two and exact, subnormals
    included; infinities and NaNs (exponent 31) get their exponent filled afterwards. Eight times numpy's
    speed.
    """
    for i in range(stored.size):
        bits[i] = (np.uint32(stored[i]) & np.uint32(0x7FFF)) << np.uint32(13)
    for i in range(stored.size):
        out[i] *= _HALF_BIAS
    for i in range(stored.size):
        half = np.uint32(stored[i])
        signed = bits[i] | ((half & np.uint32(0x8000)) << np.uint32(16))
        special = (half & np.uint32(0x7C00)) == np.uint32(0x7C00)
        bits[i] = (signed | np.uint32(0x7F800000)) if special else signed


@njit(nogil=True, cache=True)
def _look_up(values: Floats, stored: Bytes, out: Floats) -> None:
    """Replace every byte by its value."""
    for i in range(stored.size):
        out[i] = values[stored[i]]


@njit(nogil=True, cache=True)
def _count_nonfinite(bits: Bits) -> int:
    """Count the elements whose exponent bits are all ones."""
    count = 0
    for i in range(bits.size):
        count += (bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return count


@njit(nogil=True, cache=True)
def _first_nonfinite(bits: Bits) -> int:
    """Count first: that loop is vectorised, and nearly always finds that there is nothing to look for."""
    if _count_nonfinite(bits) > 0:
        for i in range(bits.size):
            if (bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000):
                return i
    return -1


@njit(nogil=True, cache=True)
def _expand_low_rank(left: Floats, right: Floats, scaling: np.float32, start: int, out: Floats) -> None:
    """Fill `out` row by row: one scaled row of `right` after the other is added, vectorised along the row."""
    rank, width = right.shape
    done = 0
    while done < out.size:
        row, column = divmod(start + done, width)
        count = min(width - column, out.size - done)
        piece = out[done : done + count]
        for j in range(count):
            piece[j] = np.float32(0.0)
        for k in range(rank):
            factor = left[row, k]
            line = right[k, column : column + count]
            for j in range(count):
                piece[j] += factor * line[j]
        for j in range(count):
            piece[j] *= scaling
        done += count
