import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.merges.twin import Twin, TwinMagnitude, keep_largest_share
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick, spectrum


@pytest.mark.parametrize("case", cases("twin_svd", "authors"), ids=str)
@pytest.mark.parametrize("model", [0, 1])
def test_golden(case, model):
    arrays, scale = case.arrays, case.params["lam_shared"]
    operation = Twin(task=f"m{model}", density=case.params["density"], shared_scale=scale)
    for name, expected in arrays[f"expected_{model}"].items():
        deltas = [arrays[f"ft_{i}"][name] - arrays["base"][name] for i in range(2)]
        shared = arrays["shared"][name] - arrays["base"][name]
        assert_close(merged(operation, deltas, name=name) - shared, expected, case)


@pytest.mark.parametrize("case", cases("twin_magnitude", "authors"), ids=str)
def test_golden_magnitude(case):
    assert_close(
        keep_largest_share(case.arrays["delta_0"], case.params["density"]), case.arrays["expected"], case
    )
    # With nothing shared the merge is the compressed delta itself.
    operation = TwinMagnitude(task="m1", density=case.params["density"], shared_scale=0)
    delta = case.arrays["delta_0"]
    assert_close(merged(operation, [0 * delta + 1, delta]), case.arrays["expected"], case)


def test_by_hand():
    a, b = np.diag([4, 0]).astype(np.float32), np.diag([0, 2]).astype(np.float32)
    # Shared: diag(2, 1). What is m0's own: diag(2, -1), of which half the triplets are diag(2, 0).
    assert np.allclose(merged(Twin(task="m0", density=0.5, shared_scale=0.5), [a, b]), np.diag([4, 1]))
    # m1's own: diag(-2, 1); a quarter of the four elements is one.
    got = merged(TwinMagnitude(task="m1", density=0.25, shared_scale=0.5), [a, b])
    assert np.allclose(got, np.diag([0, 1]))


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1), st.floats(-1, 1))
def test_the_exclusive_part_has_the_rank_asked_for(seed, density, scale):
    a, b = drawn(seed, 2, 6, 9)
    own = merged(Twin(task="m1", density=density, shared_scale=scale), [a, b]) - np.float32(scale) * (a + b)
    values = spectrum(own)
    assert (values[int(density * 6) :] < 1e-5).all()


def test_density_1_is_the_task_itself():
    cells = drawn(1, 3, 4, 5)
    for operation in (Twin(task="m2", density=1), TwinMagnitude(task="m2", density=1)):
        assert np.allclose(merged(operation, cells), cells[2], atol=1e-6)


def test_weights_multiply_the_deltas():
    a, b = drawn(2, 2, 4, 5)
    operation = Twin(task="m1", density=0.5)
    assert np.allclose(merged(operation, [a, b], weights=[2, -1]), merged(operation, [2 * a, -b]), atol=1e-6)


def test_ties_go_to_the_lower_index():
    delta = np.array([1, -2, 2, -2, 1], np.float32)
    assert keep_largest_share(delta, 0.4).tolist() == [0, -2, 2, 0, 0]
    assert keep_largest_share(delta, 0.19).tolist() == [0] * 5
    assert keep_largest_share(np.float32(3).reshape(()), 1.0) == 3


@pytest.mark.parametrize("operation", [Twin(task="maths"), TwinMagnitude(task="maths")])
def test_an_unknown_label_is_refused(operation):
    with pytest.raises(RecipeError, match="no model is labelled 'maths' in twin; use one of: math, code"):
        merged(operation, drawn(3, 2, 2, 2), labels=["math", "code"])
