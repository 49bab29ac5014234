"""Correlations over resampled passages: ones give them back, numbers repeat tokens, passages are kept whole."""

from __future__ import annotations

import numpy as np
import pytest

from deltasmith.analysis.resampling import multiplicities
from deltasmith.features.codes import Codes
from deltasmith.features.matching.correlation import correlate
from deltasmith.features.matching.moments import (
    BLOCKS,
    PAIRS_AT_ONCE,
    block_moments,
    blocks_of,
    each_resampled_r,
    resampled_r,
)
from features.planted import planted


def some_blocks(tokens: int, count: int) -> np.ndarray:
    return (np.arange(tokens) * count // tokens).astype(np.int32)


def test_ones_give_the_correlations_back() -> None:
    made = planted(0, tokens=3000)
    found = correlate(made.parent, made.child, keep=0.01)
    moments = block_moments(
        made.parent, made.child, (found.parents, found.children), some_blocks(made.parent.tokens, 40)
    )
    assert moments.ab.shape == (40, len(found.r))
    again = resampled_r(moments, np.ones((1, 40)))
    assert again.dtype == np.float32
    np.testing.assert_allclose(again[0], found.r, rtol=0, atol=1.2e-7)


def test_multiplicities_stand_for_repeated_tokens() -> None:
    made = planted(1, tokens=600)
    found = correlate(made.parent, made.child, keep=0.2)
    blocks = np.repeat(np.arange(6), (50, 150, 100, 30, 70, 200)).astype(np.int32)
    drawn = np.array([[2, 0, 1, 3, 0, 0], [0, 0, 6, 0, 0, 0]], np.float64)
    r = resampled_r(block_moments(made.parent, made.child, (found.parents, found.children), blocks), drawn)
    for row, counts in zip(r, drawn, strict=True):
        order = np.repeat(np.arange(600), counts[blocks].astype(int))
        a, b = made.parent.dense()[order].astype(np.float64), made.child.dense()[order].astype(np.float64)
        for at in range(0, len(found.r), 7):
            one, two = a[:, found.parents[at]], b[:, found.children[at]]
            varies = np.ptp(one) > 0 and np.ptp(two) > 0
            assert row[at] == pytest.approx(np.corrcoef(one, two)[0, 1] if varies else 0.0, abs=1e-6)


def test_latents_that_do_not_vary_over_what_was_drawn_correlate_with_nothing() -> None:
    matrix = np.zeros((40, 2), np.float32)
    matrix[3, 0] = 1  # in the first block only
    matrix[:, 1] = 0.1
    codes = Codes.of_dense(matrix)
    pairs = np.array([0, 1, 0], np.int32), np.array([0, 1, 1], np.int32)
    r = resampled_r(
        block_moments(codes, codes, pairs, some_blocks(40, 2)), np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    )
    assert r.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_the_spread_over_resamples_is_that_over_fresh_data() -> None:
    def data(seed: int) -> tuple[Codes, Codes]:
        rng = np.random.default_rng(seed)
        one, two = ((rng.random((2000, 8)) < 0.1) * rng.random((2000, 8)) for _ in range(2))
        both = np.where(rng.random((2000, 8)) < 0.7, one, two)
        return Codes.of_dense(one.astype(np.float32)), Codes.of_dense(both.astype(np.float32))

    pairs = np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32)
    blocks = some_blocks(2000, 64)
    moments = block_moments(*data(0), pairs, blocks)
    spread = resampled_r(moments, multiplicities(64, 0, 500)).std(axis=0).mean()
    fresh = [
        resampled_r(block_moments(*data(seed), pairs, blocks), np.ones((1, 64)))[0] for seed in range(1, 30)
    ]
    assert spread == pytest.approx(np.std(fresh, axis=0).mean(), rel=0.25)


def test_pairs_may_be_repeated_none_or_more_than_are_computed_at_once() -> None:
    made = planted(2, tokens=400)
    blocks = some_blocks(400, 4)
    pairs = (
        np.zeros(PAIRS_AT_ONCE + 5, np.int32),
        np.arange(PAIRS_AT_ONCE + 5, dtype=np.int32) % made.child.width,
    )
    moments = block_moments(made.parent, made.child, pairs, blocks)
    parts = list(each_resampled_r(moments, np.ones((2, 4))))
    assert [part[0] for part in parts] == [slice(0, PAIRS_AT_ONCE), slice(PAIRS_AT_ONCE, PAIRS_AT_ONCE + 5)]
    whole = resampled_r(moments, np.ones((2, 4)))
    np.testing.assert_array_equal(np.concatenate([r for _, r in parts], 1), whole)
    np.testing.assert_array_equal(
        whole[:, : made.child.width], whole[:, made.child.width : 2 * made.child.width]
    )
    none = np.zeros(0, np.int32)
    assert resampled_r(
        block_moments(made.parent, made.child, (none, none), blocks), np.ones((3, 4))
    ).shape == (3, 0)


def test_blocks_keep_passages_whole_and_are_about_even() -> None:
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(1, 60, 3000))  # the last passages are the longest
    passage = np.repeat(np.cumsum(rng.integers(1, 4, 3000)), lengths).astype(np.int32)
    blocks = blocks_of(passage)
    assert blocks.dtype == np.int32
    assert (np.diff(blocks)[np.diff(passage) == 0] == 0).all()
    assert (np.diff(blocks) >= 0).all()
    sizes = np.bincount(blocks)
    assert len(sizes) == BLOCKS
    assert sizes.max() < 1.3 * sizes.mean()
    assert sizes.min() > 0.7 * sizes.mean()


def test_few_passages_are_blocks_of_their_own_and_a_giant_leaves_no_empty_ones() -> None:
    assert blocks_of(np.array([5, 5, 9, 12, 12], np.int32)).tolist() == [0, 0, 1, 2, 2]
    giant = np.concatenate((np.zeros(100_000, np.int32), np.arange(1, 500, dtype=np.int32)))
    assert np.bincount(blocks_of(giant)).min() > 0
    assert blocks_of(np.zeros(0, np.int32)).tolist() == []


@pytest.mark.parametrize("blocks", [[0, 1, 0], [-1, 0, 1], [0, 0]])
def test_blocks_out_of_order_are_refused(blocks: list[int]) -> None:
    codes = Codes.of_dense(np.eye(3, dtype=np.float32))
    pairs = np.zeros(1, np.int32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="blocks"):
        block_moments(codes, codes, pairs, np.array(blocks, np.int32))
