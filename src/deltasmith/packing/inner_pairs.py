"""Two tensors of packed deltas, multiplied: signs by signs, factors by factors, all others by their values.

Signs are compared 64 at a time (n − 2 · the bits that differ, times both scales), low-rank tensors through r × r
products of their factors; all others are decoded piece by piece. All sums are float64. Those over decoded values are
taken over blocks of 2^16 elements and added in their order, so that no number depends on threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.low_rank import LowRank
from deltasmith.formats.packed import PackedDelta
from deltasmith.kernels.sign_counts import WORD, differing_in_rows
from deltasmith.operation.protocols import BLOCK
from deltasmith.packing import factors
from deltasmith.packing.forms import Bits, DeltaReader, bits_of, factors_of
from deltasmith.table.checkpoint import Checkpoint, Spec

__all__ = ["How", "Pair", "Three", "bits_product", "pair_of"]

How = Literal["bits", "factors", "values"]
Three = tuple[float, float, float]
"""Σab, Σa², Σb²."""

_SPAN = 16 * BLOCK
_SIGNS = 1 << 24
"""Signs of one row that a job compares at once: 2 MiB of each."""
_AT_ONCE = 1 << 27
"""Signs of all rows that a job holds."""


class Pair(Protocol):
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


def pair_of(a: PackedDelta, b: PackedDelta, name: str, ground: Callable[[], Checkpoint]) -> Pair:
    """Return the tensor of both deltas in the form in which it is multiplied; `ground` is asked only for values."""
    one, other = bits_of(a, name), bits_of(b, name)
    if one is not None and other is not None:
        return _SignPair(one, one if a is b else other)
    if isinstance(a.codec(name), LowRank) and isinstance(b.codec(name), LowRank):
        return _FactorPair(a, b, name)
    return _ValuePair(DeltaReader(a, ground), DeltaReader(b, ground), a.tensors[name].spec)


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
