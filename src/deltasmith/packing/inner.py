"""Inner products, norms and cosines of packed deltas, in packed form where both tensors allow it.

Signs are compared 64 at a time (n − 2 · the bits that differ, times both scales), low-rank tensors through r × r
products of their factors; all others are decoded piece by piece. All sums are float64. Those over decoded values are
taken over blocks of 2^16 elements and added in their order, so that no number depends on threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from deltasmith.api import available_threads
from deltasmith.codecs.low_rank import LowRank
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.packed import PackedDelta
from deltasmith.kernels.sign_counts import WORD, differing_in_rows
from deltasmith.operation.protocols import BLOCK
from deltasmith.packing import factors
from deltasmith.packing.forms import (
    Bits,
    DeltaReader,
    PackedLike,
    base_of,
    bits_of,
    factors_of,
    has_delta,
    open_delta,
    refuse_other_bases,
    source_of,
)
from deltasmith.table.checkpoint import Checkpoint, Spec
from deltasmith.table.names import layer_of, projection_of

__all__ = ["Product", "Products", "bits_product", "cosine", "inner", "norm", "products"]

How = Literal["bits", "factors", "values"]
Grouping = Literal["tensor", "layer", "projection", "how", "model"]
Three = tuple[float, float, float]
"""Σab, Σa², Σb²."""

_SPAN = 16 * BLOCK
_SIGNS = 1 << 24
"""Signs of one row that a job compares at once: 2 MiB of each."""
_AT_ONCE = 1 << 27
"""Signs of all rows that a job holds."""


@dataclass(frozen=True)
class Product:
    """One tensor, or a group: the inner product Σab of two deltas, and the squared norms Σa² and Σb² of both.

    `how` says in which form it was calculated: `bits`, `factors`, `values`, or `mixed` for a group of several.
    """

    name: str
    how: str
    elements: int
    inner: float
    squares: tuple[float, float]

    @property
    def cosine(self) -> float:
        """Return Σab / √(Σa² Σb²), in [-1, 1]; 0 if one of them is zero."""
        both = math.sqrt(self.squares[0]) * math.sqrt(self.squares[1])
        return max(-1.0, min(1.0, self.inner / both)) if both else 0.0

    @property
    def norms(self) -> tuple[float, float]:
        """Return both norms."""
        return math.sqrt(self.squares[0]), math.sqrt(self.squares[1])

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            "name": self.name,
            "how": self.how,
            "elements": self.elements,
            "inner": self.inner,
            "norms": list(self.norms),
            "cosine": self.cosine,
        }


@dataclass(frozen=True)
class Products:
    """All tensors of two deltas. `skipped` are those without one: integers, and what the base does not have."""

    lines: tuple[Product, ...]
    skipped: tuple[str, ...] = ()

    def by(self, group: Grouping) -> list[Product]:
        """Add the lines up by tensor, layer, projection, form of calculation, or all in one line."""
        if group == "tensor":
            return list(self.lines)
        groups: dict[str, list[Product]] = {}
        for line in self.lines:
            groups.setdefault(_group(line, group), []).append(line)
        return [_combined(name, members) for name, members in groups.items()]

    @property
    def model(self) -> Product:
        """Return the whole model's line."""
        return _combined("all", self.lines)

    def as_json(self) -> dict[str, Any]:
        """Return all groupings as plain data."""
        groups: tuple[Grouping, ...] = ("how", "layer", "projection", "tensor")
        lines: dict[str, Any] = {group: [line.as_json() for line in self.by(group)] for group in groups}
        return {"model": self.model.as_json(), **lines, "skipped": list(self.skipped)}


def _group(line: Product, group: Grouping) -> str:
    if group == "model":
        return "all"
    if group == "how":
        return line.how
    if group == "projection":
        return projection_of(line.name)
    layer = layer_of(line.name)
    return f"{layer[0]}.{layer[1]}" if layer else line.name


def _combined(name: str, lines: Sequence[Product]) -> Product:
    hows = {line.how for line in lines}
    squares = (math.fsum(line.squares[0] for line in lines), math.fsum(line.squares[1] for line in lines))
    return Product(
        name,
        hows.pop() if len(hows) == 1 else "mixed",
        sum(line.elements for line in lines),
        math.fsum(line.inner for line in lines),
        squares,
    )


def inner(a: PackedLike, b: PackedLike, base: str | Path | None = None, **options: Any) -> float:
    """Multiply two packed deltas element by element and add up: Σab over all tensors. See `products`."""
    return products(a, b, base, **options).model.inner


def cosine(a: PackedLike, b: PackedLike, base: str | Path | None = None, **options: Any) -> float:
    """Return the cosine of the angle between two packed deltas, in [-1, 1]; 0 if one is zero. See `products`."""
    return products(a, b, base, **options).model.cosine


def norm(a: PackedLike, base: str | Path | None = None, **options: Any) -> float:
    """Return the root of the sum of squares of a packed delta. See `products`."""
    return products(a, a, base, **options).model.norms[0]


def products(
    a: PackedLike,
    b: PackedLike,
    base: str | Path | None = None,
    *,
    threads: int | None = None,
    stop: Stop | None = None,
) -> Products:
    """Calculate Σab, Σa² and Σb² of two packed deltas over one base, tensor by tensor, without unpacking either.

    `a` and `b` are containers (`PATH`, `PATH#LABEL`) or opened `PackedDelta`s. In packed form: `bitdelta` (any
    scale; without stored zeros) and `residual_bits` against each other, `low_rank` against `low_rank`. Other pairs
    are decoded, 2^20 elements at a time. The packed forms multiply scales and factors exactly, where decoding rounds
    each sum to float32: both agree to a few times 2^-24 of Σ|ab|.

    Tensors that are kept as the fine-tuned model's own values need the base; it is looked for, as `unpack` does, only
    if there are such tensors. A `base` that is given is checked in any case.

    Memory: some 32 MiB for each thread, and what the codecs' decoders hold; for low rank the float64 factors.

    Raises:
        RefusedError: deltas over different bases; a tensor that one of them lacks or has in another shape; no base
            where one is needed. DamagedInputError: damaged, or another base than they were packed against.
    """
    one = open_delta(a)[1]
    other = one if source_of(a) == source_of(b) else open_delta(b)[1]
    refuse_other_bases([one, other])
    _refuse_other_tensors(one, other)
    names = [name for name in sorted(one.tensors) if has_delta(one, name) and has_delta(other, name)]
    ground = _ground([one, other], names, base)
    pairs = [_pair(one, other, name, ground) for name in names]
    totals = _calculated(pairs, threads or available_threads(), stop or Stop())
    lines = tuple(
        Product(name, pair.how, one.tensors[name].spec.size, three[0], (three[1], three[2]))
        for name, pair, three in zip(names, pairs, totals, strict=True)
    )
    return Products(lines, tuple(sorted(one.tensors.keys() - set(names))))


def _refuse_other_tensors(a: PackedDelta, b: PackedDelta) -> None:
    """Refuse unless both have the same tensors, in the same shapes."""
    for one, other in ((a, b), (b, a)):
        for name in one.tensors:
            spec = one.tensors[name].spec
            theirs = other.tensors[name].spec if name in other.tensors else None
            if theirs is None or theirs.shape != spec.shape:
                lacks = "lacks" if theirs is None else f"has as {list(theirs.shape)}"
                raise RefusedError(
                    f"{printable(name, 120)} {list(spec.shape)} is in {printable(one.where, 200)}, and this delta "
                    f"{lacks} it",
                    where=printable(other.where, 200),
                    fix="compare deltas of one kind of model",
                )


def _ground(
    deltas: Sequence[PackedDelta], names: Sequence[str], base: str | Path | None
) -> Callable[[], Checkpoint]:
    """Find the base if it is needed or given; checked against each delta, whose hash of it is remembered."""
    needed = any(delta.codec(name).domain != "delta" for delta in deltas for name in names)
    if base is None and not needed:
        return _absent
    found = base_of(deltas[0], base).checkpoint
    assert found is not None
    for delta in deltas[1:]:
        delta.check_base(found)
    checked = found
    return lambda: checked


def _absent() -> Checkpoint:
    raise AssertionError("all tensors hold deltas")


class _Pair(Protocol):
    """Two tensors to be multiplied: what its jobs are, what each yields, and what these add up to."""

    @property
    def how(self) -> How:
        """Name the form."""

    def spans(self) -> Iterator[tuple[int, int]]:
        """List the jobs."""

    def part(self, start: int, stop: int) -> Any:
        """Do one."""

    def total(self, parts: Sequence[Any]) -> Three:
        """Combine what all have yielded, in their order."""


def _pair(a: PackedDelta, b: PackedDelta, name: str, ground: Callable[[], Checkpoint]) -> _Pair:
    one, other = bits_of(a, name), bits_of(b, name)
    if one is not None and other is not None:
        return _SignPair(one, one if a is b else other)
    if isinstance(a.codec(name), LowRank) and isinstance(b.codec(name), LowRank):
        return _FactorPair(a, b, name)
    return _ValuePair(DeltaReader(a, ground), DeltaReader(b, ground), a.tensors[name].spec)


def _calculated(pairs: Sequence[_Pair], threads: int, stop: Stop) -> list[Three]:
    """Do the jobs of all pairs, and add up each pair's in order."""
    jobs = [(number, start, end) for number, pair in enumerate(pairs) for start, end in pair.spans()]
    found: dict[tuple[int, int], Any] = {}

    def work(job: tuple[int, int, int], _: int) -> None:
        number, start, end = job
        found[number, start] = pairs[number].part(start, end)

    with threadpool_limits(limits=1, user_api="blas"):
        run_jobs(jobs, work, range(threads), stop)
    return [pair.total([found[n, start] for start, _ in pair.spans()]) for n, pair in enumerate(pairs)]


@dataclass(frozen=True)
class _SignPair:
    """Rows of signs against rows of signs; every pair of rows is compared once."""

    a: Bits
    b: Bits
    how: How = "bits"

    @property
    def rows(self) -> Sequence[tuple[Bits, int]]:
        first = [(self.a, j) for j in range(len(self.a.rows))]
        return first if self.a is self.b else first + [(self.b, j) for j in range(len(self.b.rows))]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        n = len(self.rows)
        return [(i, j) for i in range(n) for j in range(i + 1, n)]

    @property
    def width(self) -> int:
        """Elements after which some scale may change."""
        return min(self.a.width, self.b.width)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Cut where a scale changes; where none does, at whole words."""
        size, width = self.a.size, self.width
        signs = max(1, min(_SIGNS, _AT_ONCE // len(self.rows)) // WORD) * WORD
        step = signs if width == size else max(1, signs // width) * width
        for start in range(0, size, step):
            yield start, min(size, start + step)

    def part(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Count differing signs, (pairs, rows of the tensor)."""
        whole = self.width == self.a.size
        width, count = (stop - start, 1) if whole else (self.width, (stop - start) // self.width)
        from_word = start - start % WORD
        if not self.pairs:
            return np.zeros((0, count), np.int64)
        words = [bits.words(row, from_word, stop) for bits, row in self.rows]
        return np.stack(
            [differing_in_rows(words[i], words[j], start - from_word, width, count) for i, j in self.pairs]
        )

    def total(self, parts: Sequence[Any]) -> Three:
        """Turn counts into products of signs, and weigh them."""
        rows, width = self.rows, self.width
        if not self.a.size:
            return 0.0, 0.0, 0.0
        counts = np.concatenate(parts, axis=1)
        if width == self.a.size:
            counts = counts.sum(axis=1, keepdims=True)
        n = max(1, counts.shape[1])
        scales = [
            np.broadcast_to(bits.scales[j if bits.scales.shape[0] > 1 else 0], (n,)) for bits, j in rows
        ]
        gram = np.empty((len(rows), len(rows)))
        for i, own in enumerate(scales):
            gram[i, i] = width * float((own * own).sum())
        for (i, j), differing in zip(self.pairs, counts, strict=True):
            gram[i, j] = gram[j, i] = float((scales[i] * scales[j] * (width - 2.0 * differing)).sum())
        if self.a is self.b:
            own_square = max(0.0, float(gram.sum()))
            return own_square, own_square, own_square
        k = len(self.a.rows)
        ab, aa, bb = gram[:k, k:].sum(), gram[:k, :k].sum(), gram[k:, k:].sum()
        return float(ab), max(0.0, float(aa)), max(0.0, float(bb))


def bits_product(a: Bits, b: Bits) -> Three:
    """Return Σab, Σa² and Σb² of two tensors of packed signs."""
    pair = _SignPair(a, b)
    return pair.total([pair.part(*span) for span in pair.spans()])


@dataclass(frozen=True)
class _FactorPair:
    """Low rank against low rank, matrix by matrix of a stack."""

    a: PackedDelta
    b: PackedDelta
    name: str
    how: How = "factors"

    def spans(self) -> Iterator[tuple[int, int]]:
        """Everything at once: factors are small."""
        yield 0, self.a.tensors[self.name].spec.size

    def part(self, start: int, stop: int) -> Three:
        """Multiply the factors of both."""
        one = factors_of(self.a, self.name)
        other = one if self.a is self.b else factors_of(self.b, self.name)
        assert one is not None
        assert other is not None
        three = [
            (factors.inner(x, y), factors.inner(x, x), factors.inner(y, y))
            for x, y in zip(one, other, strict=True)
        ]
        ab, aa, bb = (math.fsum(column) for column in zip(*three, strict=True)) if three else (0.0, 0.0, 0.0)
        return ab, max(0.0, aa), max(0.0, bb)

    def total(self, parts: Sequence[Any]) -> Three:
        """Return the only part."""
        three: Three = parts[0]
        return three


@dataclass(frozen=True)
class _ValuePair:
    """Both decoded, block by block."""

    a: DeltaReader
    b: DeltaReader
    spec: Spec
    how: How = "values"

    def spans(self) -> Iterator[tuple[int, int]]:
        """Cut into pieces of whole blocks."""
        for start in range(0, self.spec.size, _SPAN):
            yield start, min(self.spec.size, start + _SPAN)

    def part(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return (blocks, 3) sums."""
        one, other = np.empty(stop - start, np.float32), np.empty(stop - start, np.float32)
        self.a.read(self.spec.name, start, one)
        self.b.read(self.spec.name, start, other)
        return np.array(
            [_sums(one[at : at + BLOCK], other[at : at + BLOCK]) for at in range(0, one.size, BLOCK)]
        )

    def total(self, parts: Sequence[Any]) -> Three:
        """Add the blocks up in index order."""
        if not parts:
            return 0.0, 0.0, 0.0
        ab, aa, bb = np.cumsum(np.concatenate(parts), axis=0)[-1].tolist()
        return ab, aa, bb


def _sums(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Three:
    x, y = one.astype(np.float64), other.astype(np.float64)
    # Pairwise sums of numpy: unlike a BLAS product they are the same for any number of threads.
    return float((x * y).sum()), float((x * x).sum()), float((y * y).sum())
