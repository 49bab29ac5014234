"""Resampling chunks: fair draws, and intervals of a ratio."""

from __future__ import annotations

import numpy as np
import pytest

from deltasmith.analysis.resampling import multiplicities, percentile_interval, resampled_mean


def test_every_resample_has_as_many_chunks_and_each_is_drawn_alike() -> None:
    drawn = multiplicities(7, seed=0, resamples=5000)
    assert drawn.shape == (5000, 7)
    assert (drawn.sum(axis=1) == 7).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 1.0, atol=0.06)
    assert (drawn == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.01)


def test_a_seed_gives_the_same_resamples() -> None:
    np.testing.assert_array_equal(multiplicities(5, 1), multiplicities(5, 1))
    assert not np.array_equal(multiplicities(5, 1), multiplicities(5, 2))


def test_the_interval_of_a_mean_of_many_is_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    values, counts = rng.normal(3.0, 2.0, 400), np.full(400, 5.0)
    mean, interval = resampled_mean(values, counts, seed=0)
    assert interval is not None
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    half = 1.96 * values.std() / 20
    assert interval == (
        pytest.approx(mean - half, abs=0.1 * half),
        pytest.approx(mean + half, abs=0.1 * half),
    )


def test_chunks_that_agree_leave_no_doubt_whatever_they_weigh() -> None:
    mean, interval = resampled_mean(np.full(6, 0.25), np.array([1.0, 50.0, 3.0, 4.0, 9.0, 2.0]), seed=0)
    assert interval is not None
    assert (mean, *interval) == pytest.approx((0.25, 0.25, 0.25), rel=1e-12)


def test_one_chunk_has_no_interval() -> None:
    assert resampled_mean(np.array([2.0]), np.array([3.0]), seed=0) == (2.0, None)


def test_percentiles_leave_a_fortieth_out_on_either_side() -> None:
    assert percentile_interval(np.arange(0.0, 41.0)) == (1.0, 39.0)
