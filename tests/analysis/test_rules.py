"""Riemann rules: where their points lie, what they weigh, and which polynomials they integrate exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.analysis.rules import RECORDS, RULES, Grid, Rule, points_of

GRIDS = st.builds(Grid, st.sampled_from(RULES), st.integers(1, 40))


@given(GRIDS)
def test_weights_add_up_to_one_at_points_of_the_path(grid: Grid) -> None:
    assert sum(grid.weights.values()) == 1
    assert all(0 <= t <= 1 and w > 0 for t, w in grid.weights.items())
    assert len(grid.weights) - grid.steps in (0, 1)


@given(GRIDS)
def test_the_integral_of_t_is_a_half_where_a_rule_is_exact(grid: Grid) -> None:
    """A quadratic loss has a slope linear in t: this is the whole of the paper's rule and its error."""
    integral = sum(t * w for t, w in grid.weights.items())
    assert (integral == Fraction(1, 2)) == RECORDS[grid.rule].exact


def test_every_rule_has_all_of_it() -> None:
    """One record is all that a rule needs: choices, order of trust and looks follow."""
    assert get_args(Rule) == RULES
    assert [record.name for record in RECORDS.values()] == list(RULES)
    assert sorted(record.trust for record in RECORDS.values()) == list(range(1, len(RULES) + 1))
    by_trust = sorted(RECORDS.values(), key=lambda record: record.trust)
    assert [record.exact for record in by_trust] == sorted((r.exact for r in by_trust), reverse=True)


def test_the_left_rule_misses_a_part_in_twice_its_steps() -> None:
    for steps in (1, 5, 40):
        integral = sum(t * w for t, w in Grid("left", steps).weights.items())
        assert integral == Fraction(1, 2) - Fraction(1, 2 * steps)


def test_the_papers_rule_takes_its_five_gradients_from_the_start_on() -> None:
    assert [float(t) for t in Grid("left", 5).weights] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert set(Grid("left", 5).weights.values()) == {Fraction(1, 5)}


@given(st.lists(GRIDS, max_size=5))
def test_points_come_once_each_and_in_order(grids: list[Grid]) -> None:
    points = points_of(grids)
    assert list(points) == sorted(set(points))
    assert set(points) == {t for grid in grids for t in grid.weights}


def test_grids_share_points() -> None:
    assert len(points_of([Grid("left", 5), Grid("trapezoid", 5)])) == 6
    assert (
        len(points_of([Grid("left", 10), Grid("midpoint", 5)])) == 10
    )  # exact: 1/10 of one is 1/10 of the other


@pytest.mark.parametrize(("rule", "steps"), [("left", 0), ("left", -1), ("right", 5)])
def test_what_is_no_grid_is_refused(rule: str, steps: int) -> None:
    with pytest.raises(ValueError, match="no such grid"):
        Grid(rule, steps)  # type: ignore[arg-type]
