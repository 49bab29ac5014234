"""Intervals and tests for scores on the same items: paired, nested in seeds, corrected for many comparisons.

Every interval is a percentile bootstrap, except that of one model's 0/1 scores (`wilson`). Where all scores are
0 or 1 the bootstrap draws from lightly smoothed counts: otherwise 200 right of 200 would claim no uncertainty.
Reading results and wording verdicts are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deltasmith.evaluate.resampling import (
    NOTHING,
    Groups,
    Items,
    Layout,
    arrange,
    binary,
    draw,
    even,
    normal_quantile,
    observed,
    percentiles,
    vector,
)
from deltasmith.evaluate.task import Average

__all__ = [
    "Difference",
    "Groups",
    "Items",
    "bootstrap_interval",
    "holm",
    "macro_difference",
    "macro_interval",
    "nested_difference",
    "nested_interval",
    "nested_paired_interval",
    "paired_difference",
    "paired_interval",
    "sign_test",
    "wilson",
]


@dataclass(frozen=True, slots=True)
class Difference:
    """Hold the difference of two methods, its interval, and a two-sided p-value of "no difference".

    The interval is NaN where nothing can be said of it: one item, or scores other than 0 and 1 that all differ
    by the same.
    """

    estimate: float
    interval: tuple[float, float]
    p_value: float


def wilson(right: float, of: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a proportion, `right` of `of`, within [0, 1]; NaN for none of none.

    Unlike the bootstrap's it keeps its width at 0 and at 1. Paper: Wilson 1927, "Probable inference, the law of
    succession, and statistical inference", J. Am. Stat. Assoc. 22.
    """
    if of <= 0:
        return NOTHING
    z, p = normal_quantile(level), right / of
    centre, spread = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    low, high = ((centre + sign * spread) / (1 + z * z / of) for sign in (-1, 1))
    return (0.0 if p == 0 else max(0.0, low)), (1.0 if p == 1 else min(1.0, high))


def bootstrap_interval(
    scores: ArrayLike,
    weights: ArrayLike,
    average: Average,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return an interval of one model's average over items like these.

    Scores that are all 0 or 1 get Wilson's interval, of Kish's effective number of items (Σw)²/Σw² where the
    weights differ. Others get the percentile bootstrap over items; of `perplexity` the ends are exponentials.
    Items of weight 0 do not count. NaN for no items, and for one item or equal scores that are not 0 or 1: they
    say nothing about their spread.
    """
    sample, used = vector(scores), vector(weights)
    if average == "mean" and sample.size and binary(sample):
        total, square = float(used.sum()), float(used @ used)
        size = total * total / square if square else 0.0
        return wilson(size * float(sample @ used) / total, size, level=level) if total else NOTHING
    return nested_interval([[sample]], average, weights=[used], level=level, resamples=resamples, seed=seed)


def paired_interval(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike,
    average: Average,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of average(a) − average(b) when both answer the same resampled items."""
    return paired_difference(a, b, weights, average, level=level, resamples=resamples, seed=seed).interval


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike,
    average: Average,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two models on the same items: average(a) − average(b), interval, and p.

    p is the exact McNemar test (`sign_test` on the items one has right and the other wrong) for 0/1 scores of
    equal weight. Otherwise it is twice the smaller share of resamples on either side of zero, but never below
    2^(1−n) of the n items that differ: no test on so few signs could give less.
    """
    left, right, used = vector(a), vector(b), vector(weights)
    found = nested_difference(
        [[left]], [[right]], average, weights=[used], level=level, resamples=resamples, seed=seed
    )
    counted = used > 0
    wins, losses = (int(np.count_nonzero(counted & side)) for side in (left > right, left < right))
    if average == "mean" and even(used) and binary(left) and binary(right):
        return Difference(found.estimate, found.interval, sign_test(wins, losses))
    least = 2.0 ** (1 - wins - losses) if wins + losses else 1.0
    return Difference(found.estimate, found.interval, min(1.0, max(found.p_value, least)))


def nested_interval(
    groups: Groups,
    average: Average = "mean",
    *,
    weights: Sequence[ArrayLike] | None = None,
    items: Items = "own",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of a method's average over items nested in mask seeds nested in training seeds.

    The figure is the mean over training seeds of the mean over mask seeds of the average over items. Each
    resample draws, under each training seed, mask seeds and one set of items for all of them. With
    items="shared" all training seeds are asked the same items, and one set serves all of them.
    `weights` holds one vector of item weights per training seed.

    What training seeds differ by beyond that is drawn from Student's t: in simulated experiments with three
    seeds that differ much, resampling the seeds covers the truth in 78 % of cases, and this in 92 to 98 %. With
    two seeds it is 86 %; with one seed (one mask seed) the interval says nothing about others.
    """
    task = [weights] if weights is not None else None
    return macro_interval(
        [groups], average, weights=task, items=items, level=level, resamples=resamples, seed=seed
    )


def nested_paired_interval(
    a: Groups,
    b: Groups,
    average: Average = "mean",
    *,
    weights: Sequence[ArrayLike] | None = None,
    items: Items = "own",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of `nested_difference`."""
    return nested_difference(
        a, b, average, weights=weights, items=items, level=level, resamples=resamples, seed=seed
    ).interval


def nested_difference(
    a: Groups,
    b: Groups,
    average: Average = "mean",
    *,
    weights: Sequence[ArrayLike] | None = None,
    items: Items = "own",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two methods on the same training seeds and items: average(a) − average(b), interval, and p.

    Both methods get the same draws of items, and training seeds are compared one by one; mask seeds are drawn
    for each method on its own, and their numbers may differ (a method without randomness has one). p is twice
    the smaller share of resamples on either side of zero, and 1 where the interval is NaN.
    """
    task = [weights] if weights is not None else None
    return macro_difference(
        [a], [b], average, weights=task, items=items, level=level, resamples=resamples, seed=seed
    )


def macro_interval(
    tasks: Sequence[Groups],
    average: Average = "mean",
    *,
    weights: Sequence[Sequence[ArrayLike]] | None = None,
    items: Items = "own",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of the mean over tasks, each counting the same.

    Like `nested_interval`, with the items of each task drawn on their own and mask seeds once for all tasks.
    Tasks have the same number of training seeds and, under one training seed, of mask seeds; for a plain
    evaluation that is one and one: `[[[scores]], …]`.
    """
    layout = arrange(tasks, None, weights, items)
    drawn = draw(layout, average, level, resamples, seed)
    return percentiles(drawn, level, _range(layout, average))


def macro_difference(
    a: Sequence[Groups],
    b: Sequence[Groups],
    average: Average = "mean",
    *,
    weights: Sequence[Sequence[ArrayLike]] | None = None,
    items: Items = "own",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two methods by their mean over tasks, paired by items and training seeds as `nested_difference`."""
    layout = arrange(a, b, weights, items)
    estimate = observed(layout, average)
    drawn = draw(layout, average, level, resamples, seed)
    interval = percentiles(drawn, level, _range(layout, average))
    if math.isnan(interval[0]):
        return Difference(estimate, interval, 1.0)
    fewer = min(int(np.count_nonzero(drawn <= 0)), int(np.count_nonzero(drawn >= 0)))
    return Difference(estimate, interval, min(1.0, 2 * (fewer + 1) / (resamples + 1)))


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of `wins` against `losses` at even odds; 1 without either.

    On 0/1 scores of two models this is the exact McNemar test: wins are the items only the first has right.
    """
    n, fewer = wins + losses, min(wins, losses)
    # Integers of any size: the sum is exact, and the quotient of two integers is correctly rounded.
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given.

    Calling everything below 0.05 different then errs anywhere in the whole list at most once in twenty times.
    Paper: Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _range(layout: Layout, average: Average) -> tuple[float, float]:
    """Return what a figure cannot leave: 0 and 1 for scores within them, −1 and 1 for their difference."""
    least = 0.0 if (layout.signs > 0).all() else -math.inf
    within = all(((b.values >= 0) & (b.values <= 1)).all() for task in layout.tasks for b in task)
    if average == "perplexity" or not within:
        return (least if average == "perplexity" else -math.inf), math.inf
    return max(least, -1.0), 1.0
