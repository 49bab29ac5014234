import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.merges.nuslerp import NuSlerp, NuSlerpColumns, NuSlerpRows, position
from deltasmith.merges.slerp import Slerp
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick

ALONG = {0: NuSlerpColumns, -1: NuSlerpRows, None: NuSlerp}
CASES = cases("nuslerp", "mergekit")


@pytest.mark.parametrize("case", [c for c in CASES if "t" in c.params], ids=str)
def test_golden(case):
    arrays, operation = case.arrays, ALONG[case.params.get("dim")]()
    pair = [arrays["v0"], arrays["v1"]]
    for i, t in enumerate(case.params["t"]):
        got = merged(operation, pair, weights=[1 - t, t])
        if "UNSTABLE" in case.note:  # opposite tensors: we take the straight line
            assert np.allclose(got, (1 - t) * pair[0] + t * pair[1], atol=1e-6)
        else:
            assert_close(got, arrays[f"expected_{i}"], case)


@pytest.mark.parametrize("case", [c for c in CASES if "weights" in c.params], ids=str)
def test_golden_by_weights(case):
    arrays, base = case.arrays, case.arrays.get("base", np.float32(0))
    got = merged(NuSlerp(), [arrays["v0"] - base, arrays["v1"] - base], weights=case.params["weights"])
    assert_close(base + got, arrays["expected"], case)


def test_by_hand():
    # Rows: the first pair is at a right angle, the second is equal. Columns: (1, 1) and (0, 1), 45 degrees.
    a, b = np.array([[1, 0], [1, 0]], np.float32), np.array([[0, 1], [1, 0]], np.float32)
    half = 0.5**0.5
    assert np.allclose(merged(NuSlerpRows(), [a, b]), [[half, half], [1, 0]])
    eighth = np.sin(np.pi / 8) / np.sin(np.pi / 4)
    # The second column meets a zero vector, so its middle is half of it.
    assert np.allclose(merged(NuSlerpColumns(), [a, b]), [[eighth, 0.5], [2 * eighth, 0]])


def test_position():
    assert position(np.array([1.0, 3.0])) == 0.75
    assert position(np.array([0.5, -0.5])) == 0.5
    assert position(np.array([2.0, -1.0])) == -1.0


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_flat_is_slerp_at_the_share_of_the_second_weight(seed, first, second):
    a, b = drawn(seed, 2, 5, 4)
    t = second / (first + second)
    assert np.allclose(
        merged(NuSlerp(), [a, b], weights=[first, second]), merged(Slerp(t=t), [a, b]), atol=1e-5
    )


@quick
@given(st.integers(0, 2**32 - 1))
def test_columns_are_the_rows_of_the_transpose(seed):
    a, b = drawn(seed, 2, 5, 4)
    rows = merged(NuSlerpRows(), [np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)], weights=[1, 2])
    assert (merged(NuSlerpColumns(), [a, b], weights=[1, 2]) == rows.T).all()


@pytest.mark.parametrize("operation", [NuSlerp(), NuSlerpRows(), NuSlerpColumns()])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 4), (2, 3, 4), (3, 2, 2, 2)])
def test_ends_and_identical_models_are_exact(operation, shape):
    a, b = drawn(3, *shape), drawn(4, *shape)
    assert (merged(operation, [a, b], weights=[1, 0]) == a).all()
    assert (merged(operation, [a, b], weights=[0, 1]) == b).all()
    assert (merged(operation, [a, a], weights=[1, 2]) == a).all()


def test_convolutions_and_vectors():
    a, b = drawn(5, 2, 3, 2, 4, 4)
    last = merged(NuSlerpRows(), [a, b])
    assert np.allclose(last[1, 1, 2], merged(NuSlerp(), [a[1, 1, 2], b[1, 1, 2]]), atol=1e-6)
    first = merged(NuSlerpColumns(), [a, b])
    assert np.allclose(first[:, 1, 2, 3], merged(NuSlerp(), [a[:, 1, 2, 3], b[:, 1, 2, 3]]), atol=1e-6)
    for operation in (NuSlerpRows(), NuSlerpColumns()):
        whole = merged(NuSlerp(), [a[0, 0, 0], b[0, 0, 0]])
        assert np.allclose(merged(operation, [a[0, 0, 0], b[0, 0, 0]]), whole, atol=1e-6)


def test_stacked_experts_have_columns_of_their_own():
    a, b = drawn(6, 2, 3, 5, 4)
    stack = merged(NuSlerpColumns(), [a, b], name="mlp.experts.w")
    for e in range(3):
        assert (stack[e] == merged(NuSlerpColumns(), [a[e], b[e]])).all()


@pytest.mark.parametrize("operation", [NuSlerp(), NuSlerpRows(), NuSlerpColumns()])
def test_three_models_are_refused(operation):
    with pytest.raises(RecipeError, match="spherical interpolation of 3 models"):
        merged(operation, [np.ones((2, 2), np.float32)] * 3)
