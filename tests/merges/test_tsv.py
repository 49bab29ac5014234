import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.kernels.linalg import truncate
from deltasmith.merges.tsv import Tsv, TsvLossless
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick, spectrum


@pytest.mark.parametrize("case", cases("tsv_merge", "authors"), ids=str)
def test_golden(case):
    arrays = case.arrays
    operation = {"tsvm": Tsv(), "tsvm_lossless": TsvLossless()}[case.params["variant"]]
    for name, expected in arrays["expected"].items():
        deltas = [arrays[f"delta_{i}"][name] for i in range(case.params["tasks"])]
        assert_close(merged(operation, deltas, name=name), expected, case)


def test_by_hand():
    # Each keeps one of two triplets. They are orthogonal already, so the sum of the kept ones stands.
    a, b = np.diag([3, 1]).astype(np.float32), np.diag([1, 2]).astype(np.float32)
    assert np.allclose(merged(Tsv(), [a, b]), np.diag([3, 2]), atol=1e-6)


def test_two_directions_at_60_degrees_are_turned_apart_symmetrically():
    left = np.array([[1, 0], [0.5, np.sqrt(0.75)]])
    right = np.eye(2)
    deltas = [np.outer(left[i], right[i]).astype(np.float32) for i in range(2)]
    # The closest orthonormal pair lies 15 degrees further out on either side.
    turned = np.radians([-15, 75])
    assert np.allclose(merged(Tsv(), deltas), np.stack([np.cos(turned), np.sin(turned)]), atol=1e-6)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(4, 9), st.integers(4, 9))
def test_the_spectrum_is_what_the_tasks_kept(seed, models, m, n):
    deltas = drawn(seed, models, m, n)
    kept = min(m, n) // models
    wanted = np.concatenate([spectrum(delta)[:kept] for delta in deltas])
    wanted = np.sort(np.append(wanted, np.zeros(min(m, n) - kept * models)))[::-1]
    # Tasks that share a direction almost exactly are ill conditioned; random ones are not.
    assert np.allclose(spectrum(merged(Tsv(), deltas)), wanted, rtol=1e-4, atol=1e-4)


@quick
@given(st.integers(0, 2**32 - 1))
def test_turning_all_deltas_turns_the_result(seed):
    deltas = drawn(seed, 2, 6, 8)
    left = np.linalg.qr(drawn(seed + 1, 6, 6))[0].astype(np.float32)
    right = np.linalg.qr(drawn(seed + 2, 8, 8))[0].astype(np.float32)
    for operation in (Tsv(), TsvLossless()):
        turned = merged(operation, [left @ delta @ right for delta in deltas])
        assert np.allclose(turned, left @ merged(operation, deltas) @ right, atol=2e-4)


@pytest.mark.parametrize("operation", [Tsv(), TsvLossless()])
def test_one_model_is_returned(operation):
    delta = drawn(1, 5, 8)
    assert np.allclose(merged(operation, [delta]), delta, atol=1e-5)


def test_identical_models_share_their_directions():
    delta = drawn(2, 7, 9)
    assert np.allclose(merged(Tsv(), [delta, delta, delta]), truncate(delta, 2), atol=1e-5)
    assert np.allclose(merged(TsvLossless(), [delta, delta]), delta, atol=1e-5)


@pytest.mark.parametrize("operation", [Tsv(), TsvLossless()])
def test_scaling_the_deltas_scales_the_result(operation):
    deltas = drawn(3, 3, 7, 9)
    assert np.allclose(merged(operation, 1e-3 * deltas), 1e-3 * merged(operation, deltas), atol=1e-7)
    weighted = merged(operation, deltas, weights=[2, 1, -1])
    assert np.allclose(weighted, merged(operation, [2 * deltas[0], deltas[1], -deltas[2]]), atol=1e-5)


@pytest.mark.parametrize("operation", [Tsv(), TsvLossless()])
def test_what_is_no_matrix_takes_the_mean(operation):
    for shape in ((), (5,), (2, 3, 4), (2, 3, 2, 2)):
        a, b = drawn(4, *shape), drawn(5, *shape)
        assert np.allclose(merged(operation, [a, b], weights=[1, 3]), (a + 3 * b) / 2, atol=1e-6)
    stack = drawn(6, 2, 3, 4, 5)
    experts = merged(operation, stack, name="mlp.experts.weight")
    for e in range(3):
        assert np.allclose(experts[e], merged(operation, stack[:, e]), atol=1e-6)


def test_more_models_than_directions():
    deltas = drawn(7, 3, 2, 8)
    assert np.allclose(merged(Tsv(), deltas), deltas.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("operation", [Tsv(), TsvLossless()])
def test_zero_deltas(operation):
    deltas = drawn(8, 2, 4, 4)
    deltas[1] = 0
    assert not merged(operation, 0 * deltas).any()
    assert np.isfinite(merged(operation, deltas)).all()
