"""The factor search: the released visits, the repaired climb, and scores from a command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.planning.dppa_search import (
    Visit,
    best_of,
    command_score,
    retention,
    search,
    search_as_released,
)
from golden_cases import assert_close, cases


@pytest.mark.parametrize("case", cases("dppa_search", "authors"), ids=str)
def test_released_visits(case):
    p, stored = case.params, case.arrays

    def score(factors):
        r9, r8 = (float(f"{factor:.1f}") for factor in factors)
        first = 0.6 - 0.1 * (r9 - p["c9"]) ** 2 - 0.05 * (r8 - p["c8"]) ** 2
        second = 0.13 - 0.02 * (r9 - p["c9"] - 0.05) ** 2 - 0.01 * (r8 - p["c8"]) ** 2
        return retention([first, second], [p["dense1"], p["dense2"]])

    visits = list(search_as_released(score, (p["start_r9"], p["start_r8"]), p["step"]))
    assert_close([v.factors for v in visits], stored["expected_visited"], case)
    assert [v.score is not None for v in visits] == (stored["expected_is_eval"] == 1).tolist()
    assert_close([v.score or score(v.factors) for v in visits], stored["expected_f"], case)
    assert_close(visits[-1].factors, stored["expected_final"], case)
    assert_close(best_of(visits).score, stored["expected_best"], case)


def peak(*at: float):
    """Return a score with one maximum."""
    return lambda factors: 1.0 - sum((f - a) ** 2 for f, a in zip(factors, at, strict=True))


def test_visits_by_hand():
    visits = [v.factors for v in search(peak(1.9, 0.1), (1.8, 0.0))]
    assert visits == [(1.8, 0.0), (1.9, 0.0), (2.0, 0.0), (1.9, 0.1), (1.9, 0.2)]


@pytest.mark.parametrize("at", [(2.1, 0.3), (1.2, 2.0), (0.0, 0.0), (1.4, 1.3), (3.0, 0.7)])
def test_finds_the_maximum_from_either_side(at):
    best = best_of(list(search(peak(*at), (1.8, 0.5))))
    np.testing.assert_allclose(best.factors, at, atol=1e-9)


def test_a_move_that_does_not_help_is_undone():
    # The released loop jumps from 0 to 1 on the second factor and stays there although 0 was better.
    score = peak(1.8, 0.0)
    assert list(search_as_released(score, (1.8, 0.0)))[-1].factors == pytest.approx((1.8, 1.0))
    assert best_of(list(search(score, (1.8, 0.0)))).factors == (1.8, 0.0)


def test_factors_stay_in_range():
    rising = [v.factors for v in search(lambda f: f[0], (0.8,), step=0.5, most=2.0)]
    assert rising == [(0.8,), (1.3,), (1.8,)]
    falling = [v.factors for v in search(lambda f: -f[0], (0.2,), step=0.1)]
    assert falling == [(0.2,), (0.3,), (0.1,), (0.0,)]


def test_a_flat_score_ends_at_the_start():
    visits = list(search(lambda factors: 0.0, (1.0, 1.0)))
    assert len(visits) == 5
    assert best_of(visits) == Visit((1.0, 1.0), 0.0)


def test_retention():
    assert retention([0.5, 0.2], [0.5, 0.2]) == 1.0
    assert retention([0.25, 0.2], [0.5, 0.1]) == pytest.approx(1.0)
    assert retention([-0.1, 0.2], [0.5, 0.1]) == 0.0


def running(code: str):
    return command_score([sys.executable, "-c", code], lambda factors: Path(f"/models/{factors[0]}"))


def test_command_gets_the_folder_and_prints_the_score():
    score = running("import sys; print('loading'); print(sys.argv[1].rpartition('/')[2]); print()")
    assert score((1.5,)) == 1.5


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("print('nan')", "the last line of the score command is 'nan', not a finite number"),
        ("print('0.5 %')", "the last line of the score command is '0.5 %', not a finite number"),
        ("pass", "the last line of the score command is '', not a finite number"),
        ("print(1.0); raise SystemExit(3)", "the score command ended with exit code 3"),
    ],
)
def test_commands_that_give_no_score_are_refused(code, says):
    with pytest.raises(RefusedError) as refused:
        running(code)((1.0,))
    assert str(refused.value).startswith(f"{says} in {sys.executable} -c")
    assert refused.value.exit_code == 1


def test_a_missing_command_is_a_recipe_error():
    with pytest.raises(RecipeError, match="cannot be started"):
        command_score(["/nonexistent/scorer"], lambda factors: Path())((1.0,))
