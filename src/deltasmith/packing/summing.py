"""Multiples and sums of packed deltas, tensor by tensor in packed form where their codecs are closed under them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from deltasmith.codecs.bitdelta import BitDelta
from deltasmith.codecs.bitdelta_random import BitDeltaRandom
from deltasmith.codecs.emr import Emr
from deltasmith.codecs.low_rank import LowRank, stack_shape
from deltasmith.codecs.magnitude_blocks import MagnitudeBlocks
from deltasmith.codecs.protocol import Array, Cell, Codec, Ending, Words, numpy_type
from deltasmith.codecs.residual_bits import ResidualBits
from deltasmith.codecs.sparse import Sparse
from deltasmith.codecs.zero import Zero
from deltasmith.engine.coding import CodingTask
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.formats.packed import PackedDelta
from deltasmith.kernels import votes
from deltasmith.kernels.linalg import is_matrix
from deltasmith.operation.protocols import BLOCK
from deltasmith.packing import factors
from deltasmith.packing.combining import ArrayTask, Copied, Copy, Ready, Settings, Terms, combine
from deltasmith.packing.factors import Factors
from deltasmith.packing.forms import Bits, DeltaReader, PackedLike, bits_of, factors_of, scaled_factors
from deltasmith.packing.inner_pairs import bits_product
from deltasmith.packing.material import Rooms
from deltasmith.packing.writing import PackResult
from deltasmith.table.checkpoint import Checkpoint

__all__ = ["Part", "no_base", "scaled", "summed"]

Part = tuple[float, PackedDelta]
FactorType = Literal["float32", "bfloat16", "float16"]

_MOST_PASSES = 1024
_SCALES: Mapping[type[Codec], str] = {
    BitDelta: "scale",
    BitDeltaRandom: "scale",
    ResidualBits: "scales",
    MagnitudeBlocks: "magnitudes",
    Emr: "rescaler",
}
"""Codecs whose deltas are proportional to one small float32 array, and the name of this array."""


def scaled(
    a: PackedLike,
    factor: float,
    out: str | Path,
    *,
    base: str | Path | None = None,
    **options: Any,
) -> PackResult:
    """Write the packed delta `factor` · a over the same base. See `summed`, of which it is the case of one term."""
    return summed([(factor, a)], out, base=base, **options)


def summed(
    terms: Sequence[tuple[float, PackedLike]],
    out: str | Path,
    *,
    base: str | Path | None = None,
    rank: int | None = None,
    **options: Any,
) -> PackResult:
    """Write the packed delta Σ weight · delta over the base that all share: a sum, not a mean.

    Tensors that all terms hold as deltas are calculated in packed form where that is possible:

    - `bitdelta` with one scale per tensor and `residual_bits`: all masks one after the other, the scales multiplied
      (`residual_bits`, of as many passes as there are masks);
    - `low_rank`: the factors side by side; beyond `rank`, if it is given, and beyond the smaller side of the matrix,
      by QR and a small SVD to the nearest of that rank;
    - `sparse`: decoded, added and coded again tile by tile, in float32 (in its own type for one term and a weight
      that is a power of two);
    - one term of any of `bitdelta`, `bitdelta_random`, `residual_bits`, `magnitude_blocks`, `emr`: its scales
      multiplied;
    - `zero` adds nothing, nor does a weight of 0.

    All other tensors are base + Σ weight · delta, rounded once to the element type that `deltasmith merge` of the
    same models (`merge: sum`) writes, and kept losslessly; for these the base is needed, and looked for as `unpack`
    does if `base` is None. So are tensors whose element types differ among the terms, or from what that merge writes.
    The container's notes say how many tensors went which way.

    Equal to that merge: to the bit where a tensor is kept losslessly or sparse; in packed form up to the rounding of
    every scale to float32, of the factors to their type (float32 where a weight is no power of two), and of each
    addition, which follow another order; with `rank`, up to the error the container tells.

    `options`: label (default: the name of `out`), threads, memory, overwrite, progress and stop, as in `pack`. The
    first term lends config and tokenizer.

    Raises what `pack` raises; RefusedError for deltas over different bases.
    """
    if rank is not None and rank < 1:
        raise RecipeError(f"a rank of {rank}", where="pack", fix="give 1 or more")
    given = Terms.of(terms, base)
    settings = Settings.of(out, **options)

    def close(cell: Cell) -> CodingTask | None:
        return _closed(cell, [(term.weight, term.delta) for term in given.listed], rank)

    recipe = repr(("sum", [(t.weight, t.source) for t in given.listed], rank))
    return combine(given, close, settings, f"sum of packed deltas: {given.text}", recipe)


def _closed(cell: Cell, terms: Sequence[Part], rank: int | None) -> CodingTask | None:
    """Return what calculates Σ weight · delta of one tensor in packed form; None where nothing does."""
    name = cell.spec.name
    parts = [(w, d) for w, d in terms if w and not isinstance(d.codec(name), Zero)]
    codecs = [delta.codec(name) for _, delta in parts]
    if not parts:
        return ArrayTask.of(cell, Zero(), Ready(cell.spec.size, lambda: Ending({}), 1))
    if all(isinstance(codec, LowRank) for codec in codecs):
        return _low_rank(cell, parts, rank)
    if all(isinstance(codec, Sparse) for codec in codecs):
        return _sparse(cell, parts)
    if len(parts) == 1 and type(codecs[0]) in _SCALES:
        return _multiplied(cell, *parts[0])
    if all(isinstance(codec, BitDelta | ResidualBits) for codec in codecs):
        return _bits(cell, parts)
    return None


def _float32(cell: Cell, exact: Array) -> Array:
    """Round scales; RefusedError where they overflow."""
    with np.errstate(over="ignore"):
        found = exact.astype(np.float32)
    if not np.isfinite(found).all():
        raise RefusedError(
            "a scale does not fit float32", where=printable(cell.spec.name), fix="weigh it less"
        )
    return found


def _bits(cell: Cell, parts: Sequence[Part]) -> CodingTask | None:
    """Put all rows of signs one after the other; None where rows of the tensor have scales of their own."""
    forms = [(weight, bits_of(delta, cell.spec.name)) for weight, delta in parts]
    listed = [(w, bits) for w, bits in forms if bits is not None and bits.scales.shape[1] == 1]
    if len(listed) < len(forms):
        return None
    exact = Bits.joined(listed)
    passes = len(exact.rows)
    if passes > _MOST_PASSES:
        return None
    stored = _float32(cell, exact.scales[:, 0])
    ranges = tuple((source, "signs", at, at + exact.length) for source, at in exact.rows)
    rounded = Bits(exact.rows, stored.astype(np.float64)[:, None], exact.size)

    def end(tallies: Sequence[Any]) -> Ending:
        square = bits_product(rounded, rounded)[0]
        return Ending({"scales": stored}, square)

    copies = {"signs": Copy("uint8", (passes, exact.length), ranges)}
    return ArrayTask.of(cell, ResidualBits(passes=passes), Copied(cell.spec.size, copies, end))


def _multiplied(cell: Cell, weight: float, delta: PackedDelta) -> CodingTask:
    """Copy a tensor with its scales multiplied."""
    name = cell.spec.name
    codec, source = delta.codec(name), delta.source(name)
    delta.decoder(name)
    which = _SCALES[type(codec)]
    stored = _float32(cell, source.whole(which).astype(np.float64) * weight)
    copies = {part: Copy.of(source, part) for part in source.specs if part != which}
    bits = bits_of(delta, name)
    if bits is not None:
        known = Bits(bits.rows, stored.reshape(bits.scales.shape).astype(np.float64), bits.size)
        return ArrayTask.of(
            cell,
            codec,
            Copied(cell.spec.size, copies, lambda _: Ending({which: stored}, bits_product(known, known)[0])),
        )
    reader = DeltaReader(delta, no_base)

    def tally(start: int, stop: int) -> float:
        return (
            weight
            * weight
            * sum(_squares(reader, name, at, min(stop, at + BLOCK)) for at in range(start, stop, BLOCK))
        )

    def end(tallies: Sequence[Any]) -> Ending:
        return Ending({which: stored}, float(sum(tallies)))

    return ArrayTask.of(cell, codec, Copied(cell.spec.size, copies, end, tally))


def _squares(reader: DeltaReader, name: str, start: int, stop: int) -> float:
    values = np.empty(stop - start, np.float32)
    reader.read(name, start, values)
    return float(np.square(values.astype(np.float64)).sum())


def no_base() -> Checkpoint:
    """Stand for the base where every tensor at hand holds a delta."""
    raise AssertionError("a delta needs no base")


@dataclass(frozen=True)
class _SumValues:
    """Σ weight · delta of one tensor, as `merge: sum` adds it: float32, in the order of the terms."""

    name: str
    readers: tuple[DeltaReader, ...]
    weights: tuple[float, ...]
    rooms: Rooms

    def read(self, start: int, stop: int) -> tuple[Array, Words | None]:
        """Return elements [start, stop)."""
        n, k = stop - start, len(self.readers)
        cells = self.rooms.take("values", n * k).reshape(k, n)
        for reader, row in zip(self.readers, cells, strict=True):
            reader.read(self.name, start, row)
        return votes.weighted_sum(cells, self.weights), None


def _sparse(cell: Cell, parts: Sequence[Part]) -> CodingTask:
    """Decode, add and code again, tile by tile."""
    codec = parts[0][1].codec(cell.spec.name)
    if len(parts) > 1 or not _is_power_of_two(parts[0][0]):
        codec = Sparse(values="float32")
    readers = tuple(DeltaReader(delta, no_base) for _, delta in parts)
    values = _SumValues(cell.spec.name, readers, tuple(weight for weight, _ in parts), Rooms())
    tile = 4 * min(cell.spec.size, 16 * BLOCK)
    return ArrayTask(cell, codec, values, room=(len(parts) + 3) * tile + codec.workspace(cell))


def _is_power_of_two(weight: float) -> bool:
    return abs(math.frexp(weight)[0]) == 0.5


def _low_rank(cell: Cell, parts: Sequence[Part], rank: int | None) -> CodingTask | None:
    """Put the factors side by side, and make them fewer where that is wanted, or where they are more than needed."""
    if not cell.spec.size:
        return None
    name = cell.spec.name
    together = sum(_rank_of(delta, name) for _, delta in parts)
    experts, m, n = stack_shape(name, cell.spec.shape)
    most = min(together, m, n, rank if rank is not None else together)
    kind = _factor_type(name, parts, cut=rank is not None and most < together)
    sizes = 8 * experts * (m + n)

    def make() -> Ending:
        listed = [(weight, factors_of(delta, name)) for weight, delta in parts]
        exact = scaled_factors([(weight, own) for weight, own in listed if own is not None])
        return _stored_factors(cell, exact, most if most < together else None, kind)

    room = 6 * sizes * max(1, together)
    codec = LowRank(rank=max(1, most), dtype=kind)
    return ArrayTask.of(cell, codec, Ready(cell.spec.size, make, room))


def _rank_of(delta: PackedDelta, name: str) -> int:
    """Return the columns of a left factor; DamagedInputError where there is none."""
    left = delta.source(name).specs.get("left")
    if left is None or not left.shape or "right" not in delta.source(name).specs:
        raise delta.damaged(name, ValueError("left and right are not all of its arrays"))
    return left.shape[-1]


def _factor_type(name: str, parts: Sequence[Part], *, cut: bool) -> FactorType:
    """Keep 16 bits where nothing is lost by that (a weight that is a power of two), or much more by the cut."""
    kinds = {d.source(name).specs[part].dtype.name for _, d in parts for part in ("left", "right")}
    if cut:
        return "float32" if "float32" in kinds else "bfloat16"
    exact = all(_is_power_of_two(weight) for weight, _ in parts)
    if len(kinds) > 1 or not exact or (kinds == {"float16"} and any(abs(w) != 1 for w, _ in parts)):
        return "float32"
    return cast(FactorType, kinds.pop())


def _stored_factors(cell: Cell, exact: Sequence[Factors], rank: int | None, kind: FactorType) -> Ending:
    """Round the factors of every matrix, cut to `rank` if there is one, and measure what that costs."""
    near = list(exact) if rank is None else [factors.recompress(f, rank)[0] for f in exact]
    width = max((f.rank for f in near), default=0)
    lefts, rights, square, error = [], [], [], []
    for whole, f in zip(exact, near, strict=True):
        left, right = (_rounded(cell, half, kind) for half in (f.left, f.right))
        lefts.append(np.pad(left, ((0, 0), (0, width - f.rank))))
        rights.append(np.pad(right, ((0, width - f.rank), (0, 0))))
        stored = Factors(left.astype(np.float64), right.astype(np.float64))
        missed = factors.concatenate([(1.0, whole), (-1.0, stored)])
        square.append(factors.inner(whole, whole))
        error.append(factors.inner(missed, missed) if not _equal(whole, stored) else 0.0)
    stack = is_matrix(cell.spec.name, cell.spec.shape) and len(cell.spec.shape) == 3
    arrays = [np.stack(halves) if stack else halves[0] for halves in (lefts, rights)]
    return Ending(
        dict(zip(("left", "right"), arrays, strict=True)),
        max(0.0, math.fsum(square)),
        max(0.0, math.fsum(error)),
    )


def _equal(one: Factors, other: Factors) -> bool:
    return np.array_equal(one.left, other.left) and np.array_equal(one.right, other.right)


def _rounded(cell: Cell, exact: Array, kind: FactorType) -> Array:
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(exact, numpy_type(kind))
    if not np.isfinite(found.astype(np.float32)).all():
        raise RefusedError(f"factors do not fit {kind}", where=printable(cell.spec.name), fix="weigh it less")
    return found
