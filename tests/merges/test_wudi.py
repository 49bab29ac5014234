import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.kernels.linalg import adam_step
from deltasmith.merges.wudi import Wudi
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick


def loss(merged_delta, deltas):
    x = merged_delta.astype(np.float64)
    return sum(
        np.sum(((x - d) @ d.T) ** 2) / np.sum(d.astype(np.float64) ** 2) for d in deltas.astype(np.float64)
    )


@pytest.mark.parametrize("case", cases("wudi", "authors"), ids=str)
def test_golden(case):
    arrays = case.arrays
    deltas = [arrays[f"delta_{i}"] for i in range(case.params["tasks"])]
    got = merged(Wudi(steps=case.params["iter_num"], learning_rate=case.params["lr"]), deltas)
    assert_close(got, arrays["expected"], case)
    assert np.abs(got - arrays["expected"]).max() < 2e-6


def test_by_hand():
    # 1 × 1: the loss is Σ (x − d)² d² / d² = (x − 1)² + (x − 2)², and Adam's first step is the rate's size.
    one, two = np.array([[1]], np.float32), np.array([[2]], np.float32)
    assert merged(Wudi(steps=1, learning_rate=0.125), [one, two]) == pytest.approx(3 - 0.125, abs=1e-6)
    assert merged(Wudi(steps=2000, learning_rate=0.01), [one, two]) == pytest.approx(1.5, abs=1e-3)


def test_adam_is_adam():
    values, slopes = drawn(1, 20), drawn(2, 50, 20)
    got, first, second = values.copy(), np.zeros(20, np.float32), np.zeros(20, np.float32)
    x, m, v = values.astype(np.float64), np.zeros(20), np.zeros(20)
    for step, slope in enumerate(slopes, 1):
        adam_step(got, slope, first, second, 1e-2, step)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope.astype(np.float64) ** 2
        x -= 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert np.allclose(got, x, atol=1e-6)


@quick
@given(st.integers(0, 2**32 - 1))
def test_the_loss_falls_and_no_element_moves_far(seed):
    deltas = drawn(seed, 3, 5, 7)
    start = deltas.sum(axis=0)
    got = merged(Wudi(steps=100, learning_rate=1e-2), deltas)
    assert loss(got, deltas) < loss(start, deltas)
    assert np.abs(got - start).max() < 100 * 1e-2 * 1.5


def test_no_steps_and_one_model_change_nothing():
    deltas = drawn(3, 2, 4, 5)
    assert (merged(Wudi(steps=0), deltas) == deltas.sum(axis=0)).all()
    assert (merged(Wudi(steps=50, learning_rate=0.1), deltas[:1]) == deltas[0]).all()


def test_zero_deltas_have_no_say():
    deltas = drawn(4, 2, 4, 5)
    wanted = merged(Wudi(steps=20, learning_rate=0.01), deltas)
    with_zero = np.concatenate([deltas, 0 * deltas[:1]])
    assert np.allclose(merged(Wudi(steps=20, learning_rate=0.01), with_zero), wanted, atol=1e-6)
    assert not merged(Wudi(), 0 * deltas).any()


def test_what_is_no_matrix_takes_the_mean():
    a, b = drawn(5, 6), drawn(6, 6)
    assert np.allclose(merged(Wudi(), [a, b], weights=[1, 3]), (a + 3 * b) / 2, atol=1e-6)
    stack = drawn(7, 2, 3, 4, 5)
    experts = merged(Wudi(steps=5, learning_rate=0.1), stack, name="mlp.experts.weight")
    for e in range(3):
        assert np.allclose(experts[e], merged(Wudi(steps=5, learning_rate=0.1), stack[:, e]), atol=1e-6)


def test_weights_multiply_the_deltas():
    a, b = drawn(8, 2, 4, 5)
    operation = Wudi(steps=20, learning_rate=0.01)
    assert np.allclose(merged(operation, [a, b], weights=[2, -1]), merged(operation, [2 * a, -b]), atol=1e-6)


def test_refusals():
    for wrong in ({"steps": -1}, {"learning_rate": 0}, {"learning_rate": float("inf")}):
        with pytest.raises(ValidationError):
            Wudi(**wrong)
