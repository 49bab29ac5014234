"""DARE in its three scalings: kernels, oracle, released code, and unbiasedness."""

from __future__ import annotations

import math

import edit_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.edits.drop import Drop, DropMatchL1, DropUnscaled, Norms, l1_ratio
from deltasmith.kernels import drops
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import edit_table
from golden_cases import assert_close, cases

KEYS = st.integers(0, 2**64 - 1)


def delta_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


@settings(deadline=None)  # the first call compiles
@given(KEYS, st.integers(0, 2**33), st.integers(0, 70), st.floats(1e-6, 1.0), st.floats(1e-3, 2.0))
def test_kernel_equals_its_definition(key, start, n, density, divisor):
    delta = delta_of(n)
    expected = drops.rescaled(delta, drops.drawn(key, start, n, density), divisor)
    np.testing.assert_array_equal(drops.drop(delta, key, start, density, divisor), expected)


@settings(deadline=None)  # the first call compiles
@given(KEYS, st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_equals_the_loop(key, density):
    delta = delta_of(20)
    got = Drop(density=density).apply(delta, Place("w", (20,), key=key), Found())
    np.testing.assert_allclose(got, oracles.drop(delta.tolist(), key, density), rtol=1e-6)


def test_by_hand():
    # Bits of key 0: 0xE220A839, 0x6E789E6A, 0x06C45D18, so only the last two lie below one half.
    got = edit_table(Drop(density=0.5), {"w": np.array([1.0, 2.0, -3.0], np.float32)})["w"]
    assert got.tolist() == [0.0, 4.0, -6.0]


@pytest.mark.parametrize("case", cases("dare", "authors"), ids=str)
def test_released_code(case):
    arrays, density = case.arrays, 1.0 - case.params["p"]
    kept = arrays["mask_drop"] == 0
    assert_close(drops.rescaled(arrays["delta_0"], kept, density), arrays["expected"], case)
    assert_close(drops.rescaled(arrays["delta_0"], kept, 1.0), arrays["expected_norescale"], case)


def test_density_one_changes_nothing():
    delta = delta_of(1000)
    for edit in (Drop(density=1.0), DropUnscaled(density=1.0), DropMatchL1(density=1.0)):
        np.testing.assert_array_equal(edit_table(edit, {"w": delta})["w"], delta)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_expectation_is_the_delta(density):
    n = 1 << 18
    kept = Drop(density=density).apply(np.ones(n, np.float32), Place("w", (n,), key=11), Found())
    standard_error = math.sqrt((1 - density) / density / n)
    assert abs(kept.mean(dtype=np.float64) - 1.0) < 5 * standard_error


def test_every_element_has_its_chance_over_keys():
    draws, density = 4000, 0.3
    place = [Place("w", (8,), key=k) for k in range(draws)]
    ones = np.ones(8, np.float32)
    mean = np.mean([DropUnscaled(density=density).apply(ones, p, Found()) for p in place], axis=0)
    assert np.abs(mean - density).max() < 5 * math.sqrt(density * (1 - density) / draws)


def test_all_three_keep_the_same_elements():
    table = {"w": delta_of(500)}
    supports = [
        edit_table(edit, table, key=lambda name: 5)["w"] != 0
        for edit in (Drop(density=0.4), DropUnscaled(density=0.4), DropMatchL1(density=0.4))
    ]
    assert (supports[0] == supports[1]).all()
    assert (supports[0] == supports[2]).all()


def test_match_l1_restores_the_norm_of_every_tensor():
    table = {"a": delta_of(100_000), "b": 1000 * delta_of(50)}
    dropped = edit_table(DropMatchL1(density=0.3), table, key=len)
    for name in table:
        before, after = (np.abs(x[name]).sum(dtype=np.float64) for x in (table, dropped))
        assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "ratio"), [(3.0, 1.5, 2.0), (9e-8, 9e-8, 1.0), (1.0, 0.0, 1.0), (1e-3, 9e-8, 1.0)]
)
def test_tiny_norms_are_not_matched(before, after, ratio):
    assert l1_ratio(Norms(before, after)) == ratio


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan"), True, "half"])
def test_impossible_densities_are_refused(density):
    for edit in (Drop, DropUnscaled, DropMatchL1):
        with pytest.raises(ValidationError, match="density"):
            edit(density=density)


@pytest.mark.parametrize("more", [0, 1])
def test_an_element_is_kept_where_its_bits_are_below_the_threshold(more):
    # Element 0 of key 0 has the bits 0xE220A839.
    p, one, ranks = (0xE220A839 + more) / 2**32, np.ones(1, np.float32), np.zeros(1, np.uint32)
    assert drops.drop(one, 0, 0, p, 1.0)[0] == more
    assert drops.mask_by_rank(one, ranks, 0, 0, (p, 0.0))[0] == more
    assert (drops.drop_by_rank(one, ranks, 0, 0, (p, 0.0))[0] > 0) == more


def test_counting_is_strict():
    assert drops.count_above(np.array([2.0, -2.0, -3.0], np.float32), np.float32(2.0)) == 1


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 100))
def test_sums_and_counts(n):
    values = delta_of(n)
    assert drops.abs_sum(values) == pytest.approx(math.fsum(abs(float(x)) for x in values), rel=1e-12)
    assert drops.count_above(values, np.float32(0.5)) == int((np.abs(values) > np.float32(0.5)).sum())
