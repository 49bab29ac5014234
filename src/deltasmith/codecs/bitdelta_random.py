"""BitDelta with sampled magnitudes: the sign of every element, and a magnitude drawn when it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

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
from deltasmith.codecs.signs import (
    BLOCK,
    LARGEST,
    SignZero,
    Zeros,
    check_array,
    finite_scales,
    ordered_sum,
    read_bits,
    sign_streams,
    zero_pieces,
)
from deltasmith.kernels.bits import uniform_bits
from deltasmith.kernels.sign_bits import PIECE, cuts_of, pack_signs, packed_size
from deltasmith.kernels.sign_expand import TABLE_BITS, expand_sampled
from deltasmith.table.checkpoint import Floats

__all__ = ["BitDeltaRandom"]

Distribution = Literal["normal", "uniform"]


class BitDeltaRandom(Codec):
    """Keep the sign of every element and draw its magnitude anew, with the mean magnitude α of the tensor as mean.

    An element's magnitude is α · t, and t one of 4096 equally likely numbers: the quantiles of a normal or uniform
    distribution of mean 1 and standard deviation `spread`, those below 0 set to 0, and then all divided by their
    mean, so that it is exactly 1 (with a spread of 0.5, 2.3 % of the normal ones are 0 and the divisor is 1.004).
    Which one is the upper 12 of the element's random bits under the stored key: decoding gives the same every time.
    It always errs more than `bitdelta`, by the variance; it shows how little the magnitudes matter.

    Arrays: as `bitdelta` with one scale, and `key`, uint64 (1,).

    Paper: A Unified View of Delta Parameter Editing, arXiv 2410.13841v1, the variant of random magnitudes. The
    paper states neither the standard deviation nor the width, nor what happens to negative draws; `spread` and the
    clipping are choices made here. Its formula has sign(0) = 0: `zero: zero`.
    """

    distribution: Distribution = "normal"
    """What the magnitudes are drawn from."""
    spread: Annotated[float, Field(ge=0, le=4)] = 0.5
    """The standard deviation of the magnitudes before clipping, as a multiple of their mean (a choice made here)."""
    zero: SignZero = "minus"
    """The sign of an element of exactly 0: minus, plus, or zero, which keeps it 0."""

    @property
    def bound(self) -> float:
        """Return √(1 + t²) for the largest t: (|δ| - αt)² is at most δ² + α²t², and n·α² at most Σδ²."""
        return float(np.sqrt(1 + _magnitudes(self.distribution, self.spread)[-1] ** 2))

    def workspace(self, cell: Cell) -> int:
        """Return the bytes of a block's signs and zeros, and of a piece's draws."""
        return BLOCK // 4 + BLOCK + 32 * PIECE

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to code a tensor."""
        return _RandomEncoder(self, cell.spec.size, cell.key)

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode; ValueError if signs, scale, key or zeros are not those of such a tensor."""
        size = cell.spec.size
        check_array(source, "signs", "uint8", (packed_size(size),))
        check_array(source, "key", "uint64", (1,))
        scale = float(finite_scales(source, "scale", (1,))[0])
        table = np.clip(scale * _magnitudes(self.distribution, self.spread), -LARGEST, LARGEST)
        zeros = Zeros(source, size) if self.zero == "zero" else None
        return _RandomDecoder(source, table.astype(np.float32), int(source.whole("key")[0]), zeros)


@cache
def _magnitudes(distribution: Distribution, spread: float) -> npt.NDArray[np.float64]:
    """Return the 4096 equally likely magnitudes, ascending, of mean 1."""
    places = (np.arange(1 << TABLE_BITS) + 0.5) / (1 << TABLE_BITS)
    if distribution == "normal":
        normal = NormalDist()
        draws = np.array([normal.inv_cdf(place) for place in places])
    else:
        draws = 2 * places - 1
    draws /= np.sqrt(np.mean(draws**2))
    clipped = np.maximum(1 + spread * draws, 0)
    return np.asarray(clipped / clipped.mean())


@dataclass(frozen=True)
class _RandomEncoder:
    codec: BitDeltaRandom
    size: int
    key: int

    @property
    def block(self) -> int:
        return BLOCK

    @property
    def streams(self) -> Sequence[Stream]:
        return sign_streams(self.size, self.codec.zero)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        bits, sums = pack_signs(
            values, cuts_of(start, values.size, PIECE), 1 if self.codec.zero == "plus" else -1
        )
        parts: dict[str, Any] = {"signs": bits}
        pieces: list[bool] = []
        if self.codec.zero == "zero":
            parts["zeros"], pieces = zero_pieces(values)
        drawn = [self._drawn(start + at, values[at : at + PIECE]) for at in range(0, values.size, PIECE)]
        return Coded(parts, (np.column_stack([sums, drawn]), pieces))

    def _drawn(self, start: int, values: Floats) -> tuple[float, float]:
        """Return Σ|δ|t and Σt² of a piece, for its draws t: with them the error is known before α is."""
        table = _magnitudes(self.codec.distribution, self.codec.spread)
        t = table[uniform_bits(self.key, start, values.size) >> np.uint32(32 - TABLE_BITS)]
        if self.codec.zero == "zero":
            t[values == 0] = 0
        return float(np.sum(np.abs(values) * t)), float(np.sum(t * t))

    def finish(self, tallies: Sequence[Any]) -> Ending:
        """Take the mean; Σ(δ - δ̂)² = Σδ² - 2αΣ|δ|t + α²Σt²."""
        sums = np.concatenate([t[0] for t in tallies]) if tallies else np.zeros((0, 4))
        total, squares, cross, own = (ordered_sum(column) for column in sums.T)
        scale = np.float32(total / max(1, self.size))
        arrays: dict[str, Array] = {"scale": np.array([scale]), "key": np.array([self.key], np.uint64)}
        if self.codec.zero == "zero":
            arrays["zero_pieces"] = np.array([some for t in tallies for some in t[1]], np.uint8)
        alpha = float(scale)
        return Ending(arrays, squares, max(0.0, squares + alpha * (alpha * own - 2 * cross)))


@dataclass(frozen=True)
class _RandomDecoder:
    source: Source
    table: Floats
    key: int
    zeros: Zeros | None

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        bits = read_bits(self.source, "signs", start, out.size)
        expand_sampled(bits, start % 8, self.table, self.key, start, out)
        if self.zeros is not None:
            self.zeros.clear(start, out)
