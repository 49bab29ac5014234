"""Two members of a study compared: what became of every feature, and what would have on other text of the kind.

The statuses of `matching` are found once on all held-out tokens, and again under every resample of the passages: the
correlations of the pairs that could matter are taken anew, and the same rules applied to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.analysis.resampling import multiplicities
from deltasmith.errors import DamagedInputError, InterruptedRunError
from deltasmith.features.codes import Codes
from deltasmith.features.matching.correlation import Best, Correlated, correlate
from deltasmith.features.matching.moments import block_moments, blocks_of, resampled_r
from deltasmith.features.matching.pairing import Paired, fates_and_descents
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import DESCENT, FATE, Descent, Fate

__all__ = ["CURVE", "Comparison", "Passages", "best_of_pairs", "best_of_pairs_defined", "compare"]

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int32]
Places = npt.NDArray[np.int8]
_AT_ONCE = 16
_BELOW = 0.2  # a pair this far below the weak threshold does not reach it in any resample that counts
_GONE, _KEPT = FATE.index(Fate.DISAPPEARED), FATE.index(Fate.PERSISTED)
_RARE, _DEAD = FATE.index(Fate.UNEXERCISED), FATE.index(Fate.DEAD)
_NEW, _SAME = DESCENT.index(Descent.EMERGED), DESCENT.index(Descent.PERSISTED)
_CHILD_RARE, _CHILD_DEAD = DESCENT.index(Descent.UNEXERCISED), DESCENT.index(Descent.DEAD)
CURVE = (0.5, 0.7, 0.8, 0.9)
"""Thresholds at which the share of mutual best partners is told: a curve says more than a point."""


@dataclass(frozen=True, eq=False)
class Passages:
    """Which block of text every token belongs to, and how often each block occurs in every resample.

    `block` (tokens,) int32; `counts` (resamples, blocks), every row adding up to the blocks; no rows where there are
    fewer than two blocks, since nothing can be said of other text then.
    """

    block: Indices
    counts: npt.NDArray[np.float64]

    @classmethod
    def of(cls, passage: Indices, seed: int, resamples: int) -> Passages:
        """Group the passages into blocks (see `blocks_of`), and draw resamples keyed by the seed."""
        if (np.diff(passage) < 0).any():
            raise DamagedInputError(
                "its passages are out of order", where="the held-out text", fix="train the study again"
            )
        block = blocks_of(passage)
        blocks = int(block.max(initial=-1)) + 1
        drawn = resamples if blocks >= 2 else 0
        return cls(block, multiplicities(blocks, seed, drawn) if drawn else np.zeros((0, blocks)))

    @property
    def resamples(self) -> int:
        """Count the resamples."""
        return len(self.counts)

    def fires(self, codes: Codes) -> npt.NDArray[np.int64]:
        """Count how often each latent fires under every resample, (resamples, latents)."""
        blocks = self.counts.shape[1]
        places = self.block[codes.rows].astype(np.int64) * codes.width + codes.latents
        of_blocks = np.bincount(places, minlength=blocks * codes.width).reshape(blocks, codes.width)
        return np.rint(self.counts @ of_blocks.astype(np.float64)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What matching a parent's features with a child's has found.

    The arrays have a row for what was observed on all held-out tokens, and below it one for every resample: (1 +
    resamples, features of one side). Which features are testable is part of what is resampled, so that one that
    fires in few passages is left out of a resample that holds none of them, and does not count as gone.
    """

    correlated: Correlated
    paired: Paired
    fate: Places
    descent: Places
    child_of: Indices
    """Of the parent's features the best child, -1 without one."""
    parent_of: Indices
    reach: npt.NDArray[np.float64]
    """(1 + resamples, CURVE and one more): the share of the parent's testable features that have a mutual best partner
    at each r of CURVE, and with any partner at r >= strong."""

    @property
    def testable(self) -> Flags:
        """Tell which of the parent's features fire often enough."""
        return ~(_is(self.fate, _RARE) | _is(self.fate, _DEAD))

    @property
    def testable_child(self) -> Flags:
        """Tell which of the child's features do."""
        return ~(_is(self.descent, _CHILD_RARE) | _is(self.descent, _CHILD_DEAD))

    @property
    def persisted(self) -> Flags:
        """Tell which of the parent's features persisted."""
        return _is(self.fate, _KEPT)

    @property
    def lost(self) -> Flags:
        """Tell which of the parent's features disappeared."""
        return _is(self.fate, _GONE)

    @property
    def kept(self) -> Flags:
        """Tell which of the child's features persisted from this parent."""
        return _is(self.descent, _SAME)

    @property
    def new(self) -> Flags:
        """Tell which of the child's features have no partner at all in this parent."""
        return _is(self.descent, _NEW)


def _is(statuses: Places, place: int) -> Flags:
    flags: Flags = statuses == place
    return flags


def compare(
    parent: Codes,
    child: Codes,
    passages: Passages,
    thresholds: Thresholds,
    *,
    threads: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Match a parent's features with a child's, on all tokens and under every resample of the passages.

    Pairs of r < weak - 0.2 are taken to stay below `weak` in every resample.

    Raises:
        DamagedInputError: the codes span other tokens than the passages. InterruptedRunError: `stopped` says so.
    """
    if not parent.tokens == child.tokens == len(passages.block):
        raise DamagedInputError(
            f"the codes span {parent.tokens} and {child.tokens} tokens, the held-out text {len(passages.block)}",
            where="the study",
            fix="train it again",
        )
    keep = max(0.05, thresholds.weak - _BELOW)
    found = correlate(parent, child, keep=keep, threads=threads)
    paired = fates_and_descents(found, parent.fires, child.fires, thresholds)
    rows = [_Row(found.of_parents, found.of_children, paired)]
    rows += _drawn(parent, child, found, passages, thresholds, stopped)
    return Comparison(
        found,
        paired,
        np.stack([row.paired.fate for row in rows]),
        np.stack([row.paired.descent for row in rows]),
        np.stack([row.above.best for row in rows]),
        np.stack([row.below.best for row in rows]),
        np.stack([_reach(row, thresholds) for row in rows]),
    )


@dataclass(frozen=True, eq=False)
class _Row:
    """Best partners and statuses of both sides, once."""

    above: Best
    below: Best
    paired: Paired


def _reach(row: _Row, thresholds: Thresholds) -> npt.NDArray[np.float64]:
    testable = ~(_is(row.paired.fate, _RARE) | _is(row.paired.fate, _DEAD))
    if not testable.any():
        return np.full(len(CURVE) + 1, np.nan)
    mutual, r = row.paired.mutual[testable] >= 0, row.above.r[testable]
    shares = [(mutual & (r >= np.float32(at))).mean() for at in CURVE]
    return np.array([*shares, (r >= np.float32(thresholds.strong)).mean()])


def _drawn(
    parent: Codes,
    child: Codes,
    found: Correlated,
    passages: Passages,
    thresholds: Thresholds,
    stopped: Callable[[], bool],
) -> Iterator[_Row]:
    """Give every feature its status under every resample."""
    if not passages.resamples:
        return
    order = np.lexsort((found.children, found.parents))  # so that ties go to the lower index again
    pairs = found.parents[order], found.children[order]
    moments = block_moments(parent, child, pairs, passages.block)
    fires = passages.fires(parent), passages.fires(child)
    for start in range(0, passages.resamples, _AT_ONCE):
        if stopped():
            raise InterruptedRunError("matching was interrupted", fix="run the same command again")
        several = resampled_r(moments, passages.counts[start : start + _AT_ONCE])
        for at, r in enumerate(several, start):
            above, below = best_of_pairs(*pairs, r, parent.width, child.width)
            drawn = Correlated(*pairs, r, above, below, found.keep)
            yield _Row(above, below, fates_and_descents(drawn, fires[0][at], fires[1][at], thresholds))


def best_of_pairs(
    parents: Indices, children: Indices, r: npt.NDArray[np.float32], width: int, child_width: int
) -> tuple[Best, Best]:
    """Find the best partner of every feature on both sides among pairs sorted by parent, then child; ties go lower."""
    best, best_r = np.full(width, -1, np.int32), np.zeros(width, np.float32)
    below, below_r = np.full(child_width, -1, np.int32), np.zeros(child_width, np.float32)
    _best_of_pairs(parents, children, r, best, best_r, below, below_r)
    return _alone(best, best_r), _alone(below, below_r)


def best_of_pairs_defined(
    parents: Indices, children: Indices, r: npt.NDArray[np.float32], width: int, child_width: int
) -> tuple[Best, Best]:
    """Define `best_of_pairs`: dense, for small cases."""
    matrix = np.full((width, child_width), -np.inf, np.float32)
    matrix[parents, children] = r
    sides = []
    for side in (matrix, matrix.T):
        best = np.argmax(side, axis=1)
        value = side[np.arange(len(side)), best]
        there = np.isfinite(value)
        sides.append(
            _alone(np.where(there, best, -1).astype(np.int32), np.where(there, value, 0).astype(np.float32))
        )
    return sides[0], sides[1]


def _alone(best: Indices, r: npt.NDArray[np.float32]) -> Best:
    return Best(best, r, np.full_like(best, -1), np.zeros_like(r))


@njit(nogil=True, cache=True)
def _best_of_pairs(
    parents: Any, children: Any, r: Any, best: Any, best_r: Any, below: Any, below_r: Any
) -> None:
    for at in range(parents.size):
        p, c, value = parents[at], children[at], r[at]
        if best[p] < 0 or value > best_r[p]:
            best[p], best_r[p] = c, value
        if below[c] < 0 or value > below_r[c]:
            below[c], below_r[c] = p, value
