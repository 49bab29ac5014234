"""Resample scores by training seed, mask seed and item, for one method or for two in a pair.

What is made of the draws (intervals, p-values) is in `deltasmith.evaluate.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deltasmith.evaluate.task import Average

__all__ = [
    "NOTHING",
    "Floats",
    "Groups",
    "Items",
    "Layout",
    "arrange",
    "binary",
    "draw",
    "even",
    "normal_quantile",
    "observed",
    "percentiles",
    "vector",
]

Floats = NDArray[np.float64]
_Generator = np.random.Generator  # noqa: TID251 - only its name; streams are made in `draw`
Groups = Sequence[Sequence[ArrayLike]] | NDArray[np.float64]
"""Scores by training seed, mask seed and item; a (train, mask, items) array, or ragged lists of vectors."""

Items = Literal["own", "shared"]
"""Whether each training seed is asked items of its `own`, or all are asked the same."""

_CELLS = 1 << 20  # numbers a chunk of resamples may hold: 8 MiB
_FEW = 256  # with at most so many different items, counting them is cheaper than drawing them one by one

NOTHING = (math.nan, math.nan)
"""The interval of what shows no spread."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Scores that share one draw of items; `rows` are the models' places in the layout."""

    rows: NDArray[np.int64]
    values: Floats  # (rows, items)
    weights: Floats  # (items,)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """All scores: for each model its training seed and sign (+1 first method, −1 second), for each task its blocks."""

    seeds: NDArray[np.int64]
    signs: Floats
    tasks: tuple[tuple[_Block, ...], ...]

    @property
    def trained(self) -> int:
        """Count the training seeds."""
        return int(self.seeds[-1]) + 1


def arrange(
    a: Sequence[Groups],
    b: Sequence[Groups] | None,
    weights: Sequence[Sequence[ArrayLike]] | None,
    items: Items,
) -> Layout:
    """Lay out the scores of one method, or two, task by task; ValueError where their shapes do not agree."""
    methods = (a,) if b is None else (a, b)
    if not a or len({len(method) for method in methods}) != 1:
        raise ValueError("there is no task, or the methods differ in their number")
    shapes = {
        tuple(tuple(len(masks) for masks in method[task]) for method in methods) for task in range(len(a))
    }
    counts = shapes.pop()  # of mask seeds: (methods, training seeds)
    if shapes or len({len(seeds) for seeds in counts}) != 1:
        raise ValueError("tasks and methods differ in their training seeds, or tasks in their mask seeds")
    shape = list(zip(*counts, strict=True))
    if not shape or 0 in {count for each in shape for count in each}:
        raise ValueError("each method needs at least one training seed with at least one mask seed")
    places = [
        (t, 1.0 - 2 * m) for t, each in enumerate(shape) for m, count in enumerate(each) for _ in range(count)
    ]
    seeds = np.array([t for t, _ in places], dtype=np.int64)
    tasks = []
    for task in range(len(a)):
        blocks = [
            _block(
                np.flatnonzero(seeds == t),
                [row for m in methods for row in m[task][t]],
                None if weights is None else weights[task][t],
            )
            for t in range(len(shape))
        ]
        tasks.append(tuple(blocks) if items == "own" else (_joined(blocks),))
    return Layout(seeds, np.array([sign for _, sign in places]), tuple(tasks))


def _block(rows: NDArray[np.int64], scores: Sequence[ArrayLike], weights: ArrayLike | None) -> _Block:
    vectors = [vector(one) for one in scores]
    used = np.ones(vectors[0].size) if weights is None else vector(weights)
    if {one.size for one in vectors} != {used.size} or (used < 0).any():
        raise ValueError(
            "models of one training seed need scores of the same items, and each item a weight, zero or more"
        )
    counted = used > 0
    return _Block(rows, np.stack(vectors)[:, counted], used[counted])


def _joined(blocks: Sequence[_Block]) -> _Block:
    if any(not np.array_equal(block.weights, blocks[0].weights) for block in blocks):
        raise ValueError("items shared by all training seeds need the same number and weights under each")
    return _Block(
        np.concatenate([block.rows for block in blocks]),
        np.concatenate([block.values for block in blocks]),
        blocks[0].weights,
    )


def observed(layout: Layout, average: Average) -> float:
    """Return the figure of the scores as they are: the mean over tasks, training seeds and mask seeds."""
    shares = np.array(
        [
            sign / np.count_nonzero((layout.seeds == seed) & (layout.signs == sign))
            for seed, sign in zip(layout.seeds, layout.signs, strict=True)
        ]
    )
    blocks = [block for task in layout.tasks for block in task]
    if any(not block.weights.size for block in blocks):
        return math.nan
    sums = [
        float(shares[block.rows] @ _figures(block.values @ block.weights / block.weights.sum(), average))
        for block in blocks
    ]
    return math.fsum(sums) / (layout.trained * len(layout.tasks))


def draw(layout: Layout, average: Average, level: float, resamples: int, seed: int) -> Floats:
    """Return resampled figures, (resamples,); NaN where a task has no items.

    Items and mask seeds are resampled (of m mask seeds, m − 1 are drawn, which makes their variance unbiased).
    The few training seeds are not: of three, resampling shows two thirds of the variance and none of the tails.
    Their spread beyond what items and mask seeds explain is drawn from Student's t with one degree of freedom
    less than there are seeds.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level within (0, 1), not {resamples} and {level}")
    if any(not block.weights.size for task in layout.tasks for block in task):
        return np.full(resamples, math.nan)
    generator = np.random.default_rng(seed)  # noqa: TID251 - a stream of its own, which no model depends on
    shares = _mask_shares(layout, resamples, generator)
    figures = np.zeros((layout.trained, resamples))
    for block in (block for task in layout.tasks for block in task):
        start = 0
        extra = _smoothing(block, layout.signs[block.rows], average, level, len(layout.tasks))
        for means in _item_means(block, extra, resamples, generator):
            part = slice(start, start + means.shape[1])
            for place, row in zip(block.rows, _figures(means, average), strict=True):
                figures[layout.seeds[place], part] += shares[place, part] * row
            start = part.stop
    figures /= len(layout.tasks)
    centre: Floats = figures.mean(axis=0)
    if layout.trained == 1:
        return centre
    between = float(figures.mean(axis=1).var(ddof=1))
    within = float((figures - figures.mean(axis=1, keepdims=True)).var(axis=0, ddof=1).mean())
    beyond = math.sqrt(max(0.0, between - within) / layout.trained)
    centre += beyond * generator.standard_t(layout.trained - 1, size=resamples)
    return centre


def _mask_shares(layout: Layout, resamples: int, generator: _Generator) -> Floats:
    """Draw mask seeds for each training seed and method; return each model's signed share, (rows, resamples)."""
    shares = np.zeros((layout.seeds.size, resamples))
    for seed in range(layout.trained):
        for sign in (1.0, -1.0):
            rows = np.flatnonzero((layout.seeds == seed) & (layout.signs == sign))
            if rows.size:
                drawn = max(1, rows.size - 1)
                counts = generator.multinomial(drawn, np.full(rows.size, 1 / rows.size), size=resamples)
                shares[rows] = sign * counts.T / drawn
    return shares


def _item_means(
    block: _Block, extra: tuple[Floats, Floats] | None, resamples: int, generator: _Generator
) -> Iterator[Floats]:
    """Yield the weighted means of resampled items, (rows, resamples of this chunk), within bounded memory."""
    items = block.weights.size
    columns = np.concatenate([block.values * block.weights, block.weights[None]])
    # Items with the same scores are as good as one drawn that many times more often.
    distinct, counts = np.unique(columns, axis=1, return_counts=True)
    chances = counts.astype(np.float64)
    if extra is not None:
        distinct = np.concatenate([distinct, extra[0]], axis=1)
        chances = np.concatenate([chances, extra[1]])
    counting = extra is not None or counts.size <= _FEW
    step = max(1, _CELLS // (chances.size if counting else items))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if counting:
            sums = distinct @ generator.multinomial(items, chances / chances.sum(), size=size).T
        else:
            drawn = generator.integers(items, size=(size, items)) + np.arange(size)[:, None] * items
            sums = columns @ np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items).T
        yield sums[:-1] / sums[-1]


def _smoothing(
    block: _Block, signs: Floats, average: Average, level: float, tasks: int
) -> tuple[Floats, Floats] | None:
    """Return items to add, as columns, and how many of each; None where scores are not all 0 or 1.

    They matter only near 0 and 1. Tasks share them: the mean of many tasks has a narrow interval, and items added
    to each would move it towards a half.

    One method: z²/2 right and as many wrong (Agresti and Coull 1998, "Approximate is better than 'exact'", Am.
    Stat. 52). Two: half an item in each cell of right and wrong (Agresti and Min 2005, "Simple improved
    confidence intervals for comparing matched proportions", Stat. Med. 24).
    """
    if average != "mean" or not even(block.weights) or not binary(block.values):
        return None
    alone = bool((signs > 0).all())
    cells = [(0.0, 0.0), (1.0, 1.0)] if alone else [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    each = normal_quantile(level) ** 2 / 2 if alone else 0.5
    columns = [[*np.where(signs > 0, *cell), 1.0] for cell in cells]
    return np.array(columns).T * block.weights[0], np.full(len(cells), each / tasks)


def _figures(means: Floats, average: Average) -> Floats:
    return np.exp(means) if average == "perplexity" else means


def percentiles(draws: Floats, level: float, span: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of the middle `level` of the draws, kept within `span`; NaN for draws of NaN or all alike."""
    # Resamples that never differ, up to rounding, show no spread: an interval of no width would be a lie.
    if not np.isfinite(draws).all() or np.ptp(draws) <= 1e-12 * np.abs(draws).max():
        return NOTHING
    low, high = np.clip(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]), *span)
    return float(low), float(high)


def vector(values: ArrayLike) -> Floats:
    """Return the values as a vector of float64; ValueError if they are none or not finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ValueError(f"scores and weights are finite and of one dimension, not of shape {vector.shape}")
    return vector


def binary(values: Floats) -> bool:
    """Tell whether every score is 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def even(weights: Floats) -> bool:
    """Tell whether all weights are the same."""
    return bool(weights.size) and bool((weights == weights[0]).all())


def normal_quantile(level: float) -> float:
    """Return the z that `level` of a standard normal lies within: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)
