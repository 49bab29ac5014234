"""Two members compared: observed and resampled statuses follow the same rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_studies import events

from deltasmith.errors import DamagedInputError, InterruptedRunError
from deltasmith.features.codes import Codes
from deltasmith.features.comparing import Passages, best_of_pairs, best_of_pairs_defined, compare
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import DESCENT, FATE, Descent, Fate

RULES = Thresholds(min_fires=5)


def planted(tokens: int = 1200, count: int = 12, seed: int = 0) -> tuple[Codes, Codes]:
    """Two dictionaries that share some features, well, badly, or not at all; one feature is split."""
    rng = np.random.default_rng(seed)
    parent = events(count, tokens, seed, rate=0.05)
    child = parent * rng.uniform(0.9, 1.1, parent.shape)
    child[:, 3:6] = events(3, tokens, seed + 1, rate=0.05)  # others
    for at in (6, 7):
        child[np.flatnonzero(parent[:, at])[::2], at] = 0  # weaker: half of the firings are left
    second = np.flatnonzero(parent[:, 8])[::2]
    child[:, 9] = 0
    child[second, 9], child[second, 8] = parent[second, 8], 0  # split
    return Codes.of_dense(parent.astype(np.float32)), Codes.of_dense(child.astype(np.float32))


def blocks(tokens: int, size: int = 50) -> np.ndarray:
    return (np.arange(tokens) // size).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_the_kernel_equals_its_definition_with_ties_to_the_lower_index(
    seed: int, width: int, child: int
) -> None:
    rng = np.random.default_rng(seed)
    parents, children = np.nonzero(rng.random((width, child)) < 0.6)
    r = rng.choice(np.array([-0.25, 0.0, 0.5, 0.75], np.float32), len(parents))
    pairs = parents.astype(np.int32), children.astype(np.int32), r
    found, defined = best_of_pairs(*pairs, width, child), best_of_pairs_defined(*pairs, width, child)
    for one, other in zip(found, defined, strict=True):
        np.testing.assert_array_equal(one.best, other.best)
        np.testing.assert_array_equal(one.r, other.r)


def test_a_resample_that_draws_every_passage_once_finds_what_was_observed() -> None:
    parent, child = planted()
    every = Passages(blocks(1200), np.ones((3, 24)))
    found = compare(parent, child, every, RULES)
    assert found.fate.shape == (4, 12)
    for row in range(1, 4):
        np.testing.assert_array_equal(found.fate[row], found.fate[0])
        np.testing.assert_array_equal(found.descent[row], found.descent[0])
        strong = found.fate[0] == FATE.index(Fate.PERSISTED)
        np.testing.assert_array_equal(found.child_of[row][strong], found.child_of[0][strong])
        np.testing.assert_array_equal(found.reach[row], found.reach[0])


def test_what_was_planted_is_found() -> None:
    parent, child = planted()
    found = compare(parent, child, Passages.of(blocks(1200), 0, 0), RULES)
    assert found.fate.shape == (1, 12)
    words = [FATE[at].value for at in found.fate[0]]
    assert words[:3] == ["persisted"] * 3
    assert words[3:6] == ["disappeared"] * 3
    assert words[6:9] == ["drifted", "drifted", "split"]
    assert [DESCENT[at].value for at in found.descent[0][[3, 8, 9]]] == ["emerged", "split", "split"]
    assert found.new[0].tolist() == (found.descent[0] == DESCENT.index(Descent.EMERGED)).tolist()


def test_neither_threads_nor_a_second_run_change_anything() -> None:
    parent, child = planted()
    passages = Passages.of(blocks(1200), 3, 20)
    one, other = (compare(parent, child, passages, RULES, threads=n) for n in (1, 3))
    for name in ("fate", "descent", "child_of", "parent_of", "reach"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_feature_of_one_passage_is_untold_and_not_gone_where_that_passage_is_not_drawn() -> None:
    signals = np.zeros((100, 2), np.float32)
    signals[:10, 0] = np.arange(1, 11)  # in the first passage alone
    signals[::3, 1] = 1
    codes = Codes.of_dense(signals)
    passages = Passages(blocks(100, 50), np.array([[2.0, 0.0], [0.0, 2.0]]))
    found = compare(codes, codes, passages, RULES)
    assert [FATE[at].value for at in found.fate[:, 0]] == ["persisted", "persisted", "dead"]
    assert found.testable.tolist() == [[True, True], [True, True], [False, True]]
    assert found.testable_child.tolist() == found.testable.tolist()


def test_a_feature_that_fires_too_rarely_may_be_told_of_where_its_passage_is_drawn_twice() -> None:
    signals = np.zeros((100, 1), np.float32)
    signals[[1, 2, 60], 0] = 1
    found = compare(
        *(Codes.of_dense(signals),) * 2,
        Passages(blocks(100), np.array([[2.0, 0.0]])),
        Thresholds(min_fires=4),
    )
    assert [FATE[at].value for at in found.fate[:, 0]] == ["unexercised", "persisted"]


def test_passages_count_what_is_drawn() -> None:
    passages = Passages.of(blocks(100, 20), 5, 7)
    assert passages.counts.shape == (7, 5)
    assert (passages.counts.sum(axis=1) == 5).all()
    codes = Codes.of_dense(np.ones((100, 2), np.float32))
    np.testing.assert_array_equal(passages.fires(codes), np.full((7, 2), 100))
    assert Passages.of(np.zeros(10, np.int32), 5, 7).resamples == 0  # one passage: nothing to draw
    with pytest.raises(DamagedInputError, match="its passages are out of order"):
        Passages.of(blocks(100)[::-1], 5, 7)


def test_codes_of_other_tokens_are_refused() -> None:
    parent, child = planted()
    with pytest.raises(DamagedInputError, match="the codes span 1200 and 1200 tokens, the held-out text 100"):
        compare(parent, child, Passages.of(blocks(100), 0, 0), RULES)


def test_it_stops_when_asked() -> None:
    with pytest.raises(InterruptedRunError, match="matching was interrupted; run the same command again"):
        compare(*planted(), Passages.of(blocks(1200), 0, 20), RULES, stopped=lambda: True)
