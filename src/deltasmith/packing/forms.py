"""The forms in which packed tensors can be calculated with as they are: rows of signs, pairs of factors, values.

And how calculations open what they are given: packed deltas over one base, which is looked for only if some tensor is
kept as the fine-tuned model's values, whose delta nobody knows without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.bitdelta import BitDelta
from deltasmith.codecs.low_rank import LowRank, stack_shape
from deltasmith.codecs.protocol import Source
from deltasmith.codecs.residual_bits import ResidualBits
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.opening import OpenedModel, find_base_model, open_model
from deltasmith.formats.packed import PackedDelta
from deltasmith.formats.packed_model import PackedModel
from deltasmith.kernels.sign_bits import packed_size
from deltasmith.kernels.sign_counts import WORD, WordBits, words_of
from deltasmith.packing.factors import Factors, concatenate
from deltasmith.table.checkpoint import Checkpoint, Floats

__all__ = [
    "Bits",
    "DeltaReader",
    "PackedLike",
    "base_of",
    "bits_of",
    "factors_of",
    "has_delta",
    "open_delta",
    "refuse_other_bases",
    "scaled_factors",
    "source_of",
]

PackedLike = str | Path | PackedDelta
"""A packed delta: `PATH`, `PATH#LABEL`, or one that is open already."""

Doubles = npt.NDArray[np.float64]


def source_of(packed: PackedLike) -> str:
    """Return what opens this packed delta: its folder or file, and its label where there are several."""
    if not isinstance(packed, PackedDelta):
        return str(packed)
    container = packed.packed
    place = str(container.folder if container.folder is not None else container.file.path)
    return f"{place}#{packed.label}" if len(container.labels) > 1 else place


def open_delta(packed: PackedLike) -> tuple[OpenedModel, PackedDelta]:
    """Open a packed delta; RefusedError if it is none, or one of several and no label was given."""
    opened = open_model(source_of(packed))
    if opened.packed is None:
        raise RefusedError(
            "not a packed delta",
            where=printable(source_of(packed)),
            fix="give a folder that `deltasmith pack` wrote",
        )
    return opened, opened.packed


def refuse_other_bases(deltas: Sequence[PackedDelta]) -> None:
    """Refuse deltas over different bases: their numbers mean different things."""
    first = deltas[0]
    for other in deltas[1:]:
        if other.packed.base.fingerprint != first.packed.base.fingerprint:
            ours, theirs = (
                f"{printable(d.packed.base.name, 80)!r} ({d.packed.base.fingerprint[:12]}…)"
                for d in (first, other)
            )
            raise RefusedError(
                f"packed over another base, {theirs}, than {printable(first.where, 200)}, which is over {ours}",
                where=printable(other.where, 200),
                fix="calculate with deltas of one base",
            )


def base_of(delta: PackedDelta, base: str | Path | None) -> OpenedModel:
    """Open the base that was given, or the one that lies where `unpack` would look; refuse another model."""
    if base is None:
        return find_base_model(delta)
    found = open_model(str(base))
    if found.checkpoint is None:
        raise RefusedError(
            "an adapter cannot be the base of a packed delta",
            where=printable(str(base)),
            fix="give the model that was packed against",
        )
    delta.check_base(found.checkpoint)
    return found


def has_delta(delta: PackedDelta, name: str) -> bool:
    """Tell whether a tensor has a delta at all: floating, and the base has one of its shape."""
    record = delta.tensors[name]
    return record.spec.dtype.floating and record.against_base


class DeltaReader:
    """Reads the float32 deltas of one packed delta, from arrays alone where these hold a delta."""

    def __init__(self, delta: PackedDelta, base: Callable[[], Checkpoint]) -> None:
        """Take the delta, and a call that yields the checked base."""
        self._model = PackedModel(delta, base)

    def read(self, name: str, start: int, out: Floats) -> None:
        """Write elements [start, start + out.size) of a tensor's delta into 1-D `out`."""
        if self._model.holds_delta(name):
            self._model.read_delta(name, start, out)
            return
        ground = np.empty_like(out)
        self._model.base.read(name, start, ground)
        self._model.read(name, start, out)
        np.subtract(out, ground, out=out)


@dataclass(frozen=True)
class Bits:
    """A tensor as Σ_j ± scale_j: rows of packed signs, and the scales of each row, (passes, 1) or (1, rows).

    `rows` say in which array each row of signs lies and at which byte it begins.
    """

    rows: tuple[tuple[Source, int], ...]
    scales: Doubles
    size: int

    @property
    def width(self) -> int:
        """Count the elements that share a scale."""
        rows: int = self.scales.shape[1]
        return self.size // max(1, rows)

    @property
    def length(self) -> int:
        """Count the bytes of one row of signs."""
        return packed_size(self.size)

    def words(self, row: int, start: int, stop: int) -> WordBits:
        """Return the words that hold elements [start, stop) of a row; `start` is a multiple of 64."""
        source, at = self.rows[row]
        return words_of(source.read("signs", at + start // 8, at + 8 * -(-stop // WORD)))

    @staticmethod
    def joined(parts: Sequence[tuple[float, Bits]]) -> Bits:
        """Return Σ weight · part, whose scales serve whole tensors."""
        scales = np.concatenate([weight * bits.scales for weight, bits in parts])
        return Bits(tuple(row for _, bits in parts for row in bits.rows), scales, parts[0][1].size)


def bits_of(delta: PackedDelta, name: str) -> Bits | None:
    """Return a tensor's signs and scales if these are all there is to it; DamagedInputError for impossible arrays."""
    codec, size = delta.codec(name), delta.tensors[name].spec.size
    if not isinstance(codec, BitDelta | ResidualBits):
        return None
    delta.decoder(name)
    source = delta.source(name)
    if isinstance(codec, ResidualBits):
        scales = source.whole("scales").astype(np.float64)[:, None]
        return Bits(tuple((source, j * packed_size(size)) for j in range(len(scales))), scales, size)
    if codec.zero == "zero" and source.specs["zeros"].size:
        return None
    return Bits(((source, 0),), source.whole("scale").astype(np.float64)[None, :], size)


def factors_of(delta: PackedDelta, name: str) -> list[Factors] | None:
    """Return the factors of each matrix of a low-rank tensor, in float64; None for other codecs."""
    if not isinstance(delta.codec(name), LowRank):
        return None
    delta.decoder(name)
    source, spec = delta.source(name), delta.tensors[name].spec
    experts, m, n = stack_shape(name, spec.shape)
    try:
        left, right = (source.whole(part).astype(np.float64) for part in ("left", "right"))
        rank = left.shape[-1]
        left, right = left.reshape(experts, m, rank), right.reshape(experts, rank, n)
    except (ValueError, IndexError, KeyError) as cause:
        raise delta.damaged(name, cause) from cause
    return [Factors(one, other) for one, other in zip(left, right, strict=True)]


def scaled_factors(parts: Sequence[tuple[float, Sequence[Factors]]]) -> list[Factors]:
    """Return the factors of Σ weight · part for each matrix of a stack, exactly: all columns side by side."""
    experts = len(parts[0][1])
    return [concatenate([(weight, own[e]) for weight, own in parts]) for e in range(experts)]
