"""A rebuilt figure is held against where one more training run would lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from deltasmith.errors import RefusedError, VerificationError
from deltasmith.lab.check import compare_cells, refuse_strangers
from deltasmith.lab.rows import Results, Row


def results(shares: Sequence[float], n: int = 300, method: str = "ties") -> Results:
    """Return one cell with the given shares right under training seeds 0, 1, …"""
    rows = []
    for seed, share in enumerate(shares):
        marks = np.arange(n) < round(share * n)
        rows.append(
            Row({"train_seed": seed, "mask_seed": 0, "regime": "small", "method": method}, "math", marks)
        )
    return Results("merges", {}, tuple(rows))


def inside(committed: Sequence[float], found: float) -> bool:
    (cell,) = compare_cells({"merges": results(committed)}, {"merges": results([found])})
    return cell.inside


def test_a_figure_between_the_committed_ones_is_inside() -> None:
    assert inside((0.7, 0.75, 0.8), 0.76)


def test_a_figure_far_from_them_is_outside() -> None:
    assert not inside((0.7, 0.71, 0.72), 0.4)
    assert not inside((0.0, 0.0, 0.0), 0.2)


def test_training_seeds_that_differ_widen_the_interval() -> None:
    assert not inside((0.5, 0.5, 0.5), 0.75)
    assert inside((0.4, 0.5, 0.6), 0.75)


def test_the_interval_is_the_formulas() -> None:
    committed = (0.4, 0.5, 0.6)
    (cell,) = compare_cells({"merges": results(committed)}, {"merges": results([0.5])})
    half = 4.303 * np.std(committed, ddof=1) * np.sqrt(4 / 3)
    assert (cell.low, cell.high) == pytest.approx((100 * (0.5 - half), 100 * (0.5 + half)))


def test_a_figure_that_is_not_in_the_tables_is_refused() -> None:
    with pytest.raises(RefusedError, match="have no figure small dare math"):
        compare_cells({"merges": results((0.5, 0.5))}, {"merges": results([0.5], method="dare")})


def test_more_strangers_than_intervals_allow_fail() -> None:
    good = compare_cells({"merges": results((0.7, 0.75, 0.8))}, {"merges": results([0.76])})
    bad = compare_cells({"merges": results((0.7, 0.71, 0.72))}, {"merges": results([0.1])})
    refuse_strangers(good * 19 + bad)
    with pytest.raises(VerificationError, match="2 of 20 figures"):
        refuse_strangers(good * 18 + bad * 2)
