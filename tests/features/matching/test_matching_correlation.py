"""Correlating codes: against the dense definition, by hand, in extreme cases, for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import DamagedInputError
from deltasmith.features.codes import Codes
from deltasmith.features.matching.correlation import (
    Best,
    Correlated,
    columns_of,
    correlate,
    correlate_defined,
)


def drawn(seed: int, tokens: int, width: int, rate: float = 0.1) -> Codes:
    rng = np.random.default_rng(seed)
    shape = (tokens, width)
    return Codes.of_dense(((rng.random(shape) < rate) * rng.gamma(2.0, 1.0, shape)).astype(np.float32))


def related(codes: Codes, seed: int, width: int) -> Codes:
    """Mix the latents, so that correlations of every size occur."""
    rng = np.random.default_rng(seed)
    mixed = codes.dense() @ (
        (rng.random((codes.width, width)) < 8 / codes.width) * rng.random((codes.width, width))
    )
    noise = (rng.random(mixed.shape) < 0.02) * rng.random(mixed.shape)
    return Codes.of_dense((mixed + noise).astype(np.float32))


def parts(best: Best) -> tuple[np.ndarray, ...]:
    return best.best, best.r, best.second, best.second_r


def assert_same(found: Correlated, wanted: Correlated, within: float = 0.0) -> None:
    """Demand the same partners, pairs and order; correlations `within` some error."""
    np.testing.assert_array_equal(found.parents, wanted.parents)
    np.testing.assert_array_equal(found.children, wanted.children)
    np.testing.assert_allclose(found.r, wanted.r, rtol=0, atol=within)
    for own, other in ((found.of_parents, wanted.of_parents), (found.of_children, wanted.of_children)):
        np.testing.assert_array_equal(own.best, other.best)
        np.testing.assert_array_equal(own.second, other.second)
        np.testing.assert_allclose(own.r, other.r, rtol=0, atol=within)
        np.testing.assert_allclose(own.second_r, other.second_r, rtol=0, atol=within)
        for array, kind in zip(parts(own), (np.int32, np.float32) * 2, strict=True):
            assert array.dtype == kind


@pytest.mark.parametrize("seed", range(6))
def test_the_loops_equal_the_dense_definition(seed: int) -> None:
    parent = drawn(seed, 300, 40 if seed else 300)  # 300: several to each range of parents
    child = related(parent, seed + 100, 25 if seed else 200)
    found = correlate(parent, child)
    assert len(found.r) > 25
    assert found.of_parents.r.max() > 0.5
    assert_same(found, correlate_defined(parent, child), 2e-7)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.floats(0.01, 1))
def test_small_codes_of_few_values_give_the_defined_correlations(
    seed: int, tokens: int, width: int, other: int, keep: float
) -> None:
    """Ties abound here: partners may differ by rounding in the dense definition, so the numbers are compared."""
    rng = np.random.default_rng(seed)
    parent, child = (
        Codes.of_dense(rng.integers(0, 3, (tokens, w)).astype(np.float32)) for w in (width, other)
    )
    found, wanted = correlate(parent, child, keep=keep), correlate_defined(parent, child, keep=keep)
    for own, defined in ((found.of_parents, wanted.of_parents), (found.of_children, wanted.of_children)):
        np.testing.assert_array_equal(own.best < 0, defined.best < 0)
        np.testing.assert_array_equal(own.second < 0, defined.second < 0)
        np.testing.assert_allclose(own.r, defined.r, atol=3e-7)
        np.testing.assert_allclose(own.second_r, defined.second_r, atol=3e-7)
    assert np.isfinite(found.r).all()


def test_by_hand() -> None:
    # a fires on the tokens 0 and 1, b on 1 alone: r = (1·4 - 2·1) / sqrt((2·4 - 4) (1·4 - 1)) = 2 / sqrt(12).
    parent = Codes.of_dense(np.array([[1], [1], [0], [0]], np.float32))
    child = Codes.of_dense(np.array([[0, 0], [1, 0], [0, 3], [0, 0]], np.float32))
    found = correlate(parent, child)
    assert found.of_parents.best.tolist() == [0]
    assert found.of_parents.r[0] == pytest.approx(2 / np.sqrt(12))
    assert found.of_parents.second.tolist() == [-1]  # the other child never fires together with it
    assert found.of_parents.second_r.tolist() == [0]
    assert found.of_children.best.tolist() == [0, -1]
    assert found.of_children.r.tolist() == [found.of_parents.r[0], 0]
    assert list(zip(found.parents, found.children, found.r, strict=True)) == [(0, 0, found.of_parents.r[0])]


def test_another_amplitude_does_not_matter_and_equal_codes_correlate_fully() -> None:
    parent = drawn(1, 500, 30)
    scaled = Codes(parent.starts, parent.latents, np.ldexp(parent.values, parent.latents % 7), parent.width)
    found = correlate(parent, scaled)
    np.testing.assert_array_equal(found.of_parents.best, np.arange(30))
    np.testing.assert_allclose(found.of_parents.r, 1, atol=1e-7)
    assert found.r.max() <= 1


def test_constant_latents_have_no_partner() -> None:
    matrix = drawn(2, 49, 30).dense()
    constants = [
        0,
        *(i / 10 for i in range(1, 20)),
    ]  # never, and everywhere with one value, however it rounds
    matrix[:, :20] = constants
    found = correlate(Codes.of_dense(matrix), Codes.of_dense(matrix), keep=0.01)
    for best in (found.of_parents, found.of_children):
        assert best.best[:20].tolist() == [-1] * 20
        assert best.r[:20].tolist() == [0] * 20
        assert not np.isin(np.concatenate((best.best, best.second)), np.arange(20)).any()
    assert found.parents.min() >= 20
    assert found.children.min() >= 20


def test_latents_that_fire_everywhere_and_hardly_vary_keep_their_correlation() -> None:
    rng = np.random.default_rng(0)
    shape = rng.standard_normal(20_000)
    matrix = (1000 + np.stack([shape, shape + rng.standard_normal(20_000)], 1)).astype(np.float32)
    found = correlate(Codes.of_dense(matrix[:, :1]), Codes.of_dense(matrix[:, 1:]))
    exact = np.corrcoef(matrix.T.astype(np.float64))[0, 1]
    assert found.of_parents.r[0] == pytest.approx(exact, abs=1e-6)


def test_ties_go_to_the_lower_index_on_both_sides() -> None:
    pattern = np.array([1, 0, 2, 0, 0], np.float32)
    codes = Codes.of_dense(np.stack([pattern] * 4, 1))
    found = correlate(codes, codes)
    assert found.of_parents.best.tolist() == found.of_children.best.tolist() == [0] * 4
    assert found.of_parents.second.tolist() == found.of_children.second.tolist() == [1] * 4
    assert found.parents.tolist() == np.repeat(np.arange(4), 4).tolist()
    assert found.children.tolist() == np.tile(np.arange(4), 4).tolist()


def test_a_negative_correlation_may_be_the_best() -> None:
    one, two = np.ones(10, np.float32), np.ones(10, np.float32)
    one[0], two[1] = 0, 0
    found = correlate(Codes.of_dense(one[:, None]), Codes.of_dense(two[:, None]))
    assert found.of_parents.best.tolist() == [0]
    assert found.of_parents.r[0] == pytest.approx(-1 / 9)
    assert len(found.r) == 0


def test_pairs_stand_by_parent_then_falling_correlation_and_reach_down_to_keep() -> None:
    parent = drawn(3, 400, 20)
    child = related(parent, 4, 30)
    all_pairs, some = correlate(parent, child, keep=1e-6), correlate(parent, child, keep=0.4)
    assert (np.diff(all_pairs.parents) >= 0).all()
    within = np.diff(all_pairs.parents) == 0
    assert (np.diff(all_pairs.r)[within] <= 0).all()
    enough = all_pairs.r >= np.float32(0.4)
    assert 0 < enough.sum() < len(enough)
    np.testing.assert_array_equal(some.children, all_pairs.children[enough])
    np.testing.assert_array_equal(some.of_parents.best, all_pairs.of_parents.best)


def test_the_number_of_threads_changes_nothing() -> None:
    parent = drawn(5, 600, 150)
    child = related(parent, 6, 90)
    one = correlate(parent, child)
    for threads in (2, 5):
        assert_same(correlate(parent, child, threads=threads), one)


def test_the_sides_are_exchanged_with_the_arguments() -> None:
    parent = drawn(7, 400, 30)
    child = related(parent, 8, 30)
    there, back = correlate(parent, child), correlate(child, parent)
    np.testing.assert_array_equal(there.of_parents.best, back.of_children.best)
    np.testing.assert_allclose(there.of_parents.r, back.of_children.r, atol=1e-7)


def test_more_pairs_than_there_was_room_for_and_ties_within_and_across_ranges() -> None:
    codes = Codes.of_dense(np.tile(np.array([[1], [0], [2]], np.float32), (1, 400)))
    found = correlate(codes, codes)
    assert found.parents.tolist() == np.repeat(np.arange(400), 400).tolist()
    assert found.children.tolist() == np.tile(np.arange(400), 400).tolist()
    assert (found.r == 1).all()
    for best in (found.of_parents, found.of_children):
        assert set(best.best.tolist()) == {0}
        assert set(best.second.tolist()) == {1}


def test_pairs_exactly_at_keep_are_kept_though_they_are_nobodys_best() -> None:
    whole, half = np.array([1, 2, 0, 0], np.float32), np.array([1, 0, 0, 0], np.float32)
    parent, child = (
        Codes.of_dense(np.stack([whole] * 400, 1)),
        Codes.of_dense(np.stack([whole, whole, half], 1)),
    )
    lowest = correlate(parent, child, keep=0.01).r.min()
    assert lowest < 0.5
    assert len(correlate(parent, child, keep=float(lowest)).r) == 1200


def nearly_constant(by: float) -> Codes:
    rng = np.random.default_rng(0)
    matrix = 1 + by * rng.standard_normal((20_000, 3))
    matrix[:, 1] = matrix[:, 0]
    return Codes.of_dense(matrix.astype(np.float32))


def test_latents_that_hardly_vary_correlate_within_bounds_and_not_at_all_where_sums_would_be_rounding() -> (
    None
):
    codes = nearly_constant(3e-5)
    found = correlate(codes, codes).of_parents
    assert found.r.max() <= 1
    np.testing.assert_allclose(found.r, 1, atol=1e-4)
    codes = nearly_constant(3e-7)
    assert correlate(codes, codes).of_parents.best.tolist() == [-1] * 3


@pytest.mark.parametrize(("tokens", "width"), [(0, 3), (1, 3), (5, 0)])
def test_without_tokens_or_latents_there_are_no_partners(tokens: int, width: int) -> None:
    codes = Codes.of_dense(np.ones((tokens, width), np.float32))
    found = correlate(codes, drawn(0, tokens, 4, rate=1.0))
    assert found.of_parents.best.tolist() == [-1] * width
    assert found.of_children.best.tolist() == [-1] * 4
    assert len(found.r) == 0


def test_columns_hold_the_same_activations() -> None:
    codes = drawn(9, 100, 12)
    columns = columns_of(codes)
    matrix = np.zeros((100, 12), np.float32)
    for latent in range(12):
        some = slice(columns.bounds[latent], columns.bounds[latent + 1])
        assert (np.diff(columns.tokens[some]) > 0).all()
        matrix[columns.tokens[some], latent] = columns.values[some]
    np.testing.assert_array_equal(matrix, codes.dense())


def damaged(**changes: np.ndarray) -> Codes:
    whole = {
        "starts": np.array([0, 2, 3], np.int64),
        "latents": np.array([0, 1, 1], np.int32),
        "values": np.ones(3, np.float32),
    }
    return Codes(**(whole | changes), width=2)


@pytest.mark.parametrize(
    "codes",
    [
        damaged(latents=np.array([0, 2, 1], np.int32)),
        damaged(latents=np.array([-1, 1, 1], np.int32)),
        damaged(latents=np.array([1, 1, 1], np.int32)),
        damaged(values=np.array([1, np.nan, 1], np.float32)),
        damaged(values=np.array([1, np.inf, 1], np.float32)),
        damaged(values=np.array([1, 0, 1], np.float32)),
        damaged(starts=np.array([0, 5, 3], np.int64)),
        damaged(starts=np.array([0, -4, 3], np.int64)),
    ],
)
def test_codes_that_would_lead_the_loops_astray_are_refused(codes: Codes) -> None:
    sound = damaged()
    correlate(sound, sound)
    for pair in ((codes, sound), (sound, codes)):
        with pytest.raises(
            DamagedInputError, match="rows are out of order or hold a value that is no positive"
        ):
            correlate(*pair)


def test_codes_over_different_tokens_are_refused() -> None:
    with pytest.raises(DamagedInputError, match="the codes span 10 and 11 tokens in two dictionaries"):
        correlate(drawn(0, 10, 3), drawn(0, 11, 3))
