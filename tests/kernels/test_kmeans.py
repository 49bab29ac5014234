from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.kernels.kmeans import assign, centroids, centroids_reference, inertia
from golden_cases import Case, cases

columns = st.lists(
    st.one_of(st.integers(-4, 4).map(float), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=40
).map(np.float32)


def brute(values: Any, k: int) -> float:
    """Return the least inertia over every way to cut the sorted values into at most k runs."""
    ordered = np.sort(values.astype(np.float64))
    best = np.inf
    for cuts in itertools.combinations(range(1, ordered.size), min(k, ordered.size) - 1):
        runs = np.split(ordered, cuts)
        best = min(best, sum(float(((run - run.mean()) ** 2).sum()) for run in runs))
    return best


@settings(max_examples=80, deadline=None)
@given(values=columns, k=st.integers(1, 9))
def test_equals_the_definition(values: Any, k: int) -> None:
    found, wanted = centroids(values, k), centroids_reference(values, k)
    assert found.shape == (k,)
    assert (np.diff(found) >= 0).all()
    scale = 1e-9 * (1 + float(np.square(values, dtype=np.float64).sum()))
    assert abs(inertia(values, found) - inertia(values, wanted)) <= scale


@settings(max_examples=40, deadline=None)
@given(values=columns.filter(lambda v: v.size <= 10), k=st.integers(1, 5))
def test_no_partition_is_better(values: Any, k: int) -> None:
    scale = 1e-9 * (1 + float(np.square(values, dtype=np.float64).sum()))
    assert inertia(values, centroids(values, k)) <= brute(values, k) + scale
    assert inertia(values, centroids_reference(values, k)) <= brute(values, k) + scale


@pytest.mark.parametrize("k", [2, 4, 16, 256])
def test_long_columns_equal_the_definition(k: int) -> None:
    values = np.random.default_rng(k).laplace(size=400).astype(np.float32)
    np.testing.assert_allclose(centroids(values, k), centroids_reference(values, k), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", cases("claq_kmeans"), ids=str)
def test_golden_no_worse_than_the_released_code(case: Case) -> None:
    arrays = case.arrays
    k = 1 << case.params["bits"]
    for j, column in enumerate(arrays["W"].T):
        got = inertia(column, centroids(column, k))
        assert got <= arrays["expected_inertia"][j] * (1 + 1e-6)
        assert np.isclose(got, arrays["expected_optimal_inertia"][j], rtol=1e-6)


def test_few_distinct_values_are_met_exactly() -> None:
    values = np.float32([3, -1, 3, 3, -1, 0.1])
    assert centroids(values, 4).tolist() == [-1, np.float64(np.float32(0.1)), 3, 3]
    assert centroids(values[:1], 8).tolist() == [3] * 8
    assert centroids(np.zeros(0, np.float32), 2).tolist() == [0, 0]


def test_values_far_from_zero_lose_no_digits() -> None:
    near = np.float32([0, 1, 2, 30, 31, 32])
    far = near + np.float32(2**20)
    np.testing.assert_allclose(centroids(far, 2) - 2**20, centroids(near, 2), atol=1e-9)


def test_codes_name_the_nearest_centroid_and_ties_go_down() -> None:
    random = np.random.default_rng(0)
    for k in (1, 2, 16, 256):
        codebook = np.sort(random.standard_normal(k)).astype(np.float32)
        middles = ((codebook[:-1].astype(np.float64) + codebook[1:]) / 2).astype(np.float32)
        values = np.concatenate([random.standard_normal(300).astype(np.float32), middles, codebook])
        codes = np.empty(values.size, np.uint8)
        assign(values, codebook, codes)
        wanted = np.abs(values.astype(np.float64)[:, None] - codebook.astype(np.float64)).argmin(axis=1)
        assert (codes == wanted).all()
