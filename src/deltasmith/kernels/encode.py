"""float32 values → stored bytes, rounded once, with a count of what did not fit.

The other direction is `decode.py`. Integer and fp8 tensors are copied byte for byte and never pass through
here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.table.checkpoint import Floats
from deltasmith.table.dtypes import DTYPES

__all__ = ["ENCODABLE", "count_stored_nonfinite", "encode"]

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[Any]

ENCODABLE = ("float64", "float32", "float16", "bfloat16")
"""The element types that values can be rounded to."""

# The exponent field of each type: a value whose exponent bits are all ones is infinite or NaN.
_EXPONENT: dict[str, Any] = {
    "float64": np.uint64(0x7FF0_0000_0000_0000),
    "float32": np.uint32(0x7F80_0000),
    "complex64": np.uint32(0x7F80_0000),
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
    "float8_e5m2": np.uint8(0x7C),
    "float8_e4m3fn": np.uint8(0x7F),  # this type has no infinity; only 0x7f and 0xff are NaN
}
_HELD: dict[int, Any] = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}


@njit(nogil=True, cache=True)
def _largest_exponent(bits: Bits, mask: Any) -> Any:
    """Return the largest exponent field; a plain maximum keeps the loop in vector registers."""
    worst = mask ^ mask
    for i in range(bits.size):
        worst = max(worst, bits[i] & mask)
    return worst


@njit(nogil=True, cache=True)
def _to_float32(bits: Bits, out: Bits) -> Any:
    """Copy, and return the largest exponent field on the way."""
    worst = np.uint32(0)
    for i in range(bits.size):
        out[i] = bits[i]
        worst = max(worst, bits[i] & np.uint32(0x7F80_0000))
    return worst


@njit(nogil=True, cache=True)
def _to_bfloat16(bits: Bits, out: Bits) -> Any:
    """Round the upper half to nearest, ties to even; return the largest exponent field written."""
    worst = np.uint16(0)
    for i in range(bits.size):
        u = bits[i]
        rounded = np.uint16((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
        # Rounding could carry a NaN with a small payload into the sign bit, so NaNs are cut and made quiet.
        quiet = np.uint16((u >> np.uint32(16)) | np.uint32(0x40))
        value = quiet if (u & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000) else rounded
        out[i] = value
        worst = max(worst, np.uint16(value & np.uint16(0x7F80)))
    return worst


@njit(nogil=True, cache=True)
def _to_float16(x: Floats, bits: Bits, out: Bits) -> Any:
    """Round to nearest, ties to even, subnormals included; return the largest exponent field written."""
    worst = np.uint16(0)
    for i in range(bits.size):
        u = bits[i]
        a = u & np.uint32(0x7FFF_FFFF)
        odd = (a >> np.uint32(13)) & np.uint32(1)
        # 0xC8000000 = (15 - 127) << 23 moves the exponent to half's bias; a carry out of the fraction is
        # right.
        normal = (a + np.uint32(0xC800_0FFF) + odd) >> np.uint32(13)
        # Below 2^-14 the sum with 0.5 has its last bit at 2^-24, half's smallest step: the adder rounds for
        # us.
        shifted = np.float32(abs(x[i]) + np.float32(0.5)).view(np.uint32)
        small = shifted - np.uint32(0x3F00_0000)
        value = small if a < np.uint32(0x3880_0000) else normal
        value = np.uint32(0x7C00) if a >= np.uint32(0x4780_0000) else value
        nan = np.uint32(0x7E00) | ((a >> np.uint32(13)) & np.uint32(0x03FF))
        value = nan if a > np.uint32(0x7F80_0000) else value
        half = np.uint16(value) | np.uint16((u >> np.uint32(16)) & np.uint32(0x8000))
        out[i] = half
        worst = max(worst, np.uint16(half & np.uint16(0x7C00)))
    return worst


def _float64(x: Floats, out: Bytes) -> int:
    """Widen; every float32 is a float64, so only non-finite inputs can count."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        np.copyto(out.view(np.float64), x)
    return count_stored_nonfinite("float32", x.view(np.uint8))


def _narrow(name: str, kernel: Callable[[Floats, Bytes], Any]) -> Callable[[Floats, Bytes], int]:
    """Run a kernel, and count the non-finite results only if its maximum says that there are some."""

    def run(x: Floats, out: Bytes) -> int:
        return count_stored_nonfinite(name, out) if kernel(x, out) >= _EXPONENT[name] else 0

    return run


_INTO: dict[str, Callable[[Floats, Bytes], int]] = {
    "float64": _float64,
    "float32": _narrow("float32", lambda x, out: _to_float32(x.view(np.uint32), out.view(np.uint32))),
    "bfloat16": _narrow("bfloat16", lambda x, out: _to_bfloat16(x.view(np.uint32), out.view(np.uint16))),
    "float16": _narrow("float16", lambda x, out: _to_float16(x, x.view(np.uint32), out.view(np.uint16))),
}


def encode(dtype_name: str, x: Floats, out: Bytes) -> int:
    """Round float32 `x` to `dtype_name`, write its bytes into `out`, count what is not finite.

    `x` is 1-D; the bytes are little-endian. Rounding is to nearest, ties to even, once; subnormals and -0.0
    are kept, NaN stays NaN (made quiet for the two-byte types), and values that do not fit become infinite.
    `out` is 1-D uint8 of exactly the tensor piece's bytes. Returns the number of infinite or NaN elements
    written: 0 means that all is well.

    >>> out = np.empty(4, np.uint8)
    >>> encode("bfloat16", np.array([1.0, -0.0], np.float32), out), out.tobytes().hex()
    (0, '803f0080')
    >>> encode("float16", np.array([65519.0, 65520.0], np.float32), out), out.view(np.float16).tolist()
    (1, [65504.0, inf])
    """
    if dtype_name not in _INTO:
        raise ValueError(f"values cannot be encoded as {dtype_name}; only as {', '.join(ENCODABLE)}")
    if out.nbytes != x.size * DTYPES[dtype_name].itemsize:
        raise ValueError(f"{x.size} elements of {dtype_name} do not fill a buffer of {out.nbytes} bytes")
    return _INTO[dtype_name](x, out) if x.size else 0


def count_stored_nonfinite(dtype_name: str, raw: Bytes) -> int:
    """Count the NaN and infinite elements among stored little-endian bytes (0 for integer types).

    A complex64 element counts once per part that is not finite.
    """
    mask = _EXPONENT.get(dtype_name)
    if mask is None or raw.size == 0:
        return 0
    bits = raw.view(_HELD[mask.itemsize])
    if _largest_exponent(bits, mask) < mask:
        return 0
    return int(np.count_nonzero((bits & mask) == mask))
