"""What the codecs of signs share: the bits as a stream, which elements are zero, and checks of stored arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.protocol import Array, Source, Stream
from deltasmith.kernels.sign_bits import PIECE, Bytes, packed_size
from deltasmith.kernels.sign_expand import clear_flagged
from deltasmith.table.checkpoint import Floats

__all__ = [
    "BLOCK",
    "LARGEST",
    "SignZero",
    "Zeros",
    "check_array",
    "finite_scales",
    "ordered_sum",
    "read_bits",
    "sign_streams",
    "zero_pieces",
]

BLOCK = 16 * PIECE
"""Elements that are coded at once: whole 64-bit words of bits, so that only a tensor's last block is padded."""

LARGEST = float(np.finfo(np.float32).max)
"""What a scale is cut off at."""

SignZero = Literal["minus", "plus", "zero"]


def sign_streams(size: int, zero: SignZero) -> Sequence[Stream]:
    """List the streams of signs: one bit each, and the masks of the zeros where these count apart."""
    signs = Stream("signs", "uint8", (packed_size(size),))
    return (signs, Stream("zeros", "uint8")) if zero == "zero" else (signs,)


def zero_pieces(values: Floats) -> tuple[bytes, list[bool]]:
    """Return the masks of the zeros, for those pieces of PIECE elements that have any, and which have.

    A mask is one bit per element, padded to a whole byte.
    """
    masks, some = [], []
    for at in range(0, values.size, PIECE):
        zero = values[at : at + PIECE] == 0
        some.append(bool(zero.any()))
        if some[-1]:
            masks.append(np.packbits(zero, bitorder="little").tobytes())
    return b"".join(masks), some


def read_bits(source: Source, name: str, start: int, n: int, row: int = 0) -> Bytes:
    """Return the bytes that hold bits [start, start + n) of an array's row, whose length is a whole number of bytes.

    `row` is the byte at which the row begins. The first wanted bit is bit start % 8 of what is returned.
    """
    return source.read(name, row + start // 8, row - (-(start + n) // 8))


def ordered_sum(terms: npt.NDArray[np.float64]) -> float:
    """Add float64 numbers one after the other, so that the sum is the same wherever they came from."""
    return float(np.cumsum(terms)[-1]) if terms.size else 0.0


@dataclass(frozen=True)
class Zeros:
    """The stored zeros of one tensor: arrays `zeros` (the masks one after the other) and `zero_pieces` (which).

    ValueError if these are not the arrays of a tensor of `size` elements.
    """

    source: Source
    size: int
    starts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Find out where each mask starts; -1 for pieces without zeros."""
        pieces = -(-self.size // PIECE)
        check_array(self.source, "zero_pieces", "uint8", (pieces,))
        some = self.source.whole("zero_pieces") != 0
        lengths = np.full(pieces, PIECE // 8, np.int64)
        if pieces:
            lengths[-1] = -(-(self.size - (pieces - 1) * PIECE) // 8)
        ends = np.cumsum(lengths * some)
        check_array(self.source, "zeros", "uint8", (int(ends[-1]) if pieces else 0,))
        object.__setattr__(self, "starts", np.where(some, ends - lengths, -1))

    def clear(self, start: int, out: Floats) -> None:
        """Set to 0 what is zero among elements [start, start + out.size)."""
        stop = start + out.size
        for piece in range(start // PIECE, -(-stop // PIECE) if out.size else 0):
            low, high = max(start, piece * PIECE), min(stop, (piece + 1) * PIECE)
            if self.starts[piece] < 0:
                continue
            first, last = low - piece * PIECE, high - piece * PIECE
            at = int(self.starts[piece])
            bits = self.source.read("zeros", at + first // 8, at - (-last // 8))
            clear_flagged(bits, first % 8, out[low - start : high - start])


def check_array(source: Source, name: str, kind: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless there is an array of this name, element type and shape."""
    spec = source.specs.get(name)
    if spec is None:
        raise ValueError(f"{name} is missing")
    if spec.dtype.name != kind or spec.shape != shape:
        raise ValueError(f"{name} is {spec.dtype} of shape {spec.shape} instead of {kind} of shape {shape}")


def finite_scales(source: Source, name: str, shape: tuple[int, ...]) -> Floats:
    """Return a float32 array of this shape, flat; ValueError if it is not there, or holds infinities or NaN."""
    check_array(source, name, "float32", shape)
    found: Array = source.whole(name).reshape(-1)
    if not np.isfinite(found).all():
        raise ValueError(f"{name} is not finite")
    return found
