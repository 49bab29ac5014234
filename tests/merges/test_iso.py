import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.merges.iso import IsoC, IsoCts, common_rank
from golden_cases import assert_close, cases
from merges.examples_matrix import drawn, merged, quick, spectrum


@pytest.mark.parametrize("case", [*cases("iso_c", "authors"), *cases("iso_cts", "authors")], ids=str)
def test_golden(case):
    arrays, common = case.arrays, case.params["common_space_fraction"]
    operation = IsoC() if common is None else IsoCts(common=common)
    for name, expected in arrays["expected"].items():
        deltas = [arrays[f"delta_{i}"][name] for i in range(case.params["tasks"])]
        assert_close(merged(operation, deltas, name=name), expected, case)


@pytest.mark.parametrize("case", cases("iso_cts", "authors"), ids=str)
def test_common_rank_is_the_noted_one(case):
    smaller = min(case.arrays["delta_0"]["w"].shape)
    found = common_rank(smaller, case.params["tasks"], case.params["common_space_fraction"])
    assert f"r_common={found}" in case.note


def test_by_hand():
    a, b = np.diag([5, 0]).astype(np.float32), np.diag([0, 1]).astype(np.float32)
    assert np.allclose(merged(IsoC(), [a, b]), np.diag([3, 3]), atol=1e-6)
    # Of four directions, two are common: the strongest of the sum, 8 and 6. Each task adds its own: 2 and 1.
    a, b = np.diag([8, 0, 2, 0]).astype(np.float32), np.diag([0, 6, 0, 1]).astype(np.float32)
    assert np.allclose(merged(IsoCts(common=0.5), [a, b]), 4.25 * np.eye(4), atol=1e-5)


def test_common_rank_rounds_half_to_even():
    assert common_rank(5, 2, 0.0) == 1  # 5/2 = 2.5 rounds to 2 pairs
    assert common_rank(7, 2, 0.0) == 1  # 3.5 rounds to 4, but 8 directions do not fit
    assert common_rank(3, 2, 0.5) == 1
    assert common_rank(10, 4, 1.0) == 10
    assert common_rank(2, 3, 0.0) == 2


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_the_spectrum_is_flat(seed, models, m, n, common):
    deltas = drawn(seed, models, m, n)
    values = spectrum(merged(IsoC(), deltas))
    assert np.allclose(values, spectrum(deltas.sum(axis=0)).mean(), rtol=1e-4)
    assert values.sum() == pytest.approx(spectrum(deltas.sum(axis=0)).sum(), rel=1e-4)
    values = spectrum(merged(IsoCts(common=common), deltas))
    assert np.allclose(values, values[0], rtol=1e-3)


@quick
@given(st.integers(0, 2**32 - 1))
def test_turning_all_deltas_turns_the_result(seed):
    deltas = drawn(seed, 2, 6, 8)
    left = np.linalg.qr(drawn(seed + 1, 6, 6))[0].astype(np.float32)
    for operation in (IsoC(), IsoCts(common=0.5)):
        turned = merged(operation, [left @ delta for delta in deltas])
        assert np.allclose(turned, left @ merged(operation, deltas), atol=2e-3)


def test_all_common_is_iso_c():
    deltas = drawn(1, 3, 6, 8)
    assert np.allclose(merged(IsoCts(common=1), deltas), merged(IsoC(), deltas), atol=1e-5)


def test_directions_without_strength_stay_out():
    # A sum of rank 2: the other directions are arbitrary, and raising them to the mean would add noise.
    delta = np.outer(drawn(2, 30), drawn(3, 20)) + np.outer(drawn(4, 30), drawn(5, 20))
    for operation in (IsoC(), IsoCts(common=0.5)):
        values = spectrum(merged(operation, [delta, 2 * delta]))
        assert (values[2:] < 1e-4 * values[0]).all()
        assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert values[0] > 1


@pytest.mark.parametrize("operation", [IsoC(), IsoCts(common=0.5)])
def test_what_is_no_matrix_takes_the_mean_and_zero_stays_zero(operation):
    for shape in ((), (5,), (2, 3, 4), (2, 3, 2, 2)):
        a, b = drawn(4, *shape), drawn(5, *shape)
        assert np.allclose(merged(operation, [a, b], weights=[1, 3]), (a + 3 * b) / 2, atol=1e-6)
    stack = drawn(6, 2, 3, 4, 5)
    experts = merged(operation, stack, name="mlp.experts.weight")
    for e in range(3):
        assert np.allclose(experts[e], merged(operation, stack[:, e]), atol=1e-6)
    assert not merged(operation, np.zeros((2, 3, 4), np.float32)).any()
    assert not merged(operation, np.zeros((2, 0, 4), np.float32)).size


@pytest.mark.parametrize("operation", [IsoC(), IsoCts(common=0.5)])
def test_weights_multiply_the_deltas(operation):
    a, b = drawn(7, 2, 5, 6)
    assert np.allclose(merged(operation, [a, b], weights=[2, -1]), merged(operation, [2 * a, -b]), atol=1e-5)


def test_common_is_a_fraction():
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValidationError):
            IsoCts(common=wrong)
