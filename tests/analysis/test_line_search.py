"""The line search: roots that are known, ends, sides, the division of the data, and how sure α is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import quadratic

from deltasmith.analysis.line_search import line_search
from deltasmith.errors import InterruptedRunError, RefusedError


@dataclass
class Curve:
    """A loss in one dimension; chunk i is shifted by `shifts[i]` along the line and weighs `counts[i]`."""

    loss: np.polynomial.Polynomial
    shifts: np.ndarray
    counts: np.ndarray
    at: float = 0.0
    visited: list[float] = field(default_factory=list)
    names: tuple[str, ...] = ("w",)

    def move(self, t: float) -> None:
        self.at = t
        self.visited.append(t)

    def losses(self) -> np.ndarray:
        return np.asarray(self.loss(self.at - self.shifts))

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.losses(), np.asarray(self.loss.deriv()(self.at - self.shifts))[:, None]


def curve(*coefficients: float, shifts: tuple[float, ...] = (0.0,) * 4) -> Curve:
    return Curve(np.polynomial.Polynomial(coefficients), np.array(shifts), np.ones(len(shifts)))


def bowl(bottom: float, steep: float = 2.0) -> Curve:
    return curve(steep * bottom**2, -2 * steep * bottom, steep)


@settings(max_examples=40)
@given(st.floats(-0.95, 0.95), st.floats(0.01, 100))
def test_the_bottom_of_a_parabola_is_found_at_once(bottom: float, steep: float) -> None:
    objective = bowl(bottom, steep)
    found = line_search(objective)
    assert found.alpha == pytest.approx(bottom, abs=0.011)
    assert len(found.evaluations) <= 5
    assert objective.at == 0.0
    if abs(bottom) > 0.2:
        assert found.outcome == "minimum"
        assert found.alpha == pytest.approx(bottom, rel=1e-9)
        assert found.advises == ("extrapolate" if bottom > 0 else "interpolate")


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_slopes_far_from_linear_need_no_more_than_twelve_points(side: float) -> None:
    """A slope that is flat for long and then steep: plain secants would creep."""
    objective = curve(0.0, -0.02 * side, *([0.0] * 8), 40.0)
    objective.counts = np.array([1.0, 2.0, 3.0, 4.0])
    root = side * (0.02 / 400.0) ** (1 / 9)
    found = line_search(objective)
    assert found.outcome == "minimum"
    assert found.alpha == pytest.approx(root, abs=0.02)
    assert len(found.evaluations) <= 12


STEEP_LATE = np.polynomial.Polynomial([-1, 0, 0, 0, 1 / 0.05**4])
STEEP_EARLY = 0.8**8 - np.polynomial.Polynomial([1, -1]) ** 8


@pytest.mark.parametrize(
    ("slope", "root", "points"), [(STEEP_LATE, 0.05, 8), (STEEP_EARLY, 0.2, 10)], ids=["late", "early"]
)
def test_an_end_of_the_bracket_that_stays_counts_half(
    slope: np.polynomial.Polynomial, root: float, points: int
) -> None:
    """Without that, 10 and 14 points."""
    found = line_search(Curve(slope.integ(), np.zeros(2), np.ones(2)), evaluations=40)
    assert found.alpha == pytest.approx(root, abs=0.01)
    assert len(found.evaluations) <= points


@pytest.mark.parametrize(
    ("low", "high", "bottom", "end"), [(-1, 1, 3, 1), (-1, 1, -3, -1), (-0.25, 2, -3, -0.25)]
)
def test_the_end_is_told_where_the_slope_keeps_its_sign(
    low: float, high: float, bottom: float, end: float
) -> None:
    found = line_search(bowl(bottom), low, high)
    assert (found.alpha, found.outcome, found.interval) == (end, "end", (end, end))
    assert [e.alpha for e in found.evaluations] == [0.0, end, end / 2]


def test_a_minimum_before_a_hill_is_found_though_the_loss_falls_beyond_it() -> None:
    """Slope −, then + about the half, then − again at the end: the nearest minimum is the one."""
    slope = np.polynomial.Polynomial.fromroots([0.3, 0.8]) * -1.0
    objective = Curve(slope.integ(), np.zeros(2), np.ones(2))
    found = line_search(objective)
    assert found.alpha == pytest.approx(0.3, abs=0.02)
    assert found.outcome == "minimum"


@dataclass
class Landscape(Curve):
    """A bowl with its bottom at 0.3, and far away a plateau with another bowl in it at 113, much higher."""

    def losses(self) -> np.ndarray:
        t = self.at - self.shifts
        return 5 - 4 * np.exp(-((t - 0.3) ** 2)) - np.exp(-(((t - 113) / 40) ** 2))

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        t = self.at - self.shifts
        near, far = t - 0.3, (t - 113) / 40
        slope = 8 * near * np.exp(-(near**2)) + far / 20 * np.exp(-(far**2))
        return self.losses(), slope[:, None]


@pytest.mark.parametrize(("low", "high"), [(-100, 1000), (-1, 226), (-1, 1), (-1000, 5), (-1, 100)])
def test_a_higher_valley_far_off_is_not_mistaken_for_the_one_nearby(low: float, high: float) -> None:
    objective = Landscape(np.polynomial.Polynomial([0]), np.zeros(4), np.ones(4))
    found = line_search(objective, low, high)
    assert found.alpha == pytest.approx(0.3, abs=0.02)
    assert found.outcome == "minimum"
    assert found.interval[0] <= found.alpha <= found.interval[1]


class Kink(Curve):
    """A slope of -100 up to 0.3 and of 1 behind: nothing that a cubic would fit."""

    def losses(self) -> np.ndarray:
        t = self.at - self.shifts - 0.3
        return np.where(t < 0, -100 * t, t)

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.losses(), np.where(self.at - self.shifts < 0.3, -100.0, 1.0)[:, None]


def test_where_cubics_are_slow_the_bracket_is_halved() -> None:
    """Without that, 16 points."""
    found = line_search(Kink(np.polynomial.Polynomial([0]), np.zeros(4), np.ones(4)), evaluations=40)
    assert found.alpha == pytest.approx(0.3, abs=0.02)
    assert len(found.evaluations) <= 11


@settings(max_examples=60)
@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=7),
    st.floats(-3, 0),
    st.floats(0.1, 3),
    st.integers(3, 14),
)
def test_nothing_worse_than_what_was_seen_is_chosen(
    coefficients: list[float], low: float, high: float, evaluations: int
) -> None:
    found = line_search(curve(*coefficients), low, high, evaluations=evaluations)
    chosen = next(e for e in found.evaluations if e.alpha == found.alpha)
    assert chosen.search_loss == min(e.search_loss for e in found.evaluations)
    assert len(found.evaluations) <= max(3, evaluations)
    assert found.interval[0] <= found.alpha <= found.interval[1]


def test_what_is_not_shown_to_help_is_not_advised() -> None:
    """The half searched on has its bottom at 0.3, the half held out at 0 or thereabouts."""
    noise = np.random.default_rng(3).normal(0, 0.05, 40)
    shifts = np.where(np.arange(40) % 2 == 0, 0.3, 0.0) + noise
    worse = line_search(curve(0.0, 0.0, 1.0, shifts=tuple(shifts)))
    assert worse.alpha == pytest.approx(0.3, abs=0.05)
    assert (worse.helps, worse.advises) == (False, "stay")
    assert worse.measured > 0
    plain = worse.as_json()
    assert (plain["helps"], plain["advises"], plain["alpha"]) == (False, "stay", worse.alpha)
    better = line_search(curve(0.0, 0.0, 1.0, shifts=tuple(0.3 + noise)))
    assert (better.helps, better.advises) == (True, "extrapolate")
    single = line_search(curve(0.0, 0.0, 1.0, shifts=(0.3, 0.3)))
    assert (single.measured_interval, single.helps, single.advises) == (None, False, "stay")


def test_there_may_be_nowhere_to_go() -> None:
    found = line_search(bowl(-0.5), 0.0, 1.0)  # it says interpolate, and the range does not let it
    assert (found.alpha, found.outcome, found.advises) == (0.0, "start", "stay")
    flat = line_search(curve(1.0))
    assert (flat.alpha, flat.outcome, flat.predicted, flat.measured) == (0.0, "minimum", 0.0, 0.0)


def test_even_chunks_are_searched_on_and_odd_ones_held_out() -> None:
    objective = curve(0.0, 0.0, 1.0, shifts=(0.2, 0.8, 0.4, 0.8))
    objective.counts = np.array([3.0, 1.0, 1.0, 1.0])
    found = line_search(objective)
    assert found.alpha == pytest.approx((3 * 0.2 + 0.4) / 4, rel=1e-9)
    assert found.evaluations[0].slope == pytest.approx(-0.5)
    assert found.evaluations[0].search_loss == pytest.approx((3 * 0.04 + 0.16) / 4)
    assert found.evaluations[0].held_out_loss == pytest.approx(0.64)
    assert found.measured == pytest.approx((0.25 - 0.8) ** 2 - 0.64)
    assert found.predicted == pytest.approx(
        -(0.25**2)
    )  # of the half searched on; a parabola is integrated exactly


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_on_a_quadratic_the_prediction_is_the_change_of_the_half_searched_on(seed: int) -> None:
    found = line_search(quadratic(seed, positive=True), -2.0, 2.0)
    start = found.evaluations[0].search_loss
    chosen = next(e for e in found.evaluations if e.alpha == found.alpha)
    assert found.predicted == pytest.approx(chosen.search_loss - start, rel=1e-8, abs=1e-10)
    assert chosen.search_loss <= start


def test_the_interval_is_that_of_the_roots_of_resampled_chunks() -> None:
    """Parabolas of one width: the root is the mean of the bottoms, and its interval that of a mean."""
    shifts = np.random.default_rng(0).normal(0.5, 0.1, 200)
    found = line_search(curve(0.0, 0.0, 1.0, shifts=tuple(shifts)))
    searched = shifts[0::2]
    error = searched.std() / 10
    assert found.interval_from == "resampling"
    assert found.interval[0] == pytest.approx(searched.mean() - 1.96 * error, abs=0.25 * error)
    assert found.interval[1] == pytest.approx(searched.mean() + 1.96 * error, abs=0.25 * error)
    assert found.measured_interval is not None
    assert found.measured_interval[0] < found.measured < found.measured_interval[1]


def test_a_sign_at_zero_that_is_not_settled_shows_in_the_interval() -> None:
    shifts = np.random.default_rng(1).normal(0.02, 0.5, 40)
    shifts[0::2] += 0.01 - shifts[0::2].mean()
    found = line_search(curve(0.0, 0.0, 1.0, shifts=tuple(shifts)))
    assert found.interval[0] == 0.0
    assert found.interval[1] > 0.05


def test_one_chunk_to_search_on_leaves_the_bracket() -> None:
    found = line_search(curve(0.0, -0.3, 0.0, 1.0, shifts=(0.0, 0.0)))
    assert found.interval_from == "bracket"
    assert found.interval[0] <= found.alpha <= found.interval[1]
    assert found.interval[0] <= 0.1**0.5 <= found.interval[1]
    assert found.measured_interval is None
    json.dumps(found.as_json())


def test_the_result_as_plain_data() -> None:
    plain = line_search(bowl(0.3)).as_json()
    assert plain["advises"] == "extrapolate"
    assert plain["evaluations"][0] == {
        "alpha": 0.0,
        "slope": pytest.approx(-1.2),
        "search_loss": pytest.approx(0.18),
        "held_out_loss": pytest.approx(0.18),
    }
    assert json.loads(json.dumps(plain))["interval"] == pytest.approx([0.3, 0.3])


def test_the_number_of_points_is_bounded() -> None:
    objective = curve(0.0, -0.02, *([0.0] * 8), 40.0)
    assert len(line_search(objective, evaluations=4).evaluations) == 4


@pytest.mark.parametrize(
    ("low", "high", "evaluations"), [(0.1, 1, 12), (-1, -0.1, 12), (0, 0, 12), (-1, 1, 2)]
)
def test_impossible_ranges_are_refused(low: float, high: float, evaluations: int) -> None:
    with pytest.raises(ValueError, match="cannot search"):
        line_search(bowl(0.5), low, high, evaluations=evaluations)


def test_one_chunk_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"at least two chunks.*--batch"):
        line_search(curve(0.0, 1.0, shifts=(0.0,)))


def test_a_loss_that_is_not_finite_is_refused_and_the_objective_goes_back() -> None:
    class Broken(Curve):
        def losses(self) -> np.ndarray:
            found = super().losses()
            found[3] = np.nan if self.at > 0.5 else found[3]
            return found

    whole = bowl(2.0)
    objective = Broken(whole.loss, whole.shifts, whole.counts)
    with pytest.raises(RefusedError, match=r"chunk 3 of the data.*not finite at 1 times the delta"):
        line_search(objective)
    assert objective.at == 0.0


def test_an_interruption_is_heard() -> None:
    objective = bowl(0.5)
    with pytest.raises(InterruptedRunError):
        line_search(objective, asked=lambda: len(objective.visited) == 2)
    assert objective.visited == [0.0, 1.0, 0.0]
