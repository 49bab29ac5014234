"""Counts over packed signs: equal to their definitions, for any row, edge and number of models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.kernels.sign_counts import (
    differing_in_rows,
    differing_in_rows_defined,
    elect_signs,
    elect_signs_defined,
)


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 1 << 64, shape, np.uint64, endpoint=False)


@given(st.integers(0, 200), st.integers(0, 300), st.integers(0, 9), st.integers(0, 99))
@settings(max_examples=60)
def test_rows_are_counted_wherever_they_begin(first, width, rows, seed):
    rng = np.random.default_rng(seed)
    size = -(-(first + width * rows) // 64) + int(rng.integers(0, 2))
    one, other = draw(rng, size), draw(rng, size)
    found = differing_in_rows(one, other, first, width, rows)
    assert np.array_equal(found, differing_in_rows_defined(one, other, first, width, rows))


def test_rows_beyond_the_words_are_refused():
    words = np.zeros(2, np.uint64)
    assert differing_in_rows(words, words, 0, 128, 1).tolist() == [0]
    for arguments in ((1, 128, 1), (0, 65, 2), (-1, 2, 1)):
        with pytest.raises(ValueError, match="2 and 2 words"):
            differing_in_rows(words, words, *arguments)
    with pytest.raises(ValueError, match="2 and 1 words"):
        differing_in_rows(words, words[:1], 0, 3, 1)


@given(st.integers(1, 9), st.integers(0, 200), st.integers(1, 70), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=80)
def test_elections_are_those_of_the_definition(models, n, width, skipped, seed):
    rng = np.random.default_rng(seed)
    first = 64 * skipped
    words = draw(rng, models, -(-n // 64))
    flipped = rng.random(models) < 0.3
    # Few different scales, so that weighted sums are ties as well.
    scales = rng.integers(1, 4, (models, -(-(first + n) // width) or 1)).astype(np.float64)
    found = elect_signs(words, flipped, scales, width, first, n)
    assert np.array_equal(found, elect_signs_defined(words, flipped, scales, width, first, n))


@pytest.mark.parametrize("models", [1, 2, 3, 16, 17])
def test_an_election_by_hand(models):
    """Element i has i plus signs; the rest is minus. Ties go to the heavier side, equal weights to minus."""
    signs = np.arange(models + 1) > np.arange(models)[:, None]
    words = np.zeros((models, 1), np.uint64)
    for t in range(models):
        words[t, 0] = sum(1 << i for i in range(models + 1) if signs[t, i])
    expected = [2 * i > models for i in range(models + 1)]
    plain, heavy = np.ones((models, 1)), np.linspace(2, 1, models)[:, None]
    none = np.zeros(models, bool)
    for scales, tie in ((plain, False), (heavy, True)):
        found = int(elect_signs(words, none, scales, models + 1, 0, models + 1)[0])
        want = [e or (tie and 2 * i == models) for i, e in enumerate(expected)]
        assert found == sum(1 << i for i, e in enumerate(want) if e)


def test_elections_of_the_wrong_shape_are_refused():
    words, none = np.zeros((2, 1), np.uint64), np.zeros(2, bool)
    for bad in (
        (words, none, np.ones((2, 1)), 64, 1, 3),
        (words, none, np.ones((2, 1)), 64, 0, 65),
        (words, none, np.ones((2, 1)), 2, 0, 3),
        (words, none, np.ones((1, 1)), 64, 0, 3),
        (words[:0], none[:0], np.ones((0, 1)), 64, 0, 3),
    ):
        with pytest.raises(ValueError, match="models"):
            elect_signs(*bad)
