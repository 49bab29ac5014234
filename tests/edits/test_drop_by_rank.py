"""MAGPRUNE in its three dialects: probabilities, masks, rescaling, and what is unbiased and what is not."""

from __future__ import annotations

import math

import edit_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.edits.drop import Drop
from deltasmith.edits.drop_by_rank import (
    DropByRank,
    DropByRankInclusive,
    DropByRankMatchL1,
    keep_line,
    keep_line_inclusive,
    keep_probabilities,
)
from deltasmith.kernels import drops
from deltasmith.kernels.ranks import rank_rows
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import edit_table
from deltasmith.operation.schedule import Choice, Curve, PerTensor
from golden_cases import assert_close, cases

KEYS = st.integers(0, 2**64 - 1)
EDITS = [DropByRank(density=0.6, window=0.3), DropByRankInclusive(density=0.6, window=0.3)]


def delta_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_probabilities_by_hand():
    ranks = np.arange(4, dtype=np.uint32)
    paper = keep_probabilities(ranks, keep_line(4, 0.5, 0.4))
    np.testing.assert_allclose(paper, [0.7, 0.6, 0.5, 0.4])
    inclusive = keep_probabilities(ranks, keep_line_inclusive(4, 0.5, 0.3))
    np.testing.assert_allclose(inclusive, [0.65, 0.55, 0.45, 0.35])


@settings(deadline=None)  # the first call compiles
@given(st.integers(2, 40), st.floats(0.3, 0.7), st.floats(0.0, 0.5))
def test_probabilities_equal_the_formulas(n, density, window):
    ranks = np.arange(n, dtype=np.uint32)
    for line, formula in (
        (keep_line, oracles.paper_probability),
        (keep_line_inclusive, oracles.inclusive_probability),
    ):
        expected = [formula(r, n, density, window) for r in range(n)]
        np.testing.assert_allclose(keep_probabilities(ranks, line(n, density, window)), expected, rtol=1e-12)


@settings(deadline=None)  # the first call compiles
@given(KEYS, st.integers(0, 2**33), st.integers(0, 4), st.integers(1, 40), st.sampled_from([0.0, 0.2, 0.4]))
def test_kernels_equal_their_definition(key, start, rows, width, window):
    delta = delta_of(rows, width)
    ranks, line = rank_rows(delta), keep_line(width, 0.5, window)
    p = keep_probabilities(ranks, line)
    kept = drops.drawn_by_rank(key, start, p.reshape(-1)).reshape(p.shape)
    np.testing.assert_array_equal(
        drops.drop_by_rank(delta, ranks, key, start, line), drops.rescaled(delta, kept, p.astype(np.float32))
    )
    np.testing.assert_array_equal(
        drops.mask_by_rank(delta, ranks, key, start, line), drops.rescaled(delta, kept, 1.0)
    )


@pytest.mark.parametrize(
    ("edit", "formula"),
    [(EDITS[0], oracles.paper_probability), (EDITS[1], oracles.inclusive_probability)],
)
@pytest.mark.parametrize("width", [1, 2, 7])
def test_equals_the_loop(edit, formula, width):
    delta = np.round(delta_of(5, width) * 2) / 2
    got = edit.apply(delta, Place("w", (5, width), key=99), Found())
    expected = oracles.drop_by_rank(delta.tolist(), 99, lambda r, n: formula(r, n, 0.6, 0.3))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("case", cases("della", "authors"), ids=str)
def test_released_code(case):
    arrays = {role: np.atleast_2d(array) for role, array in case.arrays.items()}  # a vector is one row
    ranks = rank_rows(arrays["delta_0"])
    line = keep_line_inclusive(ranks.shape[1], case.params["density"], case.params["window_size"])
    p, kept = keep_probabilities(ranks, line), arrays["mask_keep"] == 1
    assert_close(p, arrays["expected_keep_prob"], case)
    assert_close(drops.rescaled(arrays["delta_0"], kept, p.astype(np.float32)), arrays["expected"], case)
    assert_close(drops.rescaled(arrays["delta_0"], kept, 1.0), arrays["expected_norescale"], case)


@pytest.mark.parametrize("case", cases("della", "paper-formula"), ids=str)
def test_paper(case):
    arrays = {role: np.atleast_2d(array) for role, array in case.arrays.items()}  # a vector is one row
    ranks = rank_rows(arrays["delta_0"])
    line = keep_line(ranks.shape[1], 1.0 - case.params["p"], case.params["epsilon_full"])
    p, kept = keep_probabilities(ranks, line), arrays["mask_keep"] == 1
    assert_close(1.0 - p, arrays["expected_drop_prob"], case)
    assert_close(drops.rescaled(arrays["delta_0"], kept, p.astype(np.float32)), arrays["expected"], case)


def mean_over_keys(edit, delta: np.ndarray, draws: int) -> np.ndarray:
    total = np.zeros(delta.shape)
    for key in range(draws):
        total += edit_table(edit, {"w": delta}, key=lambda name, k=key: 2**40 + k)["w"]
    return total / draws


@pytest.mark.parametrize("edit", EDITS, ids=repr)
def test_the_expectation_is_the_delta(edit):
    draws, delta = 3000, np.linspace(1.0, 2.0, 24, dtype=np.float32).reshape(2, 12)
    line = keep_line if isinstance(edit, DropByRank) else keep_line_inclusive
    p = keep_probabilities(rank_rows(delta), line(12, 0.6, 0.3))
    standard_error = delta * np.sqrt((1 - p) / p / draws)
    assert (np.abs(mean_over_keys(edit, delta, draws) - delta) < 5 * standard_error).all()


def test_matching_the_l1_norm_is_biased_towards_large_elements():
    delta = np.random.default_rng(0).standard_normal((1, 2000)).astype(np.float32)
    ratio = mean_over_keys(DropByRankMatchL1(density=0.4, epsilon=0.1), delta, 300) / delta
    order = np.argsort(-np.abs(delta[0]))
    # 200 elements times 300 draws: the standard error of these means is below 0.01.
    assert ratio[0, order[:200]].mean() == pytest.approx(1.112, abs=0.03)
    assert ratio[0, order[-200:]].mean() == pytest.approx(0.711, abs=0.03)


def test_match_l1_restores_the_norm_of_the_tensor():
    table = {"w": delta_of(700, 257), "v": delta_of(40)}
    dropped = edit_table(DropByRankMatchL1(density=0.4), table)
    for name in table:
        before, after = (np.abs(x[name]).sum(dtype=np.float64) for x in (table, dropped))
        assert after == pytest.approx(before, rel=1e-5)


def test_no_window_is_drop():
    table = {"w": delta_of(30, 20)}
    for edit in (DropByRank(density=0.25), DropByRankInclusive(density=0.25)):
        np.testing.assert_array_equal(
            edit_table(edit, table)["w"], edit_table(Drop(density=0.25), table)["w"]
        )


def test_rows_are_output_units():
    delta = delta_of(2, 3, 2, 2)
    edit = DropByRank(density=0.5, window=0.4)
    conv = edit_table(edit, {"conv": delta})["conv"]
    flat = edit_table(edit, {"conv": delta.reshape(2, 12)})["conv"]
    np.testing.assert_array_equal(conv.reshape(2, 12), flat)
    experts = edit_table(edit, {"experts": delta[:, :, 0]})["experts"]
    rows = edit_table(edit, {"experts": delta[:, :, 0].reshape(6, 2)})["experts"]
    np.testing.assert_array_equal(experts.reshape(6, 2), rows)


@pytest.mark.parametrize("edit", [*EDITS, DropByRankMatchL1(density=0.6, epsilon=0.3)], ids=repr)
def test_single_elements_and_density_one_change_nothing(edit):
    column = delta_of(50, 1)
    np.testing.assert_array_equal(edit_table(edit, {"w": column})["w"], column)
    rows = delta_of(5, 10)
    dense = edit.model_copy(update={"density": 1.0})
    np.testing.assert_array_equal(edit_table(dense, {"w": rows})["w"], rows)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (DropByRank, {"density": 0.95, "window": 0.2}),
        (DropByRank, {"density": 0.1, "window": 0.2}),
        (DropByRankInclusive, {"density": 0.05, "window": 0.2}),
        (DropByRankMatchL1, {"density": 0.9}),
        (DropByRankMatchL1, {"density": 0.1, "epsilon": 0.1}),
    ],
)
def test_impossible_probabilities_are_refused(record, fields):
    with pytest.raises(ValidationError, match=r"keep probabilities would range from .* must lie in \(0, 1\]"):
        record(**fields)


def test_the_edges_of_the_range_are_allowed():
    assert DropByRank(density=0.93, window=0.14).density == 0.93
    assert keep_line(10, 0.93, 0.14)[0] == 1.0


def test_schedules_are_checked_tensor_by_tensor():
    edit = DropByRank(density=Curve(layers=(0.5, 0.98)), window=0.2)
    assert edit.resolved("a", 0.0).density == 0.5
    with pytest.raises(ValidationError, match=r"range from 0\.88 to 1\.08 \(density 0\.98 with half a width"):
        edit.resolved("layers.1.w", 1.0)
    window = PerTensor(choices=(Choice(where="*", value=0.1),))
    assert DropByRank(density=0.5, window=window).resolved("a", 0.0).window == 0.1


def test_standard_error_of_an_element():
    """The variance of one element is delta^2 (1 - p) / p: what makes tiny keep probabilities useless."""
    draws, delta = 4000, np.array([[4.0, 1.0]], np.float32)
    values = [
        edit_table(DropByRank(density=0.3, window=0.2), {"w": delta}, key=lambda name, k=k: k)["w"]
        for k in range(draws)
    ]
    p = keep_probabilities(np.array([[0, 1]], np.uint32), keep_line(2, 0.3, 0.2))
    np.testing.assert_allclose(
        np.std(values, axis=0), delta * np.sqrt((1 - p) / p), rtol=5 / math.sqrt(draws)
    )
