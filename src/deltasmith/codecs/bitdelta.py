"""BitDelta: the sign of every element, and one magnitude for the tensor or for each of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    read_bits,
    sign_streams,
    zero_pieces,
)
from deltasmith.kernels.sign_bits import PIECE, cuts_of, pack_signs, packed_size
from deltasmith.kernels.sign_expand import expand_signs
from deltasmith.operation.protocols import row_width
from deltasmith.table.checkpoint import Floats, Spec

__all__ = ["BitDelta"]


class BitDelta(Codec):
    """Replace every element by ±α, its own sign and the mean magnitude α of the tensor (or of its row).

    α = `magnitude` · Σ|δ| / n, the sum in float64, rounded to float32; with magnitude 1 it is the α of least squared
    error for these signs. Zeros become -α (`zero: minus`), +α (`plus`) or stay 0 (`zero`), and count in n always.
    On Gaussian, Laplace and uniform deltas the relative error is .6028, .7071 and .5000.

    Arrays: `signs`, uint8 of 8 · ceil(n / 64): bit i % 8 of byte i // 8 is 1 for +α, row-major, zeros at the end.
    `scale`, float32, (1,) or (rows,). With `zero: zero` also `zero_pieces`, uint8 of ceil(n / 65536): 1 for each run
    of 65536 elements that has zeros, and `zeros`, uint8: of these runs one bit per element, 1 where it is 0, each
    run padded to a byte; empty if nothing is zero.

    Paper: Liu et al. 2024, BitDelta, arXiv 2402.10193, before scale distillation. Departures: the released code
    (dialect `authors`: `zero: plus`) rounds the delta to the models' element type first, which moves α a little for
    bfloat16 (by 3e-6 of it in the golden case); here the delta is exact. `magnitude` and `zero: zero` are the
    degenerate variant of A Unified View of Delta Parameter Editing, arXiv 2410.13841v1.

    >>> from deltasmith.table.dtypes import DTYPES
    >>> cell = Cell(Spec("w", (2, 2), DTYPES["float32"]))
    >>> delta = np.array([[1.0, -2.0], [0.0, 5.0]], np.float32)
    >>> BitDelta().decode(BitDelta().encode(delta, cell), cell)
    array([[ 2., -2.],
           [-2.,  2.]], dtype=float32)
    >>> rows = BitDelta(zero="zero", scale="row")
    >>> rows.decode(rows.encode(delta, cell), cell)
    array([[ 1.5, -1.5],
           [ 0. ,  2.5]], dtype=float32)
    """

    zero: SignZero = "minus"
    """What an element of exactly 0 becomes: -α (minus, the paper), +α (plus, the released code), or 0 (zero)."""
    magnitude: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The factor on the mean magnitude; 1 has the least squared error."""
    scale: Literal["tensor", "row"] = "tensor"
    """Whether one magnitude serves the tensor, or each row (one output unit) has its own."""

    @property
    def bound(self) -> float:
        """Return 1 up to a magnitude of 2, and magnitude - 1 beyond.

        The squared error is Σδ² + n·m²(c² - 2c) for a mean m and a factor c, and n·m² is at most Σδ².
        """
        return max(1.0, self.magnitude - 1.0)

    def workspace(self, cell: Cell) -> int:
        """Return the bytes of a block's signs and zeros, and of the sums of its segments."""
        width = row_width(cell.spec.name, cell.spec.shape) if self.scale == "row" else BLOCK
        return BLOCK // 4 + BLOCK + 48 * (BLOCK // min(width, PIECE))

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to code a tensor."""
        return _BitEncoder(self, cell.spec, *self._rows(cell.spec))

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode; ValueError if signs, scale or zeros are not those of such a tensor."""
        size, (rows, width) = cell.spec.size, self._rows(cell.spec)
        check_array(source, "signs", "uint8", (packed_size(size),))
        scales = finite_scales(source, "scale", (rows,))
        zeros = Zeros(source, size) if self.zero == "zero" else None
        return _BitDecoder(source, scales, width, zeros)

    def _rows(self, spec: Spec) -> tuple[int, int]:
        """Return how many scales there are, and how many elements share one."""
        if self.scale == "tensor":
            return 1, max(1, spec.size)
        width = row_width(spec.name, spec.shape)
        return spec.size // width, width


@dataclass(frozen=True)
class _Tally:
    """What one block leaves: the row, Σ|δ|, Σδ² and the zeros of its segments, and which pieces have zeros."""

    rows: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    zeros: npt.NDArray[np.float64] | None
    pieces: Sequence[bool]


@dataclass(frozen=True)
class _BitEncoder:
    codec: BitDelta
    spec: Spec
    rows: int
    width: int

    @property
    def block(self) -> int:
        return BLOCK

    @property
    def streams(self) -> Sequence[Stream]:
        return sign_streams(self.spec.size, self.codec.zero)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        cuts = cuts_of(start, values.size, self.width)
        bits, sums = pack_signs(values, cuts, 1 if self.codec.zero == "plus" else -1)
        parts: dict[str, Any] = {"signs": bits}
        rows = (start + cuts[:-1]) // self.width
        if self.codec.zero != "zero":
            return Coded(parts, _Tally(rows, sums, None, ()))
        parts["zeros"], pieces = zero_pieces(values)
        zeros = np.add.reduceat(values == 0, cuts[:-1], dtype=np.float64)
        return Coded(parts, _Tally(rows, sums, zeros, pieces))

    def finish(self, tallies: Sequence[Any]) -> Ending:
        """Take the means; the errors follow from the sums, since δ times its sign is |δ|."""
        total = self._by_row([t.rows for t in tallies], [t.sums[:, 0] for t in tallies])
        squares = self._by_row([t.rows for t in tallies], [t.sums[:, 1] for t in tallies])
        scale = np.minimum(total / self.width * self.codec.magnitude, LARGEST).astype(np.float32)
        arrays: dict[str, Array] = {"scale": scale}
        coded = np.full(self.rows, float(self.width))
        if self.codec.zero == "zero":
            coded -= self._by_row([t.rows for t in tallies], [t.zeros for t in tallies])
            arrays["zero_pieces"] = np.array([some for t in tallies for some in t.pieces], np.uint8)
        exact = scale.astype(np.float64)
        errors = squares + exact * (coded * exact - 2 * total)
        return Ending(arrays, float(squares.sum()), max(0.0, float(errors.sum())))

    def _by_row(self, rows: Sequence[Any], terms: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Add the segments of every row, in index order."""
        if not rows:
            return np.zeros(self.rows)
        sums = np.bincount(np.concatenate(rows), np.concatenate(terms), minlength=self.rows)
        return np.asarray(sums, np.float64)


@dataclass(frozen=True)
class _BitDecoder:
    source: Source
    scales: Floats
    width: int
    zeros: Zeros | None

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        bits = read_bits(self.source, "signs", start, out.size)
        expand_signs(bits, start % 8, self.scales, self.width, start, out)
        if self.zeros is not None:
            self.zeros.clear(start, out)
