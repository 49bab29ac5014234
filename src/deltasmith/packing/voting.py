"""The sign vote of packed deltas: one bit for every element, the sign that most models give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.bitdelta import BitDelta
from deltasmith.codecs.protocol import Array, Cell, Coded, Ending, Stream, Words
from deltasmith.codecs.signs import LARGEST
from deltasmith.engine.coding import CodingTask
from deltasmith.formats.packed import PackedDelta
from deltasmith.kernels.sign_bits import pack_flags, packed_size
from deltasmith.kernels.sign_counts import elect_signs
from deltasmith.operation.protocols import BLOCK
from deltasmith.packing.combining import ArrayTask, Settings, Terms, combine
from deltasmith.packing.forms import Bits, DeltaReader, PackedLike, bits_of
from deltasmith.packing.material import Rooms
from deltasmith.packing.summing import no_base
from deltasmith.packing.writing import PackResult
from deltasmith.table.checkpoint import Floats

__all__ = ["vote"]

_PIECE = 16 * BLOCK


def vote(
    deltas: Sequence[PackedLike], out: str | Path, *, base: str | Path | None = None, **options: Any
) -> PackResult:
    """Write the packed delta whose every element is ±α, the sign that of most models' deltas: a `bitdelta`.

    Element e gets the sign of Σ sign(δ_i), 0 having none; where that is 0, the sign of Σ δ_i (for 1-bit deltas: of
    Σ α_i s_i, the heavier side); where that is 0 too, minus. α is the mean over the models of their mean |δ_i|,
    which for 1-bit deltas is their own α. Where every model has an α for each row, so has the result.

    `bitdelta` and one-pass `residual_bits` without stored zeros are counted as they are, 64 elements at a time; other
    deltas are decoded piece by piece. Tensors that some model keeps as its own values (lossless, dense) take no part
    in the vote: they become base + the mean of the deltas, rounded and kept losslessly as by `summed` with weights
    of 1 / models, which needs the base.

    `options` and errors are those of `summed`. The rule is our own: the election of TIES (arXiv 2306.01708) weighs
    signs by magnitudes, which 1-bit deltas do not have element by element; here each model counts once.
    """
    given = Terms.of([(1.0 / max(1, len(deltas)), delta) for delta in deltas], base)
    settings = Settings.of(out, **options)

    def close(cell: Cell) -> CodingTask | None:
        return _voted(cell, [term.delta for term in given.listed]) if cell.spec.size else None

    recipe = repr(("vote", [t.source for t in given.listed]))
    told = "sign vote of packed deltas: " + ", ".join(term.label for term in given.listed)
    return combine(given, close, settings, told, recipe)


def _voted(cell: Cell, deltas: Sequence[PackedDelta]) -> CodingTask:
    """Return what votes on one tensor: by its bits if all models have only these, by values otherwise."""
    forms = [bits_of(delta, cell.spec.name) for delta in deltas]
    single = [bits for bits in forms if bits is not None and len(bits.rows) == 1 and _one_sided(bits)]
    rows = [bits.scales.shape[1] for bits in single]
    codec = BitDelta(scale="row" if len(single) == len(forms) and min(rows) > 1 else "tensor")
    if len(single) == len(forms):
        ballot = _BitVote(tuple(single), codec.scale == "row")
        room = (len(forms) + 2) * packed_size(min(cell.spec.size, ballot.block))
        return ArrayTask(cell, codec, _Nothing(), by=ballot, room=room)
    readers = tuple(DeltaReader(delta, no_base) for delta in deltas)
    values = _Deltas(cell.spec.name, readers, Rooms())
    room = (len(deltas) + 8) * 4 * min(cell.spec.size, _PIECE)
    return ArrayTask(cell, codec, values, by=_ValueVote(cell.spec.size, len(deltas)), room=room)


def _one_sided(bits: Bits) -> bool:
    """Tell whether the bits are the signs, or their opposites, everywhere: no scale is 0, all have one sign."""
    return bool((bits.scales > 0).all() or (bits.scales < 0).all())


class _Nothing:
    """No values: the bits are read where they lie."""

    def read(self, start: int, stop: int) -> tuple[Array, Words | None]:
        return np.zeros(0, np.float32), None


@dataclass(frozen=True)
class _BitVote:
    """Counts signs as they are stored."""

    ballots: tuple[Bits, ...]
    by_row: bool

    @property
    def block(self) -> int:
        return 1 << 22

    @property
    def streams(self) -> Sequence[Stream]:
        return (Stream("signs", "uint8", (packed_size(self.ballots[0].size),)),)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        size = self.ballots[0].size
        stop = min(size, start + self.block)
        rows = max(bits.scales.shape[1] for bits in self.ballots)
        scales = np.stack([np.abs(np.broadcast_to(bits.scales[0], (rows,))) for bits in self.ballots])
        flipped = np.array([bool((bits.scales < 0).any()) for bits in self.ballots])
        words = np.stack([bits.words(0, start, stop) for bits in self.ballots])
        elected = elect_signs(words, flipped, scales, size // rows, start, stop - start)
        return Coded({"signs": elected.view(np.uint8)})

    def finish(self, tallies: Sequence[Any]) -> Ending:
        own = [np.abs(bits.scales[0]) for bits in self.ballots]
        means = np.mean(own if self.by_row else [[alpha.mean()] for alpha in own], axis=0)
        return _ending(means, self.ballots[0].size)


def _ending(means: npt.NDArray[np.float64], size: int) -> Ending:
    scale = np.minimum(means, LARGEST).astype(np.float32)
    width = size // max(1, scale.size)
    return Ending({"scale": scale}, float(np.square(scale.astype(np.float64)).sum()) * width)


@dataclass(frozen=True)
class _Deltas:
    """The deltas of all models for one tensor, as rows of (n, models)."""

    name: str
    readers: tuple[DeltaReader, ...]
    rooms: Rooms

    def read(self, start: int, stop: int) -> tuple[Array, Words | None]:
        """Return (n, models) deltas; each column lies in one piece."""
        n, k = stop - start, len(self.readers)
        deltas = self.rooms.take("values", n * k).reshape(k, n)
        for reader, row in zip(self.readers, deltas, strict=True):
            reader.read(self.name, start, row)
        return deltas.T, None


@dataclass(frozen=True)
class _ValueVote:
    """Counts the signs of decoded deltas."""

    size: int
    models: int

    @property
    def block(self) -> int:
        return _PIECE

    @property
    def streams(self) -> Sequence[Stream]:
        return (Stream("signs", "uint8", (packed_size(self.size),)),)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        deltas: Floats = values.T
        count = np.zeros(len(values), np.float32)
        total = np.zeros(len(values), np.float64)
        for delta in deltas:
            count += np.sign(delta)
            total += delta
        elected = np.where(count == 0, np.sign(total).astype(np.float32), count)
        magnitudes = [
            [float(np.abs(delta[at : at + BLOCK]).sum(dtype=np.float64)) for delta in deltas]
            for at in range(0, len(values), BLOCK)
        ]
        return Coded({"signs": pack_flags(elected > 0)}, magnitudes)

    def finish(self, tallies: Sequence[Any]) -> Ending:
        blocks = [row for tally in tallies for row in tally]
        sums = np.cumsum(np.array(blocks), axis=0)[-1] if blocks else np.zeros(self.models)
        return _ending(np.array([sums.mean() / max(1, self.size)]), self.size)
