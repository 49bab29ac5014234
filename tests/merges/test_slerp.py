import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.errors import RecipeError
from deltasmith.merges.slerp import Slerp, SlerpMergekit
from deltasmith.merges.spherical import angle, arc
from deltasmith.operation.schedule import Curve
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick


def at_angle(theta, n=40):
    """Return two unit vectors at this angle, in float64 rounded to float32."""
    q, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((n, 2)))
    return q[:, 0].astype(np.float32), (np.cos(theta) * q[:, 0] + np.sin(theta) * q[:, 1]).astype(np.float32)


@pytest.mark.parametrize("case", cases("slerp", "mergekit"), ids=str)
def test_golden(case):
    arrays = case.arrays
    for i, t in enumerate(case.params["t"]):
        assert_close(merged(SlerpMergekit(t=t), [arrays["v0"], arrays["v1"]]), arrays[f"expected_{i}"], case)


@pytest.mark.parametrize("case", [c for c in cases("slerp") if "0p9997" not in c.id], ids=str)
def test_paper_differs_only_above_the_threshold(case):
    arrays = case.arrays
    for i, t in enumerate(case.params["t"]):
        assert_close(merged(Slerp(t=t), [arrays["v0"], arrays["v1"]]), arrays[f"expected_{i}"], case)


def test_by_hand():
    # 60 degrees apart; a third of the way is 20 degrees: sin 40 / sin 60 and sin 20 / sin 60.
    a, b = np.array([1, 0], np.float32), np.array([0.5, np.sqrt(0.75)], np.float32)
    assert np.allclose(merged(Slerp(t=1 / 3), [a, b]), [np.cos(np.pi / 9), np.sin(np.pi / 9)], atol=1e-7)
    # Norms stay in the tensors: at right angles and t = 0.5 both coefficients are sqrt(1/2).
    assert np.allclose(merged(Slerp(), [3 * a, np.array([0, 1], np.float32)]), [3 * 0.5**0.5, 0.5**0.5])


def test_just_above_the_threshold_only_mergekit_takes_the_line():
    a, b = at_angle(0.02)
    assert np.linalg.norm(merged(Slerp(), [a, b])) == pytest.approx(1.0, abs=2e-7)
    assert np.linalg.norm(merged(SlerpMergekit(), [a, b])) == pytest.approx(np.cos(0.01), abs=2e-7)


@pytest.mark.parametrize("theta", [0.0, 1e-12, 1e-7, 1e-3, 1.0, 3.0, np.pi])
def test_angles_are_sound_at_both_ends(theta):
    assert angle(np.cos(theta)) == pytest.approx(theta, abs=3e-8)


def test_small_angles_meet_the_straight_line_smoothly():
    for cosine in (1.0, 1.0 - 1e-16, 1.0 - 1e-12):
        coefficients = arc(np.array([[1.0, cosine], [cosine, 1.0]]), 0.3)
        assert np.allclose(coefficients, [0.7, 0.3], atol=1e-11)


@pytest.mark.parametrize("operation", [Slerp, SlerpMergekit])
@quick
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 70))
def test_ends_are_exact(operation, seed, n):
    a, b = drawn(seed, 2, n)
    assert (merged(operation(t=0), [a, b]) == a).all()
    assert (merged(operation(t=1), [a, b]) == b).all()
    assert (merged(operation(t=0.37), [a, a]) == a).all()


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(1e-3, 1e3))
def test_scaling_the_inputs_scales_the_result(seed, t, scale):
    a, b = drawn(seed, 2, 12)
    scale = np.float32(scale)
    once = scale * merged(Slerp(t=t), [a, b])
    assert np.allclose(merged(Slerp(t=t), [scale * a, scale * b]), once, rtol=1e-4, atol=1e-5 * scale)


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_way_back_is_the_same_way(seed, t):
    a, b = drawn(seed, 2, 12)
    assert np.allclose(merged(Slerp(t=t), [a, b]), merged(Slerp(t=1 - t), [b, a]), atol=1e-5)


def test_zero_and_opposite_tensors_take_the_straight_line():
    a = drawn(1, 9)
    zero = np.zeros_like(a)
    assert np.allclose(merged(Slerp(t=0.5), [zero, a]), a / 2)
    assert np.allclose(merged(SlerpMergekit(t=0.5), [zero, a]), a * 0.5**0.5)  # a right angle there
    tiny = np.float32(1e-9) / np.linalg.norm(a) * a
    assert np.allclose(merged(SlerpMergekit(t=0.5), [tiny, tiny]), tiny * 2**0.5, rtol=1e-5, atol=0)
    assert (merged(Slerp(t=0.5), [tiny, tiny]) == tiny).all()
    assert np.allclose(merged(Slerp(t=0.25), [a, -3 * a]), 0.75 * a - 0.75 * a, atol=1e-6)
    assert not merged(Slerp(), [zero, zero]).any()
    assert merged(Slerp(t=0.25), [np.float32(2.0), np.float32(-2.0)]) == 1.0


def test_near_opposite_tensors_do_not_blow_up():
    for gap in (1e-8, 1e-6, 1e-4, 1e-2, 0.03, 0.04):
        a, b = at_angle(np.pi - gap)
        assert np.linalg.norm(merged(Slerp(), [a, 2 * b])) < 40


def test_weights_multiply_the_tensors():
    a, b = drawn(2, 2, 30)
    weighted = merged(Slerp(t=0.4), [a, b], weights=[2.0, -0.5])
    assert np.allclose(weighted, merged(Slerp(t=0.4), [2 * a, -b / 2]), atol=1e-6)


@pytest.mark.parametrize("models", [1, 3])
def test_any_other_number_of_models_is_refused(models):
    with pytest.raises(RecipeError, match=f"of {models} models in w; give exactly two models"):
        merged(Slerp(), [np.ones(3, np.float32)] * models, name="w")


def test_t_is_a_fraction_or_a_schedule_of_fractions():
    assert Slerp(t={"layers": [0.0, 1.0]}).resolved("w", 0.25).t == 0.25
    assert Slerp(t=Curve(layers=(0.5,))) == eval(repr(Slerp(t=Curve(layers=(0.5,)))))
    for wrong in (1.01, -0.01, {"layers": [0.5, 2.0]}, float("nan"), True):
        with pytest.raises(ValidationError):
            Slerp(t=wrong)
