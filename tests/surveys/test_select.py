"""Selection without sorting: exact for any data, any guess, any split into blocks and workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.operation.protocols import BLOCK, Place
from deltasmith.surveys import select


def by_sorting(values: np.ndarray, k: int) -> np.ndarray:
    """Keep the k largest magnitudes, ties to the lower index: the definition."""
    kept = np.zeros_like(values)
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    kept[order] = values[order]
    return kept


def rounds(values: np.ndarray, k: int, findings: list, workers: int = 2) -> list:
    """Run the chain to its end by hand, as a runner would."""
    while survey := select.next_survey(findings, scope="global", keep=lambda n: k):
        tallies = [survey.start() for _ in range(workers)]
        starts = range(0, values.size, BLOCK)
        for i, start in reversed(list(enumerate(starts))):  # any order
            place = Place("x", values.shape, start=start)
            survey.tally(tallies[i % workers], [values[start : start + BLOCK]], place)
        findings = [*findings, survey.conclude(tallies)]
    return findings


def keep_all(values: np.ndarray, ends: select.Cut, tile: int) -> np.ndarray:
    parts = [
        select.keep(values[s : s + tile], ends, Place("x", values.shape, start=s))
        for s in range(0, values.size, tile)
    ]
    return np.concatenate(parts)


def draw(kind: str, n: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.normal(size=n)
    if kind == "tied":
        values = np.round(values * 8) / 8
    if kind == "mostly zero":
        values[rng.random(n) < 0.9] = 0
    if kind == "constant":
        values[:] = -2.5
    if kind == "wide":
        values = values * np.exp(rng.normal(size=n) * 20)
    return values.astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 40_000, 199_999, 200_000])
@pytest.mark.parametrize("kind", ["normal", "tied", "mostly zero", "constant", "wide"])
def test_exact_from_a_good_guess_and_from_a_bad_one(kind: str, k: int) -> None:
    values = draw(kind)
    want = by_sorting(values, k)
    patterns = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    for seen in (patterns[::10].copy(), patterns[:50].copy()):  # the second one misses the bracket
        guess = select._guess(seen, k, values.size) if k < values.size else None
        ends = select.cut(rounds(values, k, [guess] if guess else []))
        assert ends.keep == k
        for tile in (BLOCK, 2 * BLOCK, 4 * BLOCK):
            np.testing.assert_array_equal(keep_all(values, ends, tile), want)


def test_the_usual_case_takes_one_full_pass() -> None:
    for kind in ("normal", "tied"):
        values = draw(kind, 1_000_000)
        patterns = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
        guess = select._guess(patterns[::7].copy(), 200_000, values.size)
        assert len(rounds(values, 200_000, [guess])) == 2, kind


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40), st.data())
def test_small_tables_and_masks(values: list[float], data: st.DataObject) -> None:
    array = np.array(values, np.float32)
    k = data.draw(st.integers(0, len(values)))
    ends = select.cut(rounds(array, k, []))
    place = Place("x", array.shape)
    want = by_sorting(array, k)
    np.testing.assert_array_equal(select.keep(array, ends, place), want)
    marks = select.kept(array, ends, place)
    assert marks.sum() == k
    np.testing.assert_array_equal(np.where(marks, array, 0), want)
    if 0 < k < len(values):
        assert select.at_least(array, ends).sum() == (np.abs(array) >= ends.threshold).sum() >= k


def test_order_of_workers_does_not_matter() -> None:
    values = draw("tied")
    first = select.cut(rounds(values, 12_345, [], workers=1))
    assert select.cut(rounds(values, 12_345, [], workers=5)).pattern == first.pattern
