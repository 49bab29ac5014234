"""The compiled selections equal their definitions by sorting, ties and empty rows included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.features.dictionaries import kernels


def numbers(seed: int, rows: int, width: int, levels: int) -> np.ndarray:
    """Draw from few levels, so that ties are frequent, some rows without anything positive."""
    rng = np.random.default_rng(seed)
    z = rng.integers(-levels, levels + 1, (rows, width)).astype(np.float32) / 4
    z[rng.random(rows) < 0.2] *= -np.sign(z[0, 0] or 1)
    z[rng.random(rows) < 0.1] = -1
    return z


shapes = st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 15, 16, 17, 33, 64, 65, 300]))


@given(st.integers(0, 10**6), shapes, st.sampled_from([1, 3, 100]), st.sampled_from([1, 2, 5, 16, 40]))
@settings(max_examples=150)
def test_top_rows(seed, shape, levels, k):
    z = numbers(seed, *shape, levels)
    k = min(k, shape[1])
    latents, values, counts = (
        np.zeros((len(z), k), np.int32),
        np.zeros((len(z), k), np.float32),
        np.zeros(len(z), np.int32),
    )
    middle = len(z) // 2
    kernels.top_rows(z, k, 0, middle, latents, values, counts)
    kernels.top_rows(z, k, middle, len(z), latents, values, counts)
    expected = kernels.top_rows_reference(z, k)
    np.testing.assert_array_equal(counts, expected[2])
    starts, found, kept = kernels.compacted(latents, values, counts)
    for i, n in enumerate(counts):
        np.testing.assert_array_equal(found[starts[i] : starts[i + 1]], expected[0][i, :n])
        np.testing.assert_array_equal(kept[starts[i] : starts[i + 1]], expected[1][i, :n])


@given(st.integers(0, 10**6), shapes)
@settings(max_examples=60)
def test_above(seed, shape):
    z = numbers(seed, *shape, 5)
    threshold = np.random.default_rng(seed).choice([-1.0, 0.0, 0.25, 0.5, 9.0], shape[1]).astype(np.float32)
    starts = np.zeros(len(z) + 1, np.int64)
    kernels.count_above(z, threshold, 0, len(z), starts[1:])
    np.cumsum(starts, out=starts)
    latents, values = np.zeros(starts[-1], np.int32), np.zeros(starts[-1], np.float32)
    kernels.above(z, threshold, 0, len(z), starts, latents, values)
    for found, expected in zip((starts, latents, values), kernels.above_reference(z, threshold), strict=True):
        np.testing.assert_array_equal(found, expected)


@given(st.integers(0, 10**6), shapes, st.sampled_from([1, 3, 100]), st.integers(1, 400))
@settings(max_examples=150)
def test_batch_cut(seed, shape, levels, n):
    z = numbers(seed, *shape, levels)
    everything = kernels.above_reference(z, np.zeros(shape[1], np.float32))
    found = kernels.batch_cut(*everything, n)
    for mine, expected in zip(found, kernels.batch_cut_reference(z, n), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_the_guess_lets_somewhat_more_through_than_wanted():
    z = np.random.default_rng(0).standard_normal((500, 256)).astype(np.float32)
    share = (z > kernels.likely_cut(z, 8)).sum() / (8 * 500)
    assert 1.0 < share < 1.6


def test_the_histogram_counts_positive_numbers_in_order():
    z = np.array([[1.0, -2.0, 0.0, 1.0], [3.0, 0.5, -0.0, 1e-30]], np.float32)
    counts = np.zeros(1 << 21, np.int64)
    kernels.histogram(z, 11, counts)
    assert counts[counts > 0].tolist() == [1, 1, 2, 1]  # 1e-30, 0.5, twice 1, 3


def test_by_latent_turns_rows_into_columns():
    starts, latents = np.array([0, 2, 3, 3]), np.array([0, 2, 2], np.int32)
    values, slopes = np.array([1, 2, 3], np.float32), np.array([10, 20, 30], np.float32)
    ends, rows, by_value, by_slope, sums = kernels.by_latent(starts, latents, values, slopes, 4)
    assert ends.tolist() == [0, 1, 1, 3, 3]
    assert rows.tolist() == [0, 0, 1]
    assert by_value.tolist() == [1, 2, 3]
    assert by_slope.tolist() == [10, 20, 30]
    assert sums.tolist() == [10, 0, 50, 0]


@pytest.mark.parametrize("width", [1, 16, 31, 256])
def test_decoding_adds_rows(width):
    rng = np.random.default_rng(1)
    decoder, bias = rng.standard_normal((7, width)).astype(np.float32), np.ones(width, np.float32)
    dense = np.maximum(rng.standard_normal((5, 7)).astype(np.float32), 0)
    starts, latents, values = kernels.above_reference(dense, np.zeros(7, np.float32))
    out = np.empty((5, width), np.float32)
    kernels.decoded(0, 3, starts, latents, values, decoder, bias, out)
    kernels.decoded(3, 5, starts, latents, values, decoder, bias, out)
    np.testing.assert_allclose(out, dense @ decoder + 1, rtol=1e-5, atol=1e-5)
