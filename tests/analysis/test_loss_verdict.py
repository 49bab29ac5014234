"""Intervals by resampling chunks, the margin, and the classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltasmith.analysis.report import Estimate
from deltasmith.analysis.verdict import (
    RESAMPLES,
    default_margin,
    given_margin,
    interval,
    intervals,
    verdict,
)


def test_the_mean_is_that_of_tokens_not_of_chunks():
    values, counts = np.array([1.0, 4.0]), np.array([3.0, 1.0])
    assert interval(values, counts).value == 7 / 4


def test_two_chunks_by_hand():
    """Four resamples are equally likely: aa, ab, ba, bb, so the middle 95 % reach from a to b."""
    found = interval(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
    assert (found.low, found.high) == (1.0, 3.0)


def test_it_is_the_bootstrap_of_the_ratio():
    """Against numpy's own generator: equal up to four standard errors of 10,000 resamples' percentiles."""
    rng = np.random.default_rng(5)
    values, counts = rng.normal(size=30), rng.integers(1, 50, 30).astype(float)
    drawn = rng.integers(0, 30, (50_000, 30))
    ratios = (values * counts)[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    found = interval(values, counts, seed=3)
    spread = ratios.std()
    assert found.low == pytest.approx(np.percentile(ratios, 2.5), abs=0.12 * spread)
    assert found.high == pytest.approx(np.percentile(ratios, 97.5), abs=0.12 * spread)


def test_the_same_seed_gives_the_same_bits_and_another_others():
    values, counts = np.sin(np.arange(9.0)), np.ones(9)
    assert interval(values, counts, 1) == interval(values, counts, 1)
    assert interval(values, counts, 1).low != interval(values, counts, 2).low
    assert interval(values, counts, 1).value == interval(values, counts, 2).value


def test_quantities_share_their_resamples():
    """So the interval of predicted and measured changes is the same whatever else is resampled beside them."""
    rng = np.random.default_rng(0)
    a, b, counts = rng.normal(size=12), rng.normal(size=12), np.ones(12)
    first, second, difference = intervals(np.stack([a, b, a - b], axis=1), counts)
    for found, alone in ((first, a), (second, b), (difference, a - b)):
        wanted = interval(alone, counts)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_many_chunks_are_resampled_in_blocks_and_no_block_repeats(monkeypatch):
    """The draws of each block differ: with few of them reused, the interval would be that of few resamples."""
    import deltasmith.analysis.verdict as module

    seeds = []
    real = module.multiplicities

    def noted(chunks, seed, resamples):
        seeds.append((seed, resamples))
        return real(chunks, seed, resamples)

    monkeypatch.setattr(module, "multiplicities", noted)
    monkeypatch.setattr(module, "_ROOM", 3000 * 4)
    interval(np.arange(4.0), np.ones(4))
    assert sum(n for _, n in seeds) == RESAMPLES
    assert len({seed for seed, _ in seeds}) == len(seeds) == 4


def test_one_chunk_has_no_interval():
    found = interval(np.array([0.5]), np.array([7.0]))
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert verdict(found, 0.1) == "undecided"
    assert found.as_json() == {"value": 0.5, "low": None, "high": None}


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.011, 0.2, "decreased"),
        (0.01, 0.2, "undecided"),
        (-0.01, 0.01, "competitive"),
        (-0.0101, 0.01, "undecided"),
        (-0.01, 0.0101, "undecided"),
        (-0.2, -0.011, "improved"),
        (-0.2, -0.01, "undecided"),
        (-0.2, 0.2, "undecided"),
        (0.0, 0.0, "competitive"),
    ],
)
def test_classes(low, high, word):
    assert verdict(Estimate((low + high) / 2, low, high), 0.01) == word


def test_a_margin_of_nothing_still_knows_all_classes():
    assert verdict(Estimate(1.0, 0.5, 2.0), 0.0) == "decreased"
    assert verdict(Estimate(0.0, 0.0, 0.0), 0.0) == "competitive"


def test_margins():
    assert default_margin(1.5, None).value == 0.01
    assert default_margin(1.5, 2.5).value == pytest.approx(0.02)
    assert default_margin(1.5, 1.55).value == 0.002
    assert "only 0.0500" in default_margin(1.5, 1.55).reason
    lost = default_margin(1.5, 1.4)
    assert lost.value == 0.002
    assert "fine-tuning raised the loss on these data, by 0.1000" in lost.reason
    assert given_margin(0.0).value == 0.0
