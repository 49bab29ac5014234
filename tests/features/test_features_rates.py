"""Shares, intervals, floors, verdicts: by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltasmith.features.outcome import Floor, Rate
from deltasmith.features.rates import (
    Persistence,
    floor_of,
    interval_of,
    rate_of,
    ratio_of,
    share_of,
    sign_test,
    verdict_of,
)
from deltasmith.features.study import Member, Quality

QUALITY = Quality(0.1, 8.0, 0.0, 3.0, 3.1, 4.0)


def member(name: str) -> Member:
    role = "again" if name.endswith("again") else "seed" if "~" in name else "model"
    return Member(name, name.partition("~")[0], role, None, QUALITY)


def kept(shares: list[float], flags: str, testable: str = "") -> Persistence:
    found = np.array([f == "1" for f in flags])
    tested = np.array([f == "1" for f in testable]) if testable else np.ones(len(flags), bool)
    return Persistence(np.array(shares), found, tested, {})


def test_shares_are_of_the_testable_features_row_by_row() -> None:
    holds = np.array([[True, True, False], [True, False, True]])
    among = np.array([[True, False, True], [True, True, True]])
    np.testing.assert_allclose(share_of(holds, among), [1 / 2, 2 / 3])
    np.testing.assert_allclose(share_of(holds, among, np.array([3, 1, 1])), [3 / 4, 4 / 5])


def test_a_share_of_nothing_is_no_number() -> None:
    shares = share_of(np.ones((2, 3), bool), np.zeros((2, 3), bool))
    assert np.isnan(shares).all()
    rate = rate_of(shares)
    assert math.isnan(rate.value)
    assert (rate.low, rate.high) == (None, None)


def test_an_interval_is_the_spread_of_the_draws_around_what_was_observed() -> None:
    drawn = np.linspace(0.5, 0.7, 201)  # mean 0.6, middle 95 % from 0.505 to 0.695
    rate = rate_of(np.array([0.4, *drawn]))
    assert rate.value == 0.4
    assert (rate.low, rate.high) == pytest.approx((0.305, 0.495))


def test_an_interval_holds_what_was_observed_and_stays_among_shares() -> None:
    assert rate_of(np.array([1.0, 0.9, 0.8, 1.0])) == Rate(1.0, pytest.approx(0.905), 1.0)
    assert rate_of(np.array([0.0, 0.0, 0.0])) == Rate(0.0, 0.0, 0.0)
    assert rate_of(np.array([0.3])) == Rate(0.3)
    assert interval_of(np.array([0.3])) is None
    skewed = interval_of(np.array([0.5, *[0.5] * 99, 1.5]))
    assert skewed is not None
    assert skewed[0] <= 0.5 <= skewed[1]


def test_a_ratio_to_nothing_is_no_number() -> None:
    np.testing.assert_array_equal(ratio_of(np.array([0.5, 0.2]), np.array([0.25, 0.0])), [2.0, np.nan])


def test_a_floor_of_the_same_model_is_compared_feature_by_feature() -> None:
    edge, floor = kept([0.4], "11000", "11111"), kept([0.8], "10111", "11111")
    found = floor_of(member("base~again"), edge, floor, "base")
    assert (found.member, found.role, found.model) == ("base~again", "again", "base")
    assert (found.fewer, found.more) == (3, 1)
    assert found.p_value == sign_test(3, 1)
    assert found.adjusted.value == 0.5


def test_features_that_were_not_tested_are_not_compared() -> None:
    edge, floor = kept([0.4], "11000", "11100"), kept([0.8], "10111", "11100")
    found = floor_of(member("base~seed1"), edge, floor, "base")
    assert (found.role, found.fewer, found.more) == ("seed", 1, 1)


def test_a_floor_of_another_model_is_compared_by_shares_alone() -> None:
    found = floor_of(member("base~again"), kept([0.6], "111"), kept([0.9], "11111"), "lua")
    assert (found.model, found.fewer, found.more, found.p_value) == ("base", 0, 0, None)
    assert found.adjusted.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("fewer", "more"), [(0, 0), (1, 0), (5, 0), (3, 3), (30, 12), (700, 650), (9000, 7000)]
)
def test_the_sign_test_equals_scipys(fewer: int, more: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(fewer, fewer + more).pvalue if fewer + more else 1.0
    assert sign_test(fewer, more) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def judged(edge: list[float], floor: list[float], p_value: float | None) -> str:
    rate = Rate(floor[0])
    found = Floor("base~again", "again", "base", rate, rate, 0, 0, p_value)
    return verdict_of(kept(edge, "1"), kept(floor, "1"), found)


EDGE, FLOOR = [0.5, 0.48, 0.52], [0.9, 0.88, 0.92]


def test_fewer_needs_the_interval_and_the_sign_test() -> None:
    assert judged(EDGE, FLOOR, 0.01) == "fewer than the floor"
    assert judged(EDGE, FLOOR, 0.05) == "no evidence that features changed"
    assert judged(EDGE, [0.51, 0.4, 0.62], 0.01) == "no evidence that features changed"
    assert judged(EDGE, FLOOR, None) == "fewer than the floor"
    assert judged(FLOOR, EDGE, 0.01) == "no evidence that features changed"


def test_without_intervals_nothing_is_said_to_have_changed() -> None:
    assert judged(EDGE[:1], FLOOR[:1], 0.01) == "no evidence that features changed"


def test_the_difference_is_judged_and_not_two_intervals() -> None:
    """Edge and floor move together: their own intervals overlap, that of the difference is far from zero."""
    edge, floor = np.linspace(0.2, 0.8, 41), np.linspace(0.25, 0.85, 41)
    assert judged([0.5, *edge], [0.55, *floor], 0.01) == "fewer than the floor"


def test_without_a_floor_there_is_no_verdict() -> None:
    assert verdict_of(kept(EDGE, "1"), None, None) == "no floor"
