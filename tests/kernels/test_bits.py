"""The random bits: the published generator, the same whatever the slicing, and uniform."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.kernels.bits import threshold_of, uniform_bits, uniform_bits_reference

KEYS = st.integers(0, 2**64 - 1)


def test_first_outputs_are_those_of_the_published_generator():
    # SplitMix64 seeded with 1234567 begins 6457827717110365317, 3203168211198807973, 9817491932198370423.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert uniform_bits(1234567, 0, 3).tolist() == [word >> 32 for word in published]


def test_golden_values():
    assert uniform_bits(0, 0, 3).tolist() == [0xE220A839, 0x6E789E6A, 0x06C45D18]
    assert uniform_bits(2**64 - 1, 0, 1).tolist() == [0xE4D97177]


@settings(deadline=None)  # the first call compiles
@given(KEYS, st.integers(0, 2**40), st.integers(0, 70))
def test_kernel_equals_its_definition(key, start, n):
    np.testing.assert_array_equal(uniform_bits(key, start, n), uniform_bits_reference(key, start, n))


@settings(deadline=None)  # the first call compiles
@given(KEYS, st.integers(0, 40), st.integers(0, 40))
def test_a_range_may_be_split_anywhere(key, left, right):
    whole = uniform_bits(key, 0, left + right)
    parts = np.concatenate([uniform_bits(key, 0, left), uniform_bits(key, left, right)])
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("key", [0, 1, 0xDEADBEEF])
def test_bits_are_uniform_and_neighbours_independent(key):
    n = 1 << 16
    bits = uniform_bits(key, 0, n)
    counts = np.bincount(bits >> 24, minlength=256)
    chi_squared = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert abs(chi_squared - 255) < 5 * math.sqrt(2 * 255)
    centred = bits / 2.0**32 - 0.5
    for lag in (1, 2, 64):
        correlation = (centred[:-lag] * centred[lag:]).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(n)


def test_keys_are_independent():
    a, b = (uniform_bits(key, 0, 1 << 16) / 2.0**32 - 0.5 for key in (41, 42))
    assert abs((a * b).mean() * 12) < 5 / 2**8


@pytest.mark.parametrize(("density", "threshold"), [(1.0, 2**32), (0.5, 2**31), (0.25, 2**30), (1e-12, 0)])
def test_threshold(density, threshold):
    assert threshold_of(density) == threshold
