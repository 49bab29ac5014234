import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.merges.regmean import RegMean
from deltasmith.operation.reference import merge_table
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick


def statistics(grams, name="w.weight"):
    return [{} if gram is None else {f"{name}::gram": gram} for gram in grams]


def inputs(seed, *shape):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x, np.asarray(np.swapaxes(x, -1, -2) @ x, dtype=np.float32)


REG = RegMean(statistics={})


@pytest.mark.parametrize("case", cases("regmean", "authors"), ids=str)
def test_golden(case):
    arrays, models = case.arrays, range(case.params["models"])
    columns = [{"w.weight": arrays[f"W_{i}"], "w.bias": arrays[f"b_{i}"]} for i in models]
    operation = RegMean(statistics={}, off_diagonal=case.params["reduce_non_diagonal_ratio"])
    grams = statistics([arrays[f"gram_{i}"] for i in models])
    got = merge_table(operation, columns, statistics=grams)
    assert_close(got["w.weight"], arrays["expected_W"], case)
    assert_close(got["w.bias"], arrays["expected_b"], case)


def test_by_hand():
    # One output, two inputs that do not mix: each is the mean of the weights, weighted by its own energy.
    weights = [np.array([[1, 0]], np.float32), np.array([[5, 4]], np.float32)]
    grams = [np.diag([3, 1]).astype(np.float32), np.diag([1, 3]).astype(np.float32)]
    assert np.allclose(merged(REG, weights, statistics=statistics(grams)), [[2, 3]])
    # A weight of 3 on the second model: (3·1 + 3·5)/6 and (0 + 9·4)/10.
    got = merged(REG, weights, statistics=statistics(grams), weights=[1, 3])
    assert np.allclose(got, [[3, 3.6]])


@quick
@given(st.integers(0, 2**32 - 1))
def test_it_solves_the_least_squares_problem(seed):
    weights = drawn(seed, 3, 4, 6)
    x, grams = inputs(seed, 3, 30, 6)
    targets = np.concatenate([x[i] @ weights[i].T for i in range(3)])
    wanted = np.linalg.lstsq(x.reshape(90, 6), targets, rcond=None)[0].T
    assert np.allclose(merged(REG, weights, statistics=statistics(grams)), wanted, atol=1e-4)


def test_identical_models_are_returned_whatever_the_inputs():
    weight = drawn(1, 4, 6)
    _, grams = inputs(1, 2, 30, 6)
    assert np.allclose(merged(REG, [weight, weight], statistics=statistics(grams)), weight, atol=1e-5)


def test_without_off_diagonals_every_input_is_on_its_own():
    weights = drawn(2, 2, 4, 6)
    _, grams = inputs(2, 2, 30, 6)
    energy = np.diagonal(grams, axis1=1, axis2=2)
    wanted = (weights * energy[:, None]).sum(axis=0) / energy.sum(axis=0)
    got = merged(RegMean(statistics={}, off_diagonal=0), weights, statistics=statistics(grams))
    assert np.allclose(got, wanted, atol=1e-5)


def test_a_tensor_without_grams_takes_the_weighted_mean():
    weights = drawn(3, 2, 4, 6)
    wanted = 0.25 * weights[0] + 0.75 * weights[1]
    none = statistics([None, None])
    assert np.allclose(merged(REG, weights, statistics=none, weights=[1, 3]), wanted, atol=1e-6)
    for shape in ((), (0,), (3,), (2, 3, 4), (0, 4)):
        cells = [drawn(4, *shape)] * 2
        assert np.allclose(merged(REG, cells, statistics=none), cells[0])


def test_a_gram_that_only_some_have_is_refused():
    weights = drawn(5, 2, 4, 6)
    _, grams = inputs(5, 2, 30, 6)
    with pytest.raises(
        RefusedError,
        match=r"no Gram matrix in the statistics of m1 in w\.weight; collect \(6, 6\) for every model",
    ):
        merged(REG, weights, statistics=statistics([grams[0], None]))
    with pytest.raises(RefusedError, match=r"a Gram matrix of shape \(4, 4\) in the statistics of m0"):
        merged(REG, weights, statistics=statistics([grams[0][:4, :4], grams[1]]))


def test_a_singular_sum_is_refused_and_damping_helps():
    weights = drawn(6, 2, 4, 6)
    _, grams = inputs(6, 2, 2, 6)  # four examples for six inputs
    with pytest.raises(RefusedError, match=r"the summed Gram matrix is singular in w\.weight; collect"):
        merged(REG, weights, statistics=statistics(grams))
    got = merged(RegMean(statistics={}, damping=1e-3), weights, statistics=statistics(grams))
    assert np.abs(got).max() < 10


def test_an_input_that_nobody_used_takes_the_mean_when_damped():
    weights = drawn(7, 2, 4, 6)
    x, _ = inputs(7, 2, 30, 6)
    x[:, :, 2] = 0
    grams = np.asarray(np.swapaxes(x, 1, 2) @ x, dtype=np.float32)
    with pytest.raises(RefusedError, match="singular"):
        merged(REG, weights, statistics=statistics(grams))
    got = merged(RegMean(statistics={}, damping=1e-6), weights, statistics=statistics(grams), weights=[1, 3])
    assert np.allclose(got[:, 2], 0.25 * weights[0, :, 2] + 0.75 * weights[1, :, 2], atol=1e-5)


def test_inputs_of_very_different_size_are_no_reason_to_refuse():
    weights = drawn(8, 2, 4, 6)
    x, _ = inputs(8, 2, 30, 6)
    x[:, :, 0] *= 1e-6
    grams = np.asarray(np.swapaxes(x, 1, 2) @ x, dtype=np.float32)
    got = merged(REG, weights, statistics=statistics(grams))
    assert np.isfinite(got).all()


def test_stacked_experts_have_a_gram_each():
    weights = drawn(9, 2, 3, 4, 6)
    _, grams = inputs(9, 2, 3, 30, 6)
    name = "mlp.experts.weight"
    got = merged(REG, weights, name=name, statistics=statistics(grams, name))
    for e in range(3):
        assert np.allclose(got[e], merged(REG, weights[:, e], statistics=statistics(grams[:, e])), atol=1e-6)


def test_refusals():
    weights = drawn(10, 2, 4, 6)
    with pytest.raises(RecipeError, match=r"regmean without statistics in w\.weight; give `statistics"):
        merged(REG, weights)
    with pytest.raises(RecipeError, match="the weights sum to zero"):
        merged(REG, weights, statistics=statistics([None, None]), weights=[1, -1])
