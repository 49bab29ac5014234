"""Intervals, p-values and Holm's correction: by hand, against scipy, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltasmith.evaluate import resampling
from deltasmith.evaluate.statistics import (
    bootstrap_interval,
    holm,
    macro_difference,
    macro_interval,
    nested_difference,
    nested_interval,
    nested_paired_interval,
    paired_difference,
    paired_interval,
    sign_test,
    wilson,
)


def ones(n):
    return np.ones(n)


# ---- by hand


def test_wilson_by_hand():
    # Altman et al., Statistics with Confidence: 81 of 263 gives 0.2553 to 0.3662 (Newcombe 1998, table I).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(200, 200)[1] == 1.0
    assert all(math.isnan(end) for end in wilson(0, 0))


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, made monotone: .02 .03 .06 .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_test_by_hand():
    assert sign_test(4, 0) == 0.125  # 2 / 16
    assert sign_test(0, 6) == 2 / 64
    assert sign_test(1, 8) == 2 * 10 / 512
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 0) == 1.0
    assert 0 < sign_test(3000, 2000) < 1e-40  # far beyond what a float can hold of 2^5000


def test_tests_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in [(1, 0), (7, 2), (30, 45), (600, 500)]:
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    for right, of in [(3, 10), (199, 200), (50, 120)]:
        found = stats.binomtest(right, of).proportion_ci(method="wilson")
        assert wilson(right, of) == pytest.approx((found.low, found.high), abs=1e-9)


def test_the_bootstrap_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    sample = np.random.default_rng(4).exponential(1.0, 80)
    theirs = stats.bootstrap(
        (sample,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    ours = bootstrap_interval(sample, ones(80), "mean", resamples=20_000)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


# ---- one model


def test_all_right_does_not_mean_certain():
    low, high = bootstrap_interval(ones(200), ones(200), "mean")
    assert 0.97 < low < 0.99
    assert high == 1.0
    assert nested_interval(np.ones((3, 5, 200)))[0] < 0.995
    assert macro_interval([[[ones(50)]], [[ones(50)]]])[0] < 0.99


def test_uneven_weights_count_as_fewer_items():
    scores, weights = np.tile([1.0, 0.0], 50), np.tile([3.0, 3.0, 1.0, 1.0], 25)
    size = weights.sum() ** 2 / (weights**2).sum()
    assert bootstrap_interval(scores, weights, "mean") == pytest.approx(wilson(size / 2, size))


def test_perplexity_is_the_exponential_of_the_loss():
    losses, weights = np.random.default_rng(1).normal(2, 0.5, 60), np.arange(1.0, 61.0)
    low, high = bootstrap_interval(losses, weights, "mean")
    assert bootstrap_interval(losses, weights, "perplexity") == pytest.approx((math.exp(low), math.exp(high)))
    assert low < np.average(losses, weights=weights) < high


def test_what_shows_no_spread_gets_no_interval():
    for scores in ([0.3], [0.3, 0.3, 0.3], []):
        assert all(math.isnan(e) for e in bootstrap_interval(scores, np.ones(len(scores)), "mean"))
    assert all(math.isnan(e) for e in bootstrap_interval([2.5], [7.0], "perplexity"))
    assert bootstrap_interval([1.0], [1.0], "mean") == pytest.approx((0.2065, 1.0), abs=5e-5)


def test_items_of_weight_zero_do_not_count():
    kept = bootstrap_interval([0.1, 0.7, 0.4], [1, 2, 1], "mean")
    assert bootstrap_interval([0.1, 9.0, 0.7, 0.4], [1, 0, 2, 1], "mean") == kept


# ---- two models


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 1, 200)
    a, b = hard + rng.normal(0.1, 0.1, 200), hard + rng.normal(0, 0.1, 200)
    low, high = paired_interval(a, b, ones(200), "mean")
    assert 0 < low < 0.1 < high < 0.15


def test_few_disagreements_are_no_difference():
    def pair(wins):
        return paired_difference([1.0] * wins + [0.0] * (200 - wins), np.zeros(200), ones(200), "mean")

    assert pair(4).interval[0] <= 0
    assert pair(4).p_value == 0.125
    assert pair(7).interval[0] > 0
    low, high = pair(0).interval
    assert low < 0 < high


def test_swapping_the_models_swaps_the_signs():
    rng = np.random.default_rng(8)
    a, b, w = rng.exponential(1, 90), rng.exponential(1, 90), rng.integers(1, 5, 90)
    one, other = paired_difference(a, b, w, "perplexity"), paired_difference(b, a, w, "perplexity")
    assert one.estimate == pytest.approx(-other.estimate)
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=0.05)


def test_the_estimate_is_the_difference_of_averages():
    found = paired_difference([1.0, 2.0], [0.5, 1.0], [1.0, 3.0], "perplexity")
    assert found.estimate == pytest.approx(math.exp(1.75) - math.exp(0.875))


def test_few_items_give_no_small_p():
    found = paired_difference([0.5, 0.6, 0.8], [0.1, 0.3, 0.2], ones(3), "mean")
    assert found.p_value == 0.25  # three signs
    assert paired_difference([0.5], [0.1], [1.0], "mean").p_value == 1.0


def test_a_constant_shift_shows_no_spread():
    found = paired_difference([0.5, 0.25], [0.25, 0.0], ones(2), "mean")
    assert found.estimate == 0.25
    assert all(math.isnan(end) for end in found.interval)
    assert found.p_value == 1.0


# ---- nested


def test_one_seed_is_the_plain_case():
    rng = np.random.default_rng(3)
    a, b = rng.random(40), rng.random(40)
    assert nested_paired_interval([[a]], [[b]]) == paired_interval(a, b, ones(40), "mean")
    assert macro_interval([[[a]]]) == bootstrap_interval(a, ones(40), "mean")


def test_the_nested_estimate_counts_every_level_the_same():
    a = [[[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]]  # seeds: 0.5 and 0.25
    b = [[[0.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]  # 0.5 and 0
    assert nested_difference(a, b).estimate == pytest.approx(0.125)
    tasks = [[[[1.0, 1.0]], [[0.0, 0.0]]], [[[1.0, 0.0]], [[1.0, 1.0]]]]
    zero = [[[[0.0, 0.0]]] * 2] * 2
    assert macro_difference(tasks, zero).estimate == pytest.approx((0.5 + 0.75) / 2)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(6)
    items = rng.normal(0, 0.1, (3, 1, 100))

    def width(groups):
        low, high = nested_interval(groups + 5.0)
        return high - low

    assert width(items + np.array([0.0, 1.0, 2.0]).reshape(3, 1, 1)) > 5 * width(items)
    masks = items + np.linspace(0, 1, 4).reshape(1, 4, 1)
    assert width(masks) > 3 * width(items)


def test_mask_seeds_vary_as_a_mean_of_them_does():
    offsets = np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    groups = offsets.reshape(1, 5, 1) + np.zeros((1, 5, 20)) + 5.0
    low, high = nested_interval(groups, level=0.68269, resamples=20_000)  # one standard error to either side
    assert (high - low) / 2 == pytest.approx(offsets.std(ddof=1) / math.sqrt(5), rel=0.15)


def test_shared_items_vary_together():
    rng = np.random.default_rng(7)
    groups = np.broadcast_to(rng.normal(5, 1, (1, 1, 100)), (3, 1, 100)) + rng.normal(0, 0.01, (3, 1, 100))

    def width(items):
        low, high = nested_interval(groups, items=items)
        return high - low

    assert width("shared") == pytest.approx(math.sqrt(3) * width("own"), rel=0.1)


def test_many_small_tasks_are_not_drawn_towards_a_half():
    scores = [[np.arange(16.0) < 13]] * 1
    low, high = macro_interval([scores] * 10)
    assert (low, high) == pytest.approx(wilson(130, 160), abs=0.02)


def test_shares_stay_shares():
    low, high = nested_interval(np.repeat([[[1.0]], [[0.0]], [[1.0]]], 30, axis=2))
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([[[1, 0]], [[1, 0]]], [[[1, 0]]]),  # training seeds
        ([[[1, 0]]], [[[1, 0, 1]]]),  # items
        ([[[1, 0], [1]]], [[[1, 0]]]),
        ([[]], [[]]),
        ([], []),
        ([[[1, 0]]], []),
        ([[[math.nan, 0]]], [[[1, 0]]]),
    ],
)
def test_shapes_must_agree(a, b):
    with pytest.raises(ValueError):
        nested_difference(a, b)


def test_bad_settings_are_refused():
    for options in ({"level": 1.0}, {"level": 0.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="resamples must be"):
            nested_interval([[[0.5, 0.2]]], **options)
    with pytest.raises(ValueError, match="same number and weights"):
        nested_interval([[[1, 0]], [[1, 0, 1]]], items="shared")
    with pytest.raises(ValueError, match="weight"):
        nested_interval([[[1, 0]]], weights=[[1, -1]])


def test_the_same_seed_gives_the_same_interval_in_any_chunks(monkeypatch):
    rng = np.random.default_rng(9)
    scores, weights = rng.random(300), rng.integers(1, 9, 300)  # more distinct items than are counted
    first = bootstrap_interval(scores, weights, "mean", resamples=500, seed=3)
    assert first == bootstrap_interval(scores, weights, "mean", resamples=500, seed=3)
    assert first != bootstrap_interval(scores, weights, "mean", resamples=500, seed=4)
    monkeypatch.setattr(resampling, "_CELLS", 1)
    assert bootstrap_interval(scores, weights, "mean", resamples=500, seed=3) == pytest.approx(first)


def test_counting_and_drawing_agree(monkeypatch):
    scores = np.random.default_rng(10).integers(0, 4, 200) / 3
    counted = bootstrap_interval(scores, ones(200), "mean")
    monkeypatch.setattr(resampling, "_FEW", 0)
    assert bootstrap_interval(scores, ones(200), "mean") == pytest.approx(counted, abs=0.004)


# ---- coverage: how often the interval holds the truth, in simulated experiments


def covered(draw, truth, interval, count=300):
    rng = np.random.default_rng(11)
    hits = 0
    for number in range(count):
        low, high = interval(draw(rng), number)
        hits += low <= truth <= high
    return hits / count


@pytest.mark.parametrize(("p", "n"), [(0.5, 60), (0.95, 60), (0.99, 200)])
def test_coverage_of_one_model(p, n):
    share = covered(
        lambda rng: (rng.random(n) < p).astype(float),
        p,
        lambda x, _: bootstrap_interval(x, ones(n), "mean"),
    )
    assert 0.90 <= share <= 0.99


@pytest.mark.parametrize(("wins", "losses", "n"), [(0.3, 0.2, 60), (0.1, 0.1, 150), (0.03, 0.0, 150)])
def test_coverage_of_a_paired_difference(wins, losses, n):
    def draw(rng):
        u = rng.random(n)
        return (u < wins).astype(float), ((u >= wins) & (u < wins + losses)).astype(float)

    share = covered(
        draw,
        wins - losses,
        lambda x, s: paired_interval(*x, ones(n), "mean", resamples=400, seed=s),
    )
    assert 0.90 <= share <= 0.99


def test_coverage_of_a_difference_of_losses():
    def draw(rng):
        return rng.exponential(1.0, 80), rng.exponential(1.2, 80)

    share = covered(draw, -0.2, lambda x, s: paired_interval(*x, ones(80), "mean", resamples=400, seed=s))
    assert 0.90 <= share <= 0.99


@pytest.mark.parametrize("items", ["own", "shared"])
@pytest.mark.parametrize(("between", "masks", "within"), [(0.1, 0.0, 0.1), (0.02, 0.02, 0.45)])
def test_coverage_over_three_training_seeds(items, between, masks, within):
    def draw(rng):
        question = rng.normal(0, within, (1 if items == "shared" else 3, 1, 60))
        scores = 5 + rng.normal(0, between, (3, 1, 1)) + rng.normal(0, masks, (3, 3, 1)) + question
        return scores + rng.normal(0, 0.05, (3, 3, 60))

    share = covered(draw, 5.0, lambda x, s: nested_interval(x, items=items, resamples=300, seed=s), 200)
    assert 0.90 <= share <= 0.995


def test_false_alarms_are_rare():
    def p_value(rng):
        skill = rng.random(100)
        a, b = (skill + rng.normal(0, 0.3, 100) for _ in "ab")
        return paired_difference(a, b, ones(100), "mean", resamples=400, seed=1).p_value

    rng = np.random.default_rng(12)
    found = np.mean([p_value(rng) < 0.05 for _ in range(300)])
    assert 0.01 <= found <= 0.09
