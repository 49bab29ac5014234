"""The exact k-th largest score of a tensor or a whole model, without sorting and in bounded memory.

Round 1 looks at a sample and guesses a bracket of float bit patterns around the k-th largest. Round 2 counts every
pattern inside the bracket and all that lie above: if the guess holds, the threshold is exact. Rounds repeat with a
better bracket where it does not. Ties at the threshold are broken towards the lower (tensor name, index); blocks
count likely ties during round 2, and a last round counts them where the guess missed. All counts are integers, so
the result depends on nothing but the data; the sample only decides how soon it is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deltasmith.kernels import select as kernels
from deltasmith.operation.protocols import Place, Scope, Survey
from deltasmith.table.checkpoint import Floats

__all__ = ["Cut", "at_least", "cut", "keep", "kept", "magnitude", "next_survey"]

Score = Callable[[Sequence[Floats], Place], Floats]
Keep = Callable[[int], int]
Bits = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

_END = 0x7F800001  # one past the pattern of infinity: every finite magnitude and infinity lie below
_BINS = {"global": 1 << 20, "tensor": 1 << 16}  # counters of four bytes, per worker and model
_SAMPLES = {"global": 1 << 17, "tensor": 1 << 15}
_MARGIN = 0.01  # of the sample on either side of the guess; a miss costs a round, never exactness
_SLOTS = 8  # likely tie values counted along the way


def magnitude(cells: Sequence[Floats], place: Place) -> Floats:
    """Score an edit's delta by |delta|: return it as it is, since the counting ignores signs."""
    return cells[0].reshape(-1)


@dataclass(frozen=True)
class Cut:
    """Where the kept scores end: everything above `pattern` is kept, and `quota` of those that equal it.

    `before[name][b]` counts the ties that precede block b of a tensor, over the whole scope.
    """

    keep: int
    total: int
    pattern: int
    quota: int
    equal: int
    before: dict[str, Counts] = field(default_factory=dict, repr=False)

    @property
    def threshold(self) -> float:
        """Return the smallest kept score (infinity where nothing is kept)."""
        return float(np.array([self.pattern], dtype=np.uint32).view(np.float32)[0])

    def quota_at(self, place: Place) -> int:
        """Return how many ties may still be kept in the tile at `place`."""
        if self.quota == self.equal:
            return place.size
        before = self.before.get(place.name)
        return self.quota if before is None else int(self.quota - before[place.start // place.block])


@dataclass(frozen=True)
class Bracket:
    """A guess: the k-th largest has a pattern in [low, high); `likely` are values that may tie there."""

    keep: int
    total: int
    low: int
    high: int
    likely: tuple[int, ...] = ()
    bins: int = _BINS["global"]

    @property
    def shift(self) -> int:
        """Return the number of low bits that share a bin, so that the bracket fits the bins."""
        return max(0, int(self.high - self.low - 1).bit_length() - (self.bins.bit_length() - 1))


@dataclass(frozen=True)
class Tied:
    """The threshold is known, but not yet which of the values equal to it come first."""

    cut: Cut


def next_survey(
    findings: Sequence[object], *, scope: Scope, keep: Keep, score: Score = magnitude
) -> Survey | None:
    """Return the next round of the chain, or None once the last finding is a `Cut`."""
    if not findings:
        return _Sample(scope, keep, score)
    last = findings[-1]
    if isinstance(last, Bracket):
        return _Count(scope, last, score)
    return _CountTies(scope, last.cut, score) if isinstance(last, Tied) else None


def cut(findings: Sequence[object]) -> Cut:
    """Return the chain's conclusion."""
    last = findings[-1]
    if not isinstance(last, Cut):
        raise TypeError("the selection has not finished its surveys")
    return last


def keep(values: Floats, ends: Cut, place: Place) -> Floats:
    """Zero every value that the cut by magnitude does not keep; any shape, a new array."""
    flat = np.ascontiguousarray(values).reshape(-1)
    out = np.empty_like(flat)
    kernels.keep_above(flat, ends.pattern, ends.quota_at(place), out)
    return out.reshape(values.shape)


def kept(scores: Floats, ends: Cut, place: Place) -> npt.NDArray[np.bool_]:
    """Mark the scores that are kept: exactly `ends.keep` over the whole scope."""
    bits = _patterns(scores)
    above: npt.NDArray[np.bool_] = bits > ends.pattern
    equal = bits == ends.pattern
    marks: npt.NDArray[np.bool_] = above | (equal & (np.cumsum(equal) <= ends.quota_at(place)))
    return marks


def at_least(scores: Floats, ends: Cut) -> npt.NDArray[np.bool_]:
    """Mark the scores at or above the threshold, ties and all: possibly more than `ends.keep`."""
    marks: npt.NDArray[np.bool_] = _patterns(scores) >= ends.pattern
    return marks


def _patterns(scores: Floats) -> npt.NDArray[np.int64]:
    bits = np.ascontiguousarray(scores).reshape(-1).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return bits.astype(np.int64)


@dataclass
class _Sampled:
    pieces: list[Bits] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sample:
    """Round 1: look at pieces of every tensor and guess the bracket (exact where the pieces are everything)."""

    scope: Scope
    keep: Keep
    score: Score
    blockwise: ClassVar[bool] = False

    @property
    def sample(self) -> int:
        return _SAMPLES[self.scope]

    def start(self) -> _Sampled:
        return _Sampled()

    def tally(self, acc: _Sampled, cells: Sequence[Floats], place: Place) -> None:
        scores = np.ascontiguousarray(self.score(cells, place)).reshape(-1)
        bits = scores.view(np.uint32)[:: 1 + scores.size // (self.sample + 1)]
        acc.pieces.append(bits & np.uint32(0x7FFFFFFF))
        acc.sizes[place.name] = place.size

    def conclude(self, accs: Sequence[_Sampled]) -> Cut | Bracket | Tied:
        total = sum({name: size for acc in accs for name, size in acc.sizes.items()}.values())
        pieces = [piece for acc in accs for piece in acc.pieces]
        seen = np.concatenate(pieces) if pieces else np.empty(0, np.uint32)
        wanted = self.keep(total)
        if wanted >= total:
            return Cut(total, total, pattern=0, quota=0, equal=0)  # every pattern is at least 0
        if wanted <= 0:
            return Cut(0, total, pattern=_END, quota=0, equal=0)
        if seen.size == total:
            return _exact(seen, wanted)
        return _guess(seen, wanted, total, _BINS[self.scope])


def _exact(seen: Bits, wanted: int) -> Cut | Tied:
    pattern = int(np.partition(seen, seen.size - wanted)[seen.size - wanted])
    quota = wanted - int(np.count_nonzero(seen > pattern))
    equal = int(np.count_nonzero(seen == pattern))
    found = Cut(wanted, seen.size, pattern, quota, equal)
    return found if quota == equal else Tied(found)


def _guess(seen: Bits, wanted: int, total: int, bins: int = _BINS["global"]) -> Bracket:
    """Bracket the sample's quantile by a margin of ranks.

    The margin is generous where values repeat, since then few of them fill it however many bins they span. It is
    narrower where they do not and the bins would not suffice: then it is a matter of sampling error alone.
    """
    share = wanted / total
    middle = seen.size - 1 - min(seen.size - 1, int(seen.size * share))
    sure = int(4 * (share * (1 - share) * seen.size) ** 0.5) + 8
    margins = [max(sure, int(seen.size * _MARGIN / part)) for part in (1, 2, 4)]
    ordered = np.sort(seen)
    for margin in margins:
        first, last = max(0, middle - margin), min(seen.size - 1, middle + margin)
        low = 0 if first == 0 else int(ordered[first])
        high = _END if last == seen.size - 1 else int(ordered[last]) + 1
        inside, ranks, counts = np.unique(ordered[first : last + 1], return_index=True, return_counts=True)
        if high - low <= bins or 2 * inside.size < last - first:
            break
    # The threshold is probably a sampled value near the guess, and one that fills many ranks if any does.
    start = ranks + first
    distance = np.maximum(0, np.maximum(start - middle, middle - start - counts + 1))
    likely = inside[np.argsort(distance / counts, kind="stable")[:_SLOTS]]
    return Bracket(wanted, total, low, high, tuple(int(v) for v in likely), bins)


@dataclass
class _Counted:
    bins: Bits
    values: Bits
    inside: Bits = field(default_factory=lambda: np.empty(0, np.uint32))
    above: int = 0

    def room(self, n: int) -> Bits:
        """Return the kernel's scratch, reused from block to block."""
        if self.inside.size <= n:
            self.inside = np.empty(n + 1, np.uint32)
        return self.inside


class _Count:
    """Round 2: histogram the bracket, count what lies above it, and count likely ties block by block.

    Where bins hold several patterns each, they also remember whether they have met more than one: deltas of 16-bit
    models take few values, and a bin that has met a single one is as good as exact.
    """

    sample = 0
    blockwise = False

    def __init__(self, scope: Scope, bracket: Bracket, score: Score) -> None:
        self.scope, self.bracket, self.score = scope, bracket, score
        self.size = -(-(bracket.high - bracket.low) // (1 << bracket.shift))
        self.slots = np.full(self.size, -1, np.int8)
        for slot, pattern in enumerate(bracket.likely):
            self.slots[(pattern - bracket.low) >> bracket.shift] = slot
        self.ties = _TieTable(len(bracket.likely))

    def start(self) -> _Counted:
        coarse = self.size if self.bracket.shift else 0
        return _Counted(np.zeros(self.size, np.uint32), np.full(coarse, kernels.EMPTY, np.uint32))

    def tally(self, acc: _Counted, cells: Sequence[Floats], place: Place) -> None:
        scores = np.ascontiguousarray(self.score(cells, place)).reshape(-1)
        bracket, room = self.bracket, acc.room(min(scores.size, place.block))
        span = bracket.high - bracket.low
        tied = np.zeros((-(-scores.size // place.block), _SLOTS), np.int64)
        acc.above += kernels.tally(
            scores,
            place.block,
            bracket.low,
            span,
            bracket.shift,
            acc.bins,
            acc.values,
            self.slots,
            tied,
            room,
        )
        self.ties.add(place, tied)

    def conclude(self, accs: Sequence[_Counted]) -> Cut | Bracket | Tied:
        bracket = self.bracket
        bins: Counts = np.sum([acc.bins for acc in accs], axis=0, dtype=np.int64)
        above = sum(acc.above for acc in accs)
        if above >= bracket.keep:
            return replace(bracket, low=bracket.high, high=_END, likely=())
        at_or_above: Counts = above + np.cumsum(bins[::-1])
        if at_or_above[-1] < bracket.keep:
            return replace(bracket, low=0, high=bracket.low, likely=())
        index = bins.size - 1 - int(np.searchsorted(at_or_above, bracket.keep))
        pattern = self._value(accs, index)
        if pattern is None:
            return self._narrower(index)
        equal = int(bins[index])
        quota = bracket.keep - int(at_or_above[bins.size - 1 - index] - equal)
        found = Cut(bracket.keep, bracket.total, pattern, quota, equal)
        if quota == equal:
            return found
        slot = int(self.slots[index])
        return Tied(found) if slot < 0 else self.ties.break_ties(found, slot)

    def _value(self, accs: Sequence[_Counted], index: int) -> int | None:
        """Return the only pattern that bin has met, or None where it has met several."""
        if not self.bracket.shift:
            return self.bracket.low + index
        met = {int(acc.values[index]) for acc in accs} - {kernels.EMPTY}
        return self.bracket.low + met.pop() if len(met) == 1 and kernels.MIXED not in met else None

    def _narrower(self, index: int) -> Bracket:
        bracket = self.bracket
        low = bracket.low + (index << bracket.shift)
        high = min(_END, low + (1 << bracket.shift))
        likely = tuple(v for v in bracket.likely if low <= v < high)
        return replace(bracket, low=low, high=high, likely=likely)


class _CountTies:
    """The last round, where ties at the threshold must be broken and were not counted along the way."""

    sample = 0
    blockwise = False

    def __init__(self, scope: Scope, found: Cut, score: Score) -> None:
        self.scope, self.cut, self.score = scope, found, score
        self.ties = _TieTable(1)

    def start(self) -> None:
        return None

    def tally(self, acc: None, cells: Sequence[Floats], place: Place) -> None:
        scores = np.ascontiguousarray(self.score(cells, place)).reshape(-1)
        tied = np.zeros((-(-scores.size // place.block), 1), np.int64)
        kernels.count_equal(scores, place.block, self.cut.pattern, tied)
        self.ties.add(place, tied)

    def conclude(self, accs: Sequence[None]) -> Cut:
        return self.ties.break_ties(self.cut, 0)


class _TieTable:
    """Counts of likely ties per block. Workers share it: each block is written once, by one of them."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.counts: dict[str, Bits] = {}

    def add(self, place: Place, tied: Counts) -> None:
        if not self.slots or not tied.any():
            return
        blocks = -(-place.size // place.block)
        table = self.counts.get(place.name)
        if table is None:
            table = self.counts.setdefault(place.name, np.zeros((blocks, self.slots), np.uint32))
        first = place.start // place.block
        table[first : first + len(tied)] = tied[:, : self.slots]

    def break_ties(self, found: Cut, slot: int) -> Cut:
        """Turn counts per block into counts of all ties that come before each block."""
        before: dict[str, Counts] = {}
        running = 0
        for name in sorted(self.counts):
            counts = self.counts[name][:, slot].astype(np.int64)
            before[name] = running + np.cumsum(counts) - counts
            running += int(counts.sum())
        return Cut(found.keep, found.total, found.pattern, found.quota, found.equal, before)
