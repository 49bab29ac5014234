import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.edits.low_rank import LowRank, low_rank, rank_of
from deltasmith.errors import RefusedError
from deltasmith.kernels.linalg import noise, numerical_rank, polar, truncate
from deltasmith.operation.reference import edit_table
from deltasmith.operation.schedule import Curve
from golden_cases import assert_close, cases


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def edited(operation, delta, name="w.weight"):
    return edit_table(operation, {name: delta})[name]


@pytest.mark.parametrize("case", cases("twin_svd", "authors"), ids=str)
@pytest.mark.parametrize("model", [0, 1])
def test_golden(case, model):
    arrays = case.arrays
    for name, expected in arrays[f"expected_{model}"].items():
        exclusive = arrays[f"ft_{model}"][name] - arrays["shared"][name]
        assert_close(edited(LowRank(density=case.params["density"]), exclusive), expected, case)
        if exclusive.ndim == 2:
            assert rank_of(case.params["density"], exclusive.shape) == case.params["rank"]


def test_by_hand():
    # [[2, 1], [1, 2]] = 3 · (1, 1)(1, 1)/2 + 1 · (1, -1)(1, -1)/2
    assert np.allclose(edited(LowRank(rank=1), np.array([[2, 1], [1, 2]], np.float32)), 1.5, atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_the_error_is_that_of_eckart_and_young(seed, m, n, rank):
    delta = drawn(seed, m, n)
    values = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    error = np.linalg.norm(edited(LowRank(rank=rank), delta) - delta)
    assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), abs=1e-5)


def test_full_rank_and_vectors_are_left_alone():
    for delta in (drawn(1, 5, 3), drawn(1, 9), np.float32(3.0).reshape(())):
        assert (edited(LowRank(density=1.0), delta) == delta).all()
        assert (edited(LowRank(rank=99), delta) == delta).all()
    vector = drawn(1, 9)
    got = low_rank(vector, "w", rank=1)
    assert (got == vector).all()
    assert got is not vector


def test_a_density_below_one_triplet_gives_zeros():
    assert not edited(LowRank(density=0.19), drawn(2, 5, 8)).any()
    assert edited(LowRank(density=0.2), drawn(2, 5, 8)).any()


def test_experts_are_matrices_and_convolutions_are_flattened():
    delta = drawn(3, 3, 5, 4)
    stack = edited(LowRank(rank=1), delta, "layers.0.experts.weight")
    for e in range(3):
        assert (stack[e] == truncate(delta[e], 1)).all()
    flat = edited(LowRank(rank=1), delta, "conv.weight")
    assert (flat == truncate(delta.reshape(3, 20), 1).reshape(3, 5, 4)).all()
    deep = drawn(4, 4, 3, 2, 2)
    assert np.linalg.matrix_rank(edited(LowRank(rank=2), deep).reshape(4, 12), tol=1e-5) == 2


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0), (1, 1), (0, 2, 2), (1,)])
def test_no_or_one_element(shape):
    delta = np.ones(shape, np.float32)
    assert (edited(LowRank(rank=1), delta) == delta).all()


def test_non_finite_values_are_refused_by_name():
    delta = np.full((3, 3), np.nan, np.float32)
    with pytest.raises(RefusedError, match=r"the singular values do not converge in w\.weight; check"):
        edited(LowRank(rank=1), delta)


def test_exactly_one_of_density_and_rank():
    for wrong in ({}, {"density": 0.5, "rank": 3}, {"rank": 0}, {"density": 0}, {"density": 1.5}):
        with pytest.raises(ValidationError):
            LowRank(**wrong)
    with pytest.raises(ValidationError, match="give either density or rank"):
        LowRank()


def test_density_may_be_a_schedule():
    record = LowRank(density={"layers": [0.2, 0.8]})
    assert record.density == Curve(layers=(0.2, 0.8))
    assert record.resolved("w", 0.5).density == 0.5
    assert eval(repr(record)) == record


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_polar_factors_have_singular_values_0_and_1(seed, m, n):
    matrix = drawn(seed, m, n)
    matrix[0] = 0
    values = np.linalg.svd(polar(matrix).astype(np.float64), compute_uv=False)
    rank = np.linalg.matrix_rank(matrix)
    assert np.allclose(values[:rank], 1, atol=1e-5)
    assert np.allclose(values[rank:], 0, atol=1e-5)


def test_numerical_rank_sees_through_rounding():
    thin = drawn(5, 300, 7) @ drawn(6, 7, 200)
    values = np.linalg.svd(thin, compute_uv=False)
    assert (values > 0).sum() > 7  # what rounding leaves
    assert numerical_rank(values, thin.shape) == 7
    assert noise((4096, 4096)) < 5e-5
    assert numerical_rank(np.zeros(3, np.float32), (3, 3)) == 0
    assert numerical_rank(np.zeros(0, np.float32), (0, 3)) == 0
