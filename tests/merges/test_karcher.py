import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.errors import RecipeError
from deltasmith.merges.karcher import Karcher
from deltasmith.merges.slerp import Slerp
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick


@pytest.mark.parametrize("case", cases("karcher", "mergekit"), ids=str)
def test_golden(case):
    arrays = case.arrays
    cells = [arrays[role] for role in sorted(arrays) if role.startswith("v")]
    operation = Karcher(max_iter=case.params["max_iter"], tol=case.params["tol"])
    assert_close(merged(operation, cells), arrays["expected"], case)


def test_by_hand():
    # Three axes: by symmetry the mean is (1, 1, 1)/sqrt 3. With 1, 2, 3 as norms its length is 2.
    cells = np.diag([1, 2, 3]).astype(np.float32)
    assert np.allclose(merged(Karcher(), cells), 2 / np.sqrt(3), atol=1e-6)
    # On a circle the mean is the mean angle: 0, 30 and 60 degrees with weights 1, 1, 2 give 37.5.
    turns = np.radians([0, 30, 60])
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    mean = np.radians(37.5)
    got = merged(Karcher(max_iter=50, tol=1e-9), circle, weights=[1, 1, 2])
    assert np.allclose(got, [np.cos(mean), np.sin(mean)], atol=1e-6)


@quick
@given(st.integers(0, 2**32 - 1))
def test_log_maps_cancel_at_the_mean(seed):
    cells = drawn(seed, 4, 30).astype(np.float64)
    units = cells / np.linalg.norm(cells, axis=1, keepdims=True)
    mean = merged(Karcher(max_iter=100, tol=1e-7), cells.astype(np.float32)).astype(np.float64)
    mean /= np.linalg.norm(mean)
    cosine = units @ mean
    away = units - cosine[:, None] * mean
    logs = np.arccos(cosine)[:, None] * away / np.linalg.norm(away, axis=1, keepdims=True)
    assert np.linalg.norm(logs.mean(axis=0)) < 1e-6


@quick
@given(st.integers(0, 2**32 - 1))
def test_two_of_one_norm_are_slerp(seed):
    a, b = drawn(seed, 2, 30)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    assert np.allclose(merged(Karcher(), [a, b]), merged(Slerp(), [a, b]), atol=1e-6)


@quick
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)), st.floats(1e-3, 1e3))
def test_order_does_not_matter_and_scale_carries_over(seed, order, scale):
    cells = drawn(seed, 4, 20)
    once = merged(Karcher(), cells)
    assert np.allclose(merged(Karcher(), cells[order]), once, atol=2e-6)
    scale = np.float32(scale)
    assert np.allclose(merged(Karcher(), scale * cells), scale * once, rtol=1e-4, atol=2e-6 * scale)


def test_opposite_pairs_give_the_mean_whatever_the_order():
    a = drawn(1, 9)
    assert np.allclose(merged(Karcher(), [a, -3 * a]), -a, atol=1e-6)
    assert np.allclose(merged(Karcher(), [-3 * a, a]), -a, atol=1e-6)
    # Two agree; the third is opposite to their direction, has no logarithm there, and counts in the norm.
    assert np.allclose(merged(Karcher(), [a, a, -4 * a]), 2 * a, rtol=1e-5)


def test_zero_and_identical_tensors():
    a = drawn(2, 9)
    assert np.allclose(merged(Karcher(), [a, 0 * a]), a / 2)
    assert not merged(Karcher(), [0 * a, 0 * a]).any()
    assert np.allclose(merged(Karcher(), [a, a, a], weights=[1, 2, 0]), a, rtol=1e-6)
    tiny = np.float32(1e-7) * a  # mergekit would call this zero
    assert np.allclose(merged(Karcher(), [tiny, tiny]), tiny, rtol=1e-6, atol=0)


def test_refusals():
    with pytest.raises(RecipeError, match="a Karcher mean has no negative weights in w; give weights ≥ 0"):
        merged(Karcher(), drawn(3, 2, 4), name="w", weights=[1, -0.5])
    with pytest.raises(RecipeError, match="sum to 0"):
        merged(Karcher(), drawn(3, 2, 4), weights=[0, 0])
    with pytest.raises(ValidationError):
        Karcher(max_iter=0)
