import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.merges.multislerp import MultiSlerp, MultiSlerpUnnormalised
from deltasmith.merges.slerp import Slerp
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick


@pytest.mark.parametrize("case", cases("multislerp", "mergekit"), ids=str)
def test_golden(case):
    arrays, weights = case.arrays, case.params["weights"]
    operation = MultiSlerp() if case.params["normalize_weights"] else MultiSlerpUnnormalised()
    base = arrays.get("base", np.float32(0))
    cells = [arrays[f"v{i}"] - base for i in range(len(weights))]
    assert_close(base + merged(operation, cells, weights=weights), arrays["expected"], case)


def test_by_hand():
    a, b, c = np.array([[3, 0, 0], [0, 2, 0], [0, 0, 1]], np.float32)
    # Unit vectors with weights 1, 2, 2 add to (1, 2, 2) of length 3; the mean norm is (3 + 4 + 2) / 5.
    assert np.allclose(merged(MultiSlerp(), [a, b, c], weights=[1, 2, 2]), 1.8 * np.array([1, 2, 2]) / 3)
    raw = merged(MultiSlerpUnnormalised(), [a, b, c], weights=[1, 2, 2])
    assert np.allclose(raw, 9 * np.array([1, 2, 2]) / 3)


@quick
@given(st.integers(0, 2**32 - 1))
def test_the_middle_of_two_equal_norms_is_slerp(seed):
    a, b = drawn(seed, 2, 30)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    assert np.allclose(merged(MultiSlerp(), [a, b]), merged(Slerp(t=0.5), [a, b]), atol=1e-6)


@quick
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)), st.floats(1e-3, 1e3))
def test_order_does_not_matter_and_scale_carries_over(seed, order, scale):
    cells, weights = drawn(seed, 4, 20), [0.1, 0.4, 0.2, 0.3]
    once = merged(MultiSlerp(), cells, weights=weights)
    turned = merged(MultiSlerp(), cells[order], weights=[weights[i] for i in order])
    assert np.allclose(turned, once, atol=1e-6)
    scale = np.float32(scale)
    assert np.allclose(
        merged(MultiSlerp(), scale * cells, weights=weights), scale * once, rtol=1e-4, atol=1e-6 * scale
    )


def test_identical_models_are_returned():
    a = drawn(1, 50)
    assert np.allclose(merged(MultiSlerp(), [a, a, a], weights=[1, 2, 4]), a, rtol=1e-6)


def test_zero_tensors_count_in_the_norm_only():
    a = drawn(2, 8)
    assert np.allclose(merged(MultiSlerp(), [a, 0 * a]), a / 2)
    assert not merged(MultiSlerp(), [0 * a, 0 * a, 0 * a]).any()


def test_directions_that_cancel_give_the_weighted_mean():
    a = drawn(3, 8)
    assert np.allclose(merged(MultiSlerp(), [a, -3 * a]), -a, atol=1e-6)
    assert np.allclose(merged(MultiSlerp(), [a, -3 * a, a], weights=[1, 2, 1]), -a, atol=1e-6)


def test_weights_that_sum_to_zero():
    with pytest.raises(RecipeError, match="the weights sum to 0 in w; give weights whose mean is defined"):
        merged(MultiSlerp(), drawn(4, 2, 5), name="w", weights=[1, -1])
    assert np.isfinite(merged(MultiSlerpUnnormalised(), drawn(4, 2, 5), weights=[1, -1])).all()
