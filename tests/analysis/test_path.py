"""Walking a path: exactness of the rules on quadratics, sums over chunks, refusals and interruptions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import Quadratic, quadratic

from deltasmith.analysis.path import walk
from deltasmith.analysis.rules import Grid
from deltasmith.errors import InterruptedRunError, RefusedError


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_on_a_quadratic_the_left_rule_errs_by_a_known_amount_and_the_others_do_not(
    seed: int, steps: int
) -> None:
    objective = quadratic(seed)
    grids = {rule: Grid(rule, steps) for rule in ("left", "midpoint", "trapezoid")}
    path = walk(objective, grids.values())
    d = objective.direction
    bend = float(d @ objective.hessian @ d)
    exact = objective.exact(1.0)
    scale = 1e-12 * (1 + abs(exact) + abs(bend) + np.abs(objective.linear).sum())
    assert path.measured == pytest.approx(exact, abs=scale)
    assert path.predicted(grids["left"]) - exact == pytest.approx(-bend / (2 * steps), abs=scale)
    assert path.predicted(grids["midpoint"]) == pytest.approx(exact, abs=scale)
    assert path.predicted(grids["trapezoid"]) == pytest.approx(exact, abs=scale)


def test_contributions_are_the_parts_of_each_tensor() -> None:
    """Each tensor's part, from the closed form: its own share of g·d at the middle of the path."""
    objective = quadratic(3)
    grid = Grid("midpoint", 1)
    middle = objective.start + 0.5 * objective.direction
    linear = objective.counts @ objective.linear / objective.counts.sum()
    parts = (objective.hessian @ middle + linear) * objective.direction
    expected = {"a": parts[:2].sum(), "b": parts[2], "c": parts[3:].sum()}
    path = walk(objective, [grid])
    assert path.contributions(grid) == pytest.approx(expected, rel=1e-12)
    assert path.predicted(grid) == pytest.approx(sum(expected.values()), rel=1e-12)


def test_chunks_count_by_their_tokens() -> None:
    objective = quadratic(4, chunks=2)
    objective.counts = np.array([1.0, 3.0])
    path = walk(objective, [Grid("left", 1)])
    a, b = path.measured_chunks()
    assert path.measured == pytest.approx((a + 3 * b) / 4, rel=1e-12)


def test_the_same_points_and_data_serve_all_grids_and_the_walk_ends_at_the_start() -> None:
    objective = quadratic(5)
    said: list[tuple[int, int]] = []
    grids = [Grid("left", 5), Grid("trapezoid", 5), Grid("midpoint", 5)]
    path = walk(objective, grids, say=lambda done, of: said.append((done, of)))
    assert objective.visited == [*sorted(float(t) for t in path.points), 0.0]
    assert len(path.points) == 11
    assert said == [(i + 1, 11) for i in range(11)]


def test_no_slope_is_taken_where_only_the_loss_is_wanted() -> None:
    path = walk(quadratic(6), [Grid("midpoint", 2)])
    assert [str(t) for t, point in path.points.items() if point.slopes is None] == ["0", "1"]
    assert path.loss(Fraction(1)) - path.loss(Fraction(0)) == pytest.approx(path.measured)


class _Broken(Quadratic):
    """A chunk whose loss, or a tensor whose slope, is not finite beyond a point."""

    loss_from: float = np.inf
    slope_from: float = np.inf

    def losses(self) -> np.ndarray:
        found = super().losses()
        found[2] = np.inf if self.at >= self.loss_from else found[2]
        return found

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        losses, slopes = super().slopes()
        slopes[1, 1] = np.nan if self.at >= self.slope_from else slopes[1, 1]
        return losses, slopes


def _broken(**from_where: float) -> _Broken:
    whole = quadratic(7)
    broken = _Broken(whole.hessians, whole.linear, whole.start, whole.direction, whole.counts)
    for name, value in from_where.items():
        setattr(broken, name, value)
    return broken


def test_a_loss_that_is_not_finite_is_refused_with_its_chunk_and_place() -> None:
    objective = _broken(loss_from=0.5)
    with pytest.raises(RefusedError, match=r"loss of chunk 2 of the data is not finite at 0\.6 of the path"):
        walk(objective, [Grid("left", 5)])
    assert objective.at == 0.0


def test_a_slope_that_is_not_finite_is_refused_with_its_tensor() -> None:
    with pytest.raises(RefusedError, match=r"gradient is not finite at 0\.4 of the path in b"):
        walk(_broken(slope_from=0.3), [Grid("left", 5)])


def test_an_interrupted_walk_stops_at_the_next_point_and_goes_back() -> None:
    objective = quadratic(8)
    with pytest.raises(InterruptedRunError):
        walk(objective, [Grid("left", 5)], asked=lambda: len(objective.visited) == 2)
    assert objective.visited == [0.0, 0.2, 0.0]
