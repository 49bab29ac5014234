"""BitDelta applied again to what it left over: a few masks and scales, added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from deltasmith.codecs.protocol import Array, Arrays, Cell, Decoder, Held, Source, WholeCodec, Words
from deltasmith.codecs.signs import LARGEST, check_array, finite_scales, ordered_sum, read_bits
from deltasmith.kernels.sign_bits import cuts_of, pack_signs, packed_size
from deltasmith.kernels.sign_expand import add_signs, expand_signs
from deltasmith.table.checkpoint import Floats

__all__ = ["ResidualBits", "concatenated"]


class ResidualBits(WholeCodec):
    """Replace a delta by ±α₁ ± α₂ … ± α_k: BitDelta of the delta, of what is then missing, and so on.

    Pass j takes the signs of the residual (float32) and the mean of its magnitudes as α_j. No pass makes the error
    larger. One pass is `bitdelta`, bit for bit. On Gaussian deltas 1, 2, 3 and 4 passes leave errors of .603, .363,
    .243 and .183 (measured), for as many bits per element. Sums and multiples of such tensors are again of this
    kind (`concatenated`), of as many passes as they have together.

    Arrays: `signs`, uint8 (passes, 8 · ceil(n / 64)), each row as in `bitdelta`; `scales`, float32 (passes,).

    Paper: Liu et al. 2024, BitDelta, arXiv 2402.10193 (its authors' web page describes the iteration). Departures:
    none known.
    """

    passes: Annotated[int, Field(ge=1, le=1024)] = 2
    """How many masks, each with its own scale: bits per element."""
    zero: Literal["minus", "plus"] = "minus"
    """The sign of a residual of exactly 0: minus (the paper) or plus (the released code)."""

    def workspace(self, cell: Cell) -> int:
        """Return the bytes of the residual and of the masks."""
        size = cell.spec.size
        return 4 * size + (self.passes + 1) * packed_size(size)

    def encode(self, values: Array, cell: Cell, predicted: Words | None = None) -> dict[str, Array]:
        """Code a whole tensor."""
        residual = np.array(values, np.float32).reshape(-1)
        cuts = cuts_of(0, residual.size, max(1, residual.size))
        signs = np.empty((self.passes, packed_size(residual.size)), np.uint8)
        scales = np.empty(self.passes, np.float32)
        for j in range(self.passes):
            signs[j], sums = pack_signs(residual, cuts, 1 if self.zero == "plus" else -1)
            scales[j] = min(ordered_sum(sums[:, 0]) / max(1, residual.size), LARGEST)
            add_signs(signs[j], 0, -float(scales[j]), residual)
        return {"signs": signs, "scales": scales}

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode; ValueError if signs or scales are not those of such a tensor."""
        length = packed_size(cell.spec.size)
        check_array(source, "signs", "uint8", (self.passes, length))
        return _ResidualDecoder(source, finite_scales(source, "scales", (self.passes,)), length)

    def decode_range(self, arrays: Arrays, cell: Cell, start: int, out: Floats) -> None:
        """Decode elements [start, start + out.size)."""
        self.decoder(cell, Held(arrays)).read(start, out)


def concatenated(parts: Sequence[Arrays], weights: Sequence[float] | None = None) -> dict[str, Array]:
    """Return the arrays of Σ weight · part, without decoding anything: every part's masks, its scales multiplied.

    Each part holds the arrays of one tensor, all of one shape, as `residual_bits` stores them or `bitdelta` with one
    scale per tensor and no element that is stored as zero. The result decodes with as many passes as the parts have
    together. ValueError for other arrays.
    """
    factors = [1.0] * len(parts) if weights is None else list(weights)
    pairs = [_masks(part) for part in parts]
    signs = np.concatenate([masks for masks, _ in pairs])
    scales = [own.astype(np.float64) * w for (_, own), w in zip(pairs, factors, strict=True)]
    return {"signs": signs, "scales": np.concatenate(scales).astype(np.float32)}


def _masks(part: Arrays) -> tuple[Array, Array]:
    """Return (passes, bytes) signs and (passes,) scales."""
    scales = part["scales"] if "scales" in part else part["scale"]
    signs = np.atleast_2d(part["signs"])
    if len(scales) != len(signs):
        raise ValueError(f"{len(scales)} scales for {len(signs)} masks: rows have scales of their own")
    if "zeros" in part and part["zeros"].size:
        raise ValueError("some elements are stored as zero, which no sum of signs is")
    return signs, scales


@dataclass(frozen=True)
class _ResidualDecoder:
    source: Source
    scales: Floats
    length: int

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        for j in range(self.scales.size):
            bits = read_bits(self.source, "signs", start, out.size, row=j * self.length)
            if j == 0:
                expand_signs(bits, start % 8, self.scales[:1], max(1, start + out.size), start, out)
            else:
                add_signs(bits, start % 8, float(self.scales[j]), out)
