"""k-DARE: kernel, oracle, exact ends, mean and variance, and the variances of the other random edits."""

from __future__ import annotations

import math

import edit_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.edits.drop import Drop, variance_ratio
from deltasmith.edits.drop_by_rank import DropByRank, DropByRankInclusive
from deltasmith.edits.drop_partly import DropPartly, kept_divisor, kept_factor
from deltasmith.kernels import drops
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import edit_table

KEYS = st.integers(0, 2**64 - 1)
FACTORS = st.sampled_from([0.0, -0.0, 1.0, 0.5, -1.0, 1.3, 7.0])


def delta_of(n: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    values[::7] = 0.0
    values[3::11] = -0.0
    return values


def bits(values: np.ndarray) -> list[int]:
    return values.view(np.uint32).tolist()


@settings(deadline=None)  # the first call compiles
@given(KEYS, st.integers(0, 2**33), st.integers(0, 70), st.floats(1e-6, 1.0), st.floats(1e-3, 2.0), FACTORS)
def test_kernel_equals_its_definition(key, start, n, density, divisor, factor):
    delta = delta_of(n)
    expected = drops.partly_rescaled(delta, drops.drawn(key, start, n, density), divisor, factor)
    assert bits(drops.drop_partly(delta, key, start, density, divisor, factor)) == bits(expected)


@settings(deadline=None)  # the first call compiles
@given(KEYS, st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.sampled_from([0.0, 0.5, -1.0, 1.0, 1.5]))
def test_equals_the_loop(key, density, k):
    delta = delta_of(20)
    got = DropPartly(density=density, k=k).apply(delta, Place("w", (20,), key=key), Found())
    np.testing.assert_allclose(got, oracles.drop_partly(delta.tolist(), key, density, k), rtol=1e-6)


def test_by_hand():
    # Bits of key 0: 0xE220A839, 0x6E789E6A, 0x06C45D18, so only the last two lie below one half.
    table = {"w": np.array([1.0, 2.0, -4.0], np.float32)}
    assert edit_table(DropPartly(density=0.5, k=-1.0), table)["w"].tolist() == [-1.0, 6.0, -12.0]
    assert edit_table(DropPartly(density=0.5, k=2.0), table)["w"].tolist() == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("density", [0.1, 0.3, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("k", [0.0, -0.0])
def test_k_zero_is_drop_to_the_bit(density, k):
    delta, place = delta_of(4000), Place("w", (4000,), start=1 << 20, key=77)
    dropped = Drop(density=density).apply(delta, place, Found())
    assert bits(DropPartly(density=density, k=k).apply(delta, place, Found())) == bits(dropped)


@pytest.mark.parametrize("density", [1e-10, 0.1, 0.3, 1 / 3, 0.9, 1.0])
def test_k_one_and_density_one_change_nothing_at_all(density):
    delta, place = delta_of(4000), Place("w", (4000,), key=5)
    assert bits(DropPartly(density=density, k=1.0).apply(delta, place, Found())) == bits(delta)
    for k in (-0.7, 0.1, 1e20):
        assert bits(DropPartly(density=1.0, k=k).apply(delta, place, Found())) == bits(delta)


def test_the_rescaling_is_exact_where_rounding_would_show():
    assert kept_divisor(0.1, 0.0) == 0.1
    assert kept_divisor(1e-10, 1.0) == kept_factor(1e-10, 1.0) == 1.0
    assert kept_divisor(0.5, 2.0) == math.inf
    assert kept_factor(0.5, 2.0) == 0.0
    assert kept_factor(0.25, 0.8) == pytest.approx(1.6)
    assert kept_divisor(0.25, 0.8) == pytest.approx(0.625)
    assert kept_factor(1e-300, 1e300) == -math.inf


def test_a_k_beyond_float32_gives_infinities_and_no_warning():
    got = DropPartly(density=0.5, k=1e300).apply(np.ones(100, np.float32), Place("w", (100,)), Found())
    assert set(got.tolist()) == {math.inf, -math.inf}


def test_the_same_elements_are_kept_as_by_drop():
    delta, place = np.ones(500, np.float32), Place("w", (500,), key=9)
    kept = Drop(density=0.4).apply(delta, place, Found()) != 0
    assert ((DropPartly(density=0.4, k=0.25).apply(delta, place, Found()) > 1) == kept).all()


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("k", [-1.0, -0.5, 0.0, 0.5, 0.8, 1.3])
def test_mean_and_variance_over_elements(density, k):
    """Every element draws for itself: many elements of one value are as many seeds."""
    n, value = 1 << 17, -0.25
    delta, place = np.full(n, value, np.float32), Place("w", (n,), key=21)
    edit = DropPartly(density=density, k=k)
    got = edit.apply(delta, place, Found()).astype(np.float64)
    variance = (1 - k) ** 2 * (1 - density) / density * value**2
    assert np.unique(edit.variance(delta, place, Found())).tolist() == [pytest.approx(variance)]
    assert abs(got.mean() - value) < 5 * math.sqrt(variance / n)
    shape = (1 - 3 * density * (1 - density)) / (
        density * (1 - density)
    )  # the kurtosis of one Bernoulli draw
    assert abs(got.var() / variance - 1) < 5 * math.sqrt((shape - 1) / n) + 100 / n


@pytest.mark.parametrize(
    ("edit", "shape"),
    [
        (Drop(density=0.3), (4,)),
        (DropPartly(density=0.3, k=-0.5), (4,)),
        (DropPartly(density=0.3, k=1.0), (4,)),
        (DropByRank(density=0.5, window=0.6), (2, 2)),
        (DropByRankInclusive(density=0.5, window=0.6), (2, 2)),
        (DropByRank(density=0.5, window=0.6), (3, 1)),
        (Drop(density=1.0), (4,)),
    ],
    ids=repr,
)
def test_variance_of_every_element_over_seeds(edit, shape):
    draws = 4000
    delta = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    delta.flat[0] = 0.0
    seen = np.stack([edit.apply(delta, Place("w", shape, key=k), Found()) for k in range(draws)])
    variance = edit.variance(delta, Place("w", shape), Found())
    assert variance.dtype == np.float32
    assert variance.shape == shape
    # The deviation of a sample variance of a two-valued draw; no mass is further out than 4 for these densities.
    np.testing.assert_allclose(seen.astype(np.float64).var(axis=0), variance, rtol=5 * 2 / math.sqrt(draws))
    assert (variance[np.ptp(seen, axis=0) == 0] == 0).all()


def test_variance_ratios():
    assert variance_ratio(0.1) == pytest.approx(9.0)
    assert variance_ratio(0.1, 0.5) == pytest.approx(9.0 / 4)
    assert variance_ratio(0.1, -1.0) == pytest.approx(9.0 * 4)
    assert variance_ratio(1.0, 5.0) == 0.0
