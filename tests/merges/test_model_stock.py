import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.kernels.gram import gram
from deltasmith.merges.model_stock import (
    ModelStock,
    ModelStockMergekit,
    ModelStockRows,
    ModelStockRowsMergekit,
    mean_cosine,
    ratio,
    ratio_mergekit,
)
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick

CASES = cases("model_stock", "mergekit")
ALL = [ModelStock(), ModelStockMergekit(), ModelStockRows(), ModelStockRowsMergekit()]


def deltas_of(case):
    arrays = case.arrays
    return [arrays[f"ft_{i}"] - arrays["base"] for i in range(case.params["models"])]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden(case):
    operation = ModelStockRowsMergekit() if case.params["filter_wise"] else ModelStockMergekit()
    assert_close(case.arrays["base"] + merged(operation, deltas_of(case)), case.arrays["expected"], case)


# Some rows of model_stock_3_fw have a negative mean cosine: the clamp tells paper from mergekit there.
@pytest.mark.parametrize("case", [c for c in CASES if c.id != "model_stock_3_fw"], ids=str)
def test_paper_agrees_where_nothing_is_clamped(case):
    operation = ModelStockRows() if case.params["filter_wise"] else ModelStock()
    assert_close(case.arrays["base"] + merged(operation, deltas_of(case)), case.arrays["expected"], case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_mean_cosine_is_the_true_one(case):
    assert mean_cosine(gram(deltas_of(case))) == pytest.approx(
        case.arrays["expected_true_mean_cos"], abs=1e-6
    )


def test_by_hand():
    a, b = np.array([1, 0], np.float32), np.array([0.6, 0.8], np.float32)
    # cos = 0.6, t = 1.2 / 1.6 = 0.75, mean (0.8, 0.4).
    assert np.allclose(merged(ModelStock(), [a, b]), [0.6, 0.3])
    rows = merged(ModelStockRows(), [np.stack([a, a]), np.stack([b, a])])
    assert np.allclose(rows, [[0.6, 0.3], [1, 0]])


def test_three_models_by_hand():
    # Cosines 1, 0, 0: mean 1/3, t = 1 / (1 + 2/3) = 0.6.
    a, b = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert np.allclose(merged(ModelStock(), [a, a, b]), 0.6 * np.array([2, 1]) / 3)


@pytest.mark.parametrize("operation", ALL)
def test_identical_deltas_are_kept_and_orthogonal_ones_vanish(operation):
    a = drawn(1, 4, 6)
    assert np.allclose(merged(operation, [a, a, a]), a, rtol=1e-6)
    left, right = a.copy(), a.copy()
    left[:, 3:], right[:, :3] = 0, 0
    assert np.allclose(merged(operation, [left, right]), 0, atol=1e-7)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_t_lies_between_0_and_1(seed, models):
    t = ratio(gram(list(drawn(seed, models, 3))))
    assert 0 <= t <= 1


def test_negative_cosines_give_the_base_and_the_pole_is_never_met():
    turns = 2 * np.pi * np.arange(3) / 3  # mean cosine -1/2, where 1 + 2 cos = 0
    star = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    assert not merged(ModelStock(), star).any()
    assert np.isfinite(merged(ModelStockMergekit(), star)).all()
    one = np.ones(1, np.float32)
    assert merged(ModelStockMergekit(), [one, -one]) == 0
    assert not merged(ModelStock(), [one, -one]).any()


def test_small_deltas_are_lost_in_mergekit_only():
    a = drawn(2, 100, scale=1e-6)
    b = a + drawn(3, 100, scale=5e-7)
    products = gram([a, b])
    assert ratio(products) > 0.8
    assert ratio_mergekit(products) < 0.01


def test_zero_deltas_count_as_orthogonal():
    a = drawn(4, 10)
    assert not merged(ModelStock(), [0 * a, 0 * a]).any()
    # cosines 1, 0, 0
    assert np.allclose(merged(ModelStock(), [a, a, 0 * a]), 0.6 * 2 / 3 * a, rtol=1e-5)


@pytest.mark.parametrize("operation", ALL)
def test_weights_multiply_the_deltas(operation):
    a, b = drawn(5, 2, 4, 6) + 1
    got = merged(operation, [a, b], weights=[2.0, 0.5])
    assert np.allclose(got, merged(operation, [2 * a, b / 2]), atol=1e-6)


def test_rows_of_convolutions():
    a, b = drawn(6, 2, 3, 2, 2, 5) + 1
    rows = merged(ModelStockRows(), [a, b])
    assert np.allclose(rows[1], merged(ModelStock(), [a[1], b[1]]), atol=1e-6)
    last = merged(ModelStockRowsMergekit(), [a, b])
    assert np.allclose(last[1, 0, 1], merged(ModelStockMergekit(), [a[1, 0, 1], b[1, 0, 1]]), atol=1e-6)


@pytest.mark.parametrize("operation", ALL)
def test_one_model_is_refused(operation):
    with pytest.raises(RecipeError, match="model stock of one model in w; give at least two models"):
        merged(operation, [np.ones((2, 2), np.float32)], name="w")
