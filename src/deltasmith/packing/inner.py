"""Inner products, norms and cosines of packed deltas, in packed form where both tensors allow it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from threadpoolctl import threadpool_limits

from deltasmith.api import available_threads
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.packed import PackedDelta
from deltasmith.packing.forms import (
    PackedLike,
    base_of,
    has_delta,
    open_delta,
    refuse_other_bases,
    source_of,
)
from deltasmith.packing.inner_pairs import Pair, Three, pair_of
from deltasmith.table.checkpoint import Checkpoint
from deltasmith.table.names import group_of

__all__ = ["Product", "Products", "cosine", "inner", "norm", "products"]

Grouping = Literal["tensor", "layer", "projection", "how", "model"]


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
            key = line.how if group == "how" else group_of(line.name, group)
            groups.setdefault(key, []).append(line)
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
    pairs = [pair_of(one, other, name, ground) for name in names]
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


def _calculated(pairs: Sequence[Pair], threads: int, stop: Stop) -> list[Three]:
    """Do the jobs of all pairs, and add up each pair's in order."""
    jobs = [(number, start, end) for number, pair in enumerate(pairs) for start, end in pair.spans()]
    found: dict[tuple[int, int], Any] = {}

    def work(job: tuple[int, int, int], _: int) -> None:
        number, start, end = job
        found[number, start] = pairs[number].part(start, end)

    with threadpool_limits(limits=1, user_api="blas"):
        run_jobs(jobs, work, range(threads), stop)
    return [pair.total([found[n, start] for start, _ in pair.spans()]) for n, pair in enumerate(pairs)]
