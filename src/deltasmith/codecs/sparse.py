"""Sparse: the nonzero elements of a delta and where they are; exact, or rounded to 16 bits.

Layout. `index`: uint32, the bytes of each block of 2^16 elements (the last may be shorter). `stream`: uint8, the
blocks one after the other. A block of no bytes is all zeros. Otherwise a head of 12 bytes: kind (uint8), a zero
byte, exponent s (int16), number of nonzeros m (uint32), bytes of positions p (uint32); then the p bytes of
positions; then m values. Kind 1: p = ceil(n / 8), bit i % 8 of byte i // 8 is set if element i is not zero. Kind 2:
for every nonzero the zeros before it as a byte, preceded by a 255 for every 255 of them. Kind 3: p = 0, every
element has a value. An element is its stored value times 2^-s. All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.block_index import block_ends
from deltasmith.codecs.protocol import (
    Array,
    Cell,
    Codec,
    Coded,
    Decoder,
    Encoder,
    Ending,
    Source,
    Stream,
    Words,
)
from deltasmith.codecs.scratch import scratch
from deltasmith.kernels.decode import decode
from deltasmith.kernels.encode import encode
from deltasmith.kernels.gaps import count, find, gap_bytes, pick, put, read_gaps, spread_mask, write_gaps
from deltasmith.table.checkpoint import Floats
from deltasmith.table.dtypes import DTYPES

__all__ = ["Sparse"]

_BLOCK = 1 << 16
_MASK, _GAPS, _ALL = 1, 2, 3
_HEAD = np.dtype(
    [("kind", "u1"), ("zero", "u1"), ("exponent", "<i2"), ("count", "<u4"), ("positions", "<u4")]
)
_BOUND = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
_TOP = {
    "float32": None,
    "bfloat16": 0,
    "float16": 15,
}  # the largest magnitude of a block lies in [2^(top-1), 2^top)

_NORMAL = 126  # powers of two up to this are normal float32 numbers in both directions
_LARGEST = np.finfo(np.float32).max


class Sparse(Codec):
    """Store the elements of a delta that are not zero, and a bit per element or a byte per nonzero to find them.

    Made for what a pruning edit leaves. Per block of 2^16 elements the smaller of mask and gaps is taken; gaps win
    below a density of 1/8; a block without zeros stores neither. -0.0 counts as zero. 16-bit values are scaled by
    a power of two per block, so that nothing overflows and the relative error is that of rounding: no value is lost
    but what is smaller than 2^-39 (float16) of its block's largest. Infinities and NaN are refused with ValueError.

    >>> from deltasmith.table.checkpoint import Spec
    >>> cell = Cell(Spec("w", (1000,), DTYPES["float32"]))
    >>> delta = np.zeros(1000, np.float32)
    >>> delta[[3, 500]] = 0.125, -3e-5
    >>> arrays = Sparse(values="float32").encode(delta, cell)
    >>> arrays["stream"].size, bool((Sparse(values="float32").decode(arrays, cell) == delta).all())
    (23, True)
    """

    values: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """The element type of the stored values: float32 is exact, bfloat16 rounds to 1/256, float16 to 1/2048."""

    @property
    def bound(self) -> float:
        """Return the largest relative error of one rounding; 0 for float32."""
        return _BOUND[self.values]

    def workspace(self, cell: Cell) -> int:
        """Return the bytes of a block's nonzeros, rounded and not."""
        return 4 * 4 * _BLOCK

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to code a tensor."""
        return _SparseEncoder(self.values)

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode; ValueError if the index does not fit the tensor or the stream."""
        ends = block_ends(source, cell.spec.size, _BLOCK)
        return _SparseDecoder(self.values, cell.spec.size, source, ends)


@dataclass(frozen=True)
class _SparseEncoder:
    kind: str

    @property
    def block(self) -> int:
        return _BLOCK

    @property
    def streams(self) -> Sequence[Stream]:
        return (Stream("stream", "uint8"),)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        delta = np.require(values, np.float32, ["C", "A", "W"])
        found = count(delta)
        if not found:
            return Coded({"stream": b""}, (0, 0.0, 0.0))
        (places,) = scratch((found + 1, np.int32))
        find(delta, places)
        places = places[:found]
        nonzero = np.empty(found, np.float32)
        pick(delta, places, nonzero)
        exponent, stored = self._rounded(nonzero)
        kind, positions = _positions(delta, places)
        head = np.array((kind, 0, exponent, found, positions.size), _HEAD)
        data = head.tobytes() + positions.tobytes() + stored.tobytes()
        exact = nonzero.astype(np.float64)
        missed = exact - _restored(self.kind, exponent, stored)
        return Coded({"stream": data}, (len(data), float(exact @ exact), float(missed @ missed)))

    def _rounded(self, nonzero: Floats) -> tuple[int, npt.NDArray[np.uint8]]:
        """Return the power of two that brings the largest value to the top of the type's range, and the bytes."""
        largest = float(np.max(np.abs(nonzero)))
        if not np.isfinite(largest):
            raise ValueError("there are infinite elements or NaN")
        top = _TOP[self.kind]
        exponent = 0 if top is None else top - int(np.frexp(largest)[1])
        stored = np.empty(nonzero.size * DTYPES[self.kind].itemsize, np.uint8)
        encode(self.kind, nonzero if top is None else _scaled(nonzero, exponent), stored)
        return exponent, stored

    def finish(self, tallies: Sequence[Any]) -> Ending:
        lengths = np.array([t[0] for t in tallies], "<u4")
        return Ending({"index": lengths}, sum(t[1] for t in tallies), sum(t[2] for t in tallies))


def _positions(delta: Floats, places: npt.NDArray[np.int32]) -> tuple[int, npt.NDArray[np.uint8]]:
    if places.size == delta.size:
        return _ALL, np.empty(0, np.uint8)
    length = gap_bytes(places)
    if length >= -(-delta.size // 8):
        return _MASK, np.packbits(delta != 0, bitorder="little")
    gaps = np.empty(length, np.uint8)
    write_gaps(places, gaps)
    return _GAPS, gaps


def _scaled(values: Floats, exponent: int) -> Floats:
    """Multiply by 2^exponent, once rounded; what rounding up has carried beyond the largest float32 becomes it."""
    if abs(exponent) <= _NORMAL:
        with np.errstate(over="ignore"):
            product = values * np.float32(2.0**exponent)
    else:
        with np.errstate(over="ignore"):
            product = np.ldexp(values.astype(np.float64), exponent).astype(np.float32)
    return np.clip(product, -_LARGEST, _LARGEST) if exponent > 0 else product


def _restored(kind: str, exponent: int, stored: npt.NDArray[np.uint8]) -> Floats:
    values = np.empty(stored.size // DTYPES[kind].itemsize, np.float32)
    decode(kind, stored, values)
    return _scaled(values, -exponent) if exponent else values


@dataclass(frozen=True)
class _SparseDecoder:
    kind: str
    size: int
    source: Source
    ends: npt.NDArray[np.int64]

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        stop = start + out.size
        for block in range(start // _BLOCK, -(-stop // _BLOCK) if out.size else 0):
            first, last = block * _BLOCK, min(self.size, (block + 1) * _BLOCK)
            low, high = max(first, start), min(last, stop)
            piece = out[low - start : high - start]
            if (low, high) == (first, last) and piece.flags.c_contiguous:
                self._block(block, piece)
            else:
                (room,) = scratch((last - first, np.float32))
                self._block(block, room)
                piece[:] = room[low - first : high - first]

    def _block(self, block: int, out: Floats) -> None:
        start, stop = int(self.ends[block]), int(self.ends[block + 1])
        if start == stop:
            out[:] = 0
            return
        width = DTYPES[self.kind].itemsize
        if not _HEAD.itemsize <= stop - start <= _HEAD.itemsize + out.size * (width + 1) + 8:
            raise ValueError(f"block {block} has an impossible length of {stop - start} bytes")
        data = np.frombuffer(self.source.read("stream", start, stop).tobytes(), np.uint8)
        kind, zero, exponent, found, length = data[: _HEAD.itemsize].view(_HEAD)[0].item()
        body = data[_HEAD.itemsize :]
        if zero or length + found * width != body.size or abs(exponent) > 256:
            raise ValueError(f"block {block} contradicts itself")
        values, positions = _restored(self.kind, exponent, body[length:]), body[:length]
        if not _spread(kind, positions, values, out):
            raise ValueError(f"the positions in block {block} are not those of its values")


def _spread(kind: int, positions: npt.NDArray[np.uint8], values: Floats, out: Floats) -> bool:
    """Put the values where they belong; False if there is no such kind, or the positions do not fit."""
    if kind == _MASK and positions.size == -(-out.size // 8):
        return spread_mask(positions, values, out)
    if kind == _GAPS:
        places = np.empty(values.size, np.int32)
        if not read_gaps(positions, out.size, places):
            return False
        out[:] = 0
        put(values, places, out)
        return True
    if kind != _ALL or positions.size or values.size != out.size:
        return False
    out[:] = values
    return True
