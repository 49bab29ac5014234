"""One option for each tensor, together within a number of bytes, with the least error: how `--budget` decides."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deltasmith.codecs.protocol import Codec
from deltasmith.errors import RefusedError

__all__ = ["Choice", "Option", "choose", "frontier", "hull"]


@dataclass(frozen=True, slots=True)
class Option:
    """What one tensor costs under one codec: stored bytes, and Σ(δ − δ̂)² of Σδ²."""

    codec: Codec
    nbytes: int
    squared_error: float
    squared_norm: float = 0.0


@dataclass(frozen=True)
class Choice:
    """One option for each tensor; `squared_error` is their weighted sum, and no choice has less than `bound`."""

    options: Mapping[str, Option]
    budget_bytes: int
    squared_error: float
    bound: float

    @property
    def nbytes(self) -> int:
        """Count the bytes of all options."""
        return sum(option.nbytes for option in self.options.values())

    @property
    def gap(self) -> float:
        """Return how far below this error the best choice's may lie at most, as a fraction of it."""
        return (self.squared_error - self.bound) / self.squared_error if self.squared_error > 0 else 0.0


Frontier = tuple[Option, ...]
Picks = Mapping[str, int]

_FEW = 500
"""Tensors among which one step too many or too few is still worth a search."""
_PARTS = 1 << 14


@dataclass(frozen=True, slots=True, order=True)
class _Step:
    """Going from one option of a tensor to a larger and better one; steps sort best first."""

    rate: float
    """Minus the squared error saved per byte."""
    name: str
    to: int
    nbytes: int
    saved: float


def frontier(options: Sequence[Option]) -> Frontier:
    """Return the options that no other beats in bytes and error at once, smallest first.

    Of options that are equal in both, the first.
    """
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.squared_error)):
        if not kept or option.squared_error < kept[-1].squared_error:
            kept.append(option)
    return tuple(kept)


def hull(options: Frontier) -> list[int]:
    """Return the positions of the options on the lower convex hull of (bytes, error): each saves less per byte."""
    kept: list[int] = []
    for at, option in enumerate(options):
        while len(kept) > 1:
            first, middle = options[kept[-2]], options[kept[-1]]
            before = (first.squared_error - middle.squared_error) * (option.nbytes - middle.nbytes)
            after = (middle.squared_error - option.squared_error) * (middle.nbytes - first.nbytes)
            if before > after:
                break
            kept.pop()
        kept.append(at)
    return kept


def choose(
    options: Mapping[str, Sequence[Option]],
    budget_bytes: int,
    importance: Mapping[str, float] | None = None,
) -> Choice:
    """Pick one option for each tensor so that Σ importance · squared error is least and the bytes fit the budget.

    A multiple-choice knapsack. Its linear relaxation is solved exactly by taking, from every tensor's lower convex
    hull, the steps that save most error per byte until one does not fit; that gives `bound`. What is left is
    filled with the steps that still fit: less than one step's saving above the bound, which is little among many
    tensors. Among few, dynamic programming over the bytes in 16,384 parts is tried as well (exact if the budget
    exceeds the smallest options by no more bytes than that), and the better of the two is taken.

    `importance`: a factor on each tensor's error, default 1; 1 / ‖base‖² makes errors relative to the base.

    Raises:
        RefusedError: the smallest options together exceed the budget.
    """
    fronts = {name: frontier(_weighted(found, name, importance)) for name, found in options.items()}
    smallest = sum(front[0].nbytes for front in fronts.values())
    if smallest > budget_bytes:
        raise RefusedError(
            f"the budget of {budget_bytes:,} bytes cannot be met",
            where="pack",
            fix=f"the smallest possible is {smallest:,} bytes",
        )
    spare = budget_bytes - smallest
    now, left, bound = _relax(fronts, spare)
    now = _fill(fronts, now, left)
    if len(fronts) <= _FEW:
        now = min(now, _fill(fronts, *_grid(fronts, spare)), key=lambda found: _error(fronts, found))
    total = _error(fronts, now)
    picked = {name: _original(options[name], front[now[name]]) for name, front in fronts.items()}
    return Choice(picked, budget_bytes, total, max(0.0, min(bound, total)))


def _weighted(
    options: Sequence[Option], name: str, importance: Mapping[str, float] | None
) -> Sequence[Option]:
    factor = 1.0 if importance is None else importance.get(name, 1.0)
    return [Option(o.codec, o.nbytes, factor * o.squared_error, o.squared_norm) for o in options]


def _original(options: Sequence[Option], weighted: Option) -> Option:
    return next(o for o in options if o.codec == weighted.codec and o.nbytes == weighted.nbytes)


def _step(name: str, front: Frontier, at: int, to: int) -> _Step:
    nbytes = front[to].nbytes - front[at].nbytes
    saved = front[at].squared_error - front[to].squared_error
    return _Step(-saved / nbytes, name, to, nbytes, saved)


def _error(fronts: Mapping[str, Frontier], now: Picks) -> float:
    return sum(front[now[name]].squared_error for name, front in fronts.items())


def _relax(fronts: Mapping[str, Frontier], left: int) -> tuple[Picks, int, float]:
    """Take hull steps, best first, until one does not fit; return picks, bytes left and the relaxation's error."""
    now = dict.fromkeys(fronts, 0)
    steps = (_step(name, front, a, b) for name, front in fronts.items() for a, b in pairwise(hull(front)))
    # A tensor's steps come in their order: on the hull each saves less per byte, and rounding keeps an order.
    for step in sorted(steps):
        if step.nbytes > left:
            return now, left, _error(fronts, now) + step.rate * left
        now[step.name] = step.to
        left -= step.nbytes
    return now, left, _error(fronts, now)


def _grid(fronts: Mapping[str, Frontier], spare: int) -> tuple[Picks, int]:
    """Solve with bytes counted in parts of `spare`, rounded up; return the picks and the bytes left."""
    unit = max(1, -(-spare // _PARTS))
    room = spare // unit
    best, taken = np.zeros(room + 1), []
    for front in fronts.values():
        found, which = np.full(room + 1, np.inf), np.zeros(room + 1, np.int16)
        for at, option in enumerate(front):
            parts = -(-(option.nbytes - front[0].nbytes) // unit)
            if parts > room:
                break
            errors = best[: room + 1 - parts] + option.squared_error
            better = errors < found[parts:]
            found[parts:][better], which[parts:][better] = errors[better], at
        best = found
        taken.append(which)
    now, left, at = {}, spare, room
    for (name, front), which in zip(reversed(list(fronts.items())), reversed(taken), strict=True):
        now[name] = int(which[at])
        extra = front[now[name]].nbytes - front[0].nbytes
        at, left = at - -(-extra // unit), left - extra
    return now, left


def _upgrades(fronts: Mapping[str, Frontier], now: Picks, name: str, left: int) -> Iterator[_Step]:
    front, at = fronts[name], now[name]
    for to in range(at + 1, len(front)):
        if front[to].nbytes - front[at].nbytes <= left:
            yield _step(name, front, at, to)


def _fill(fronts: Mapping[str, Frontier], start: Picks, left: int) -> Picks:
    """Take whatever still fits, most error saved per byte first."""
    now = dict(start)
    steps = [step for name in fronts for step in _upgrades(fronts, now, name, left)]
    heapq.heapify(steps)
    while steps:
        step = heapq.heappop(steps)
        front, at = fronts[step.name], now[step.name]
        if step.nbytes > left or front[step.to].nbytes - front[at].nbytes != step.nbytes:
            continue  # no longer fits, or begins at an option that this tensor has left
        now[step.name] = step.to
        left -= step.nbytes
        for more in _upgrades(fronts, now, step.name, left):
            heapq.heappush(steps, more)
    return now
