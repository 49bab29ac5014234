"""How every latent of one dictionary correlates with every latent of another over the same tokens; exact, sparse.

No (tokens, latents) and no (latents, latents) matrix is held: each parent latent walks the tokens that it fires on
and adds the children's rows into one accumulator, from which its correlations are read before the next begins. What
a latent becomes is decided in pairing.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.errors import DamagedInputError
from deltasmith.features.codes import Codes

__all__ = [
    "CONSTANT",
    "Best",
    "Columns",
    "Correlated",
    "checked",
    "columns_of",
    "correlate",
    "correlate_defined",
]

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]
NONE = -2.0  # below every correlation
CONSTANT = (
    1e-10  # of Σa²: a latent with less variance than this counts as constant, for its Σab would be rounding
)
RANGES = 64  # of parents: fixed, so that the result does not depend on the number of threads


@dataclass(frozen=True, eq=False)
class Best:
    """The two best partners of every latent on one side: arrays of (latents,).

    `best` and `second` are indices on the other side, -1 where too few latents there fire on any token together with
    it; `r` and `second_r` are their correlations, which may be below 0; 0 where there is no partner.
    """

    best: Indices
    r: Singles
    second: Indices
    second_r: Singles


@dataclass(frozen=True, eq=False)
class Correlated:
    """What `correlate` found. The pairs of r >= keep, by parent, falling r, child: three arrays of (pairs,)."""

    parents: Indices
    children: Indices
    r: Singles
    of_parents: Best
    of_children: Best
    keep: float


@dataclass(frozen=True, eq=False)
class Columns:
    """Codes by latent: those of latent j are `tokens` (ascending) and `values` from bounds[j] to bounds[j + 1]."""

    bounds: npt.NDArray[np.int64]
    tokens: Indices
    values: Singles


def correlate(parent: Codes, child: Codes, *, keep: float = 0.3, threads: int = 1) -> Correlated:
    """Correlate the activations of every parent latent with those of every child latent, zeros included.

    r = (Σab - ΣaΣb/n) / sqrt(Σ(a - ā)² Σ(b - b̄)²) over all n tokens, summed in float64 in the order of the tokens,
    rounded to float32, within [-1, 1]. Only latents that fire together on some token can be partners. A latent
    that never fires, or fires everywhere with one value (to about 1e-5 of it), has none. Ties go to the lower
    index. The result is the same for any number of threads.

    `keep` in (0, 1] bounds the pairs that are listed, not the best and second-best partners.

    Paper: Horn and Elliott, "Tracking Universal Features Through Fine-Tuning and Model Merging" (arXiv 2410.12391);
    departure: exact over all tokens, sparse, and with the second-best partner.

    Raises:
        DamagedInputError: the codes span different tokens, are out of order, or are not positive and finite.

    >>> codes = Codes.of_dense(np.array([[1, 0, 0], [2, 0, 0], [0, 3, 0], [0, 1, 2]], np.float32))
    >>> correlate(codes, codes).of_parents.best.tolist()
    [0, 1, 2]
    """
    parent, child = checked(parent), checked(child)
    if parent.tokens != child.tokens:
        raise DamagedInputError(
            f"the codes span {parent.tokens} and {child.tokens} tokens",
            where="two dictionaries",
            fix="train the study again",
        )
    columns = columns_of(parent)
    own, other = _moments(parent), _moments(child)
    edges = _even_ranges(columns.bounds)

    def one(at: int) -> tuple[Any, ...]:
        span = edges[at], edges[at + 1]
        return _correlate_range(  # type: ignore[no-any-return]
            *span, columns.bounds, columns.tokens, columns.values, child.starts, child.latents, child.values,
            own[0], own[2], other[1], other[2], np.float32(keep),
        )  # fmt: skip

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        found = list(pool.map(one, range(len(edges) - 1)))
    parents, children, r = (np.concatenate([f[i] for f in found]) for i in range(3))
    above = [np.concatenate([f[i] for f in found]) for i in range(3, 7)]
    below = list(found[0][7:])
    for part in found[1:]:  # in order, so that the lower parent keeps a tie
        _merge_best(*below, *part[7:])
    order = np.lexsort((-r, parents))  # stable: children ascend already
    return Correlated(parents[order], children[order], r[order], _best(above), _best(below), keep)


def correlate_defined(parent: Codes, child: Codes, *, keep: float = 0.3) -> Correlated:
    """Define `correlate`: dense, for small cases."""
    a, b = parent.dense().astype(np.float64), child.dense().astype(np.float64)
    varies_a, varies_b = (m.var(axis=0) > CONSTANT * np.square(m).mean(axis=0) for m in (a, b))
    r = np.zeros((parent.width, child.width), np.float32)
    grid = np.ix_(varies_a, varies_b)
    if r[grid].size:
        together = np.corrcoef(a[:, varies_a], b[:, varies_b], rowvar=False)
        r[grid] = np.atleast_2d(together)[: varies_a.sum(), varies_a.sum() :].clip(-1, 1)
    partners = (a.T @ b > 0) & varies_a[:, None] & varies_b
    parents, children = np.nonzero(partners & (r >= np.float32(keep)))
    kept = r[parents, children]
    order = np.lexsort((children, -kept, parents))
    above, below = _two_best(r, partners), _two_best(r.T, partners.T)
    sides = parents[order].astype(np.int32), children[order].astype(np.int32)
    return Correlated(*sides, kept[order], above, below, keep)


def columns_of(codes: Codes) -> Columns:
    """Sort codes by latent."""
    bounds = np.concatenate(([0], np.cumsum(codes.fires))).astype(np.int64)
    tokens, values = np.empty(len(codes.latents), np.int32), np.empty(len(codes.latents), np.float32)
    _transpose(codes.starts, codes.latents, codes.values, bounds[:-1].copy(), tokens, values)
    return Columns(bounds, tokens, values)


def checked(codes: Codes) -> Codes:
    """Return the codes, fit for the compiled loops, which look up no index twice. DamagedInputError where they are not.

    The arrays become read-only views of one type each, as those that come out of files are: else every loop would be
    compiled again for each mixture.
    """
    codes = Codes(
        np.ascontiguousarray(codes.starts, np.int64).view(),
        np.ascontiguousarray(codes.latents, np.int32).view(),
        np.ascontiguousarray(codes.values, np.float32).view(),
        codes.width,
    )
    for array in (codes.starts, codes.latents, codes.values):
        array.flags.writeable = False
    if not _sound(codes.starts, codes.latents, codes.values, codes.width):
        raise DamagedInputError(
            "its rows are out of order or hold a value that is no positive number",
            where="the codes of a dictionary",
            fix="train the study again",
        )
    return codes


def _best(parts: list[Any]) -> Best:
    best, r, second, second_r = parts
    return Best(
        best, np.where(best < 0, np.float32(0), r), second, np.where(second < 0, np.float32(0), second_r)
    )


def _two_best(r: Singles, partners: npt.NDArray[np.bool_]) -> Best:
    """Find the best two of every row by a stable sort."""
    worth = np.where(partners, r, -np.inf)
    filled = np.pad(worth, ((0, 0), (0, 2)), constant_values=-np.inf)
    order = np.argsort(-filled, axis=1, kind="stable")[:, :2]
    top = np.take_along_axis(filled, order, axis=1)
    there = np.isfinite(top)
    index, value = np.where(there, order, -1).astype(np.int32), np.where(there, top, 0).astype(np.float32)
    return Best(index[:, 0], value[:, 0], index[:, 1], value[:, 1])


def _even_ranges(bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Cut the latents into consecutive ranges of about equally many activations; none is empty."""
    latents = len(bounds) - 1
    if not latents:
        return np.array([0, 0])
    wanted = np.linspace(0, bounds[-1] + latents, RANGES + 1)[1:-1]  # each latent costs something of itself
    cuts = np.searchsorted(bounds + np.arange(latents + 1), wanted)
    return np.unique(np.concatenate(([0], cuts, [latents])))


def _moments(codes: Codes) -> tuple[Doubles, Doubles, Doubles]:
    """Return Σa, ā and 1 / sqrt(Σ(a - ā)²) of every latent; the last is 0 where it is constant."""
    total, mean, inverse = (np.zeros(codes.width) for _ in range(3))
    _fill_moments(codes.latents, codes.values, codes.tokens, codes.fires, total, mean, inverse)
    return total, mean, inverse


@njit(nogil=True, cache=True)
def _sound(starts: Any, latents: Any, values: Any, width: int) -> bool:
    if starts[0] != 0 or starts[-1] != latents.size:
        return False
    for token in range(starts.size - 1):
        if starts[token + 1] < starts[token] or starts[token + 1] > latents.size:
            return False
        last = -1
        for at in range(starts[token], starts[token + 1]):
            if latents[at] <= last or not 0 < values[at] < np.inf:
                return False
            last = latents[at]
        if last >= width:
            return False
    return True


@njit(nogil=True, cache=True)
def _transpose(starts: Any, latents: Any, values: Any, ends: Any, tokens: Any, sorted_values: Any) -> None:
    for token in range(starts.size - 1):
        for at in range(starts[token], starts[token + 1]):
            place = ends[latents[at]]
            tokens[place], sorted_values[place] = token, values[at]
            ends[latents[at]] = place + 1


@njit(nogil=True, cache=True)
def _fill_moments(
    latents: Any, values: Any, tokens: int, fires: Any, total: Any, mean: Any, inverse: Any
) -> None:
    squares = np.zeros(total.size)
    for at in range(latents.size):
        total[latents[at]] += np.float64(values[at])
    for j in range(total.size):
        mean[j] = total[j] / tokens if tokens else 0.0
        inverse[j] = (tokens - fires[j]) * mean[j] ** 2
    # A second pass: Σa² - (Σa)²/n loses what nearly constant latents vary by.
    for at in range(latents.size):
        value = np.float64(values[at])
        squares[latents[at]] += value**2
        inverse[latents[at]] += (value - mean[latents[at]]) ** 2
    for j in range(total.size):
        inverse[j] = 1 / np.sqrt(inverse[j]) if inverse[j] > CONSTANT * squares[j] else 0.0


@njit(nogil=True, cache=True)
def _correlate_range(
    first: int, last: int, bounds: Any, tokens: Any, weights: Any, starts: Any, latents: Any, values: Any,
    total: Any, inverse: Any, child_mean: Any, child_inverse: Any, keep: Any,
) -> Any:  # fmt: skip
    """Correlate the parents from `first` to `last` with all children. A correlation of NONE marks no partner."""
    width, room, pairs = child_mean.size, 1024, 0
    parents, children, found = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32)
    best, best_r, second, second_r = _nobody(last - first)
    below, below_r, below_second, below_second_r = _nobody(width)
    sums, row = np.zeros(width), np.empty(width, np.float32)
    for p in range(first, last):
        if inverse[p] == 0:
            continue
        for at in range(bounds[p], bounds[p + 1]):
            weight, token = np.float64(weights[at]), tokens[at]
            for place in range(starts[token], starts[token + 1]):
                sums[latents[place]] += weight * np.float64(values[place])
        _finish_row(sums, total[p], inverse[p], child_mean, child_inverse, row)
        i, bar = (
            p - first,
            np.float32(NONE),
        )  # below `bar` lies what neither can be kept nor is among the best two
        for c in range(width):
            r = row[c]
            if r < bar and r <= below_second_r[c]:
                continue
            if r > best_r[i]:
                second[i], second_r[i], best[i], best_r[i] = best[i], best_r[i], c, r
            elif r > second_r[i]:
                second[i], second_r[i] = c, r
            bar = min(keep, second_r[i])
            if r > below_r[c]:
                below_second[c], below_second_r[c], below[c], below_r[c] = below[c], below_r[c], p, r
            elif r > below_second_r[c]:
                below_second[c], below_second_r[c] = p, r
            if r >= keep:
                if pairs == room:
                    room *= 2
                    parents = np.append(parents, np.empty(pairs, np.int32))
                    children = np.append(children, np.empty(pairs, np.int32))
                    found = np.append(found, np.empty(pairs, np.float32))
                parents[pairs], children[pairs], found[pairs] = p, c, r
                pairs += 1
    return (
        parents[:pairs], children[:pairs], found[:pairs], best, best_r, second, second_r,
        below, below_r, below_second, below_second_r,
    )  # fmt: skip


@njit(nogil=True, cache=True)
def _nobody(size: int) -> Any:
    """Make room for the best two partners of `size` latents."""
    none = np.float32(NONE)
    return np.full(size, -1, np.int32), np.full(size, none), np.full(size, -1, np.int32), np.full(size, none)


@njit(nogil=True, cache=True)
def _finish_row(sums: Any, total: float, inverse: float, mean: Any, child_inverse: Any, row: Any) -> None:
    """Turn Σab into r, and clear it. Apart from the search for the best, so that it is compiled to vectors."""
    for c in range(row.size):
        exact = (sums[c] - total * mean[c]) * inverse * child_inverse[c]
        partners = (sums[c] > 0) & (child_inverse[c] > 0)
        row[c] = np.float32(min(1.0, max(-1.0, exact))) if partners else np.float32(NONE)
        sums[c] = 0


@njit(nogil=True, cache=True)
def _merge_best(
    best: Any, best_r: Any, second: Any, second_r: Any,
    next_best: Any, next_r: Any, next_second: Any, next_second_r: Any,
) -> None:  # fmt: skip
    """Fold the best partners among later latents into those among earlier ones."""
    for c in range(best.size):
        for index, r in ((next_best[c], next_r[c]), (next_second[c], next_second_r[c])):
            if r > best_r[c]:
                second[c], second_r[c], best[c], best_r[c] = best[c], best_r[c], index, r
            elif r > second_r[c]:
                second[c], second_r[c] = index, r
