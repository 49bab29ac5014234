"""Ranks within rows: exact, stable, whatever the values and the width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deltasmith.kernels import ranks
from deltasmith.kernels.ranks import rank_rows, rank_rows_reference

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FEW = st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, 1e-42, -1e-42, 3e38])


def test_by_hand():
    rows = np.array([[0.5, -2.0, 0.0, 2.0], [0.0, 0.0, -1.0, 0.0]], np.float32)
    assert rank_rows(rows).tolist() == [[2, 0, 3, 1], [1, 2, 0, 3]]


@settings(deadline=None)  # the first call compiles
@given(
    st.tuples(st.integers(0, 4), st.integers(1, 70)).flatmap(
        lambda shape: hnp.arrays(np.float32, shape, elements=st.one_of(FINITE, FEW))
    )
)
def test_equals_its_definition(rows):
    np.testing.assert_array_equal(rank_rows(rows), rank_rows_reference(rows))


def drawn(kind: str, shape: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    values = {
        "normal": x,
        "heavy": rng.standard_t(1, shape),
        "few": np.round(x * 4) / 4,
        "bfloat16": (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
        # One zero widens the range, so that all other values share their leading bits.
        "sliver": np.where(np.arange(shape[1]) == 3, 0.0, 1.0 + x * 1e-3),
        "ascending": np.broadcast_to(np.arange(shape[1]) + 1.0, shape),
        "constant": np.full(shape, -0.5),
        "zeros": np.zeros(shape),
    }
    return np.ascontiguousarray(values[kind], np.float32)


KINDS = ["normal", "heavy", "few", "bfloat16", "sliver", "ascending", "constant", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 1000, 1024, 5000, 70_000])
def test_distributions_and_widths(kind, width):
    rows = drawn(kind, (3, width))
    np.testing.assert_array_equal(rank_rows(rows), rank_rows_reference(rows))


def test_the_full_sort_is_reached_and_right():
    row = drawn("sliver", (1, 5000))
    words = np.empty(5000, np.uint64), np.empty(5000, np.uint64)
    patterns = row[0].view(np.uint32)
    bins = np.empty((2, 1 << 8), np.uint32)
    high = ranks._radix_leading(patterns, 8, bins, *words)
    assert not ranks._repair(words[1].copy()), "this row should be too much for insertion"
    ranks._radix_full(patterns, high, *words)
    assert (np.diff(words[1].astype(np.int64)) > 0).all()


def test_a_row_of_two_million_elements():
    row = drawn("normal", (1, 2_000_000))
    np.testing.assert_array_equal(rank_rows(row), rank_rows_reference(row))


@pytest.mark.parametrize("shape", [(0, 1), (0, 5), (3, 1)])
def test_nothing_to_rank(shape):
    assert rank_rows(np.ones(shape, np.float32)).tolist() == np.zeros(shape).tolist()


def test_the_input_is_not_written_to():
    rows = drawn("normal", (4, 100))
    copy = rows.copy()
    rank_rows(rows)
    np.testing.assert_array_equal(rows, copy)


@pytest.mark.parametrize("steps", [1, 3, 40])
@pytest.mark.parametrize("tiny", [0.0, 1e-30, 1e-4])
def test_rows_of_few_values_equal_the_sort(steps, tiny):
    """The path for repeated values: zeros, clamped small values, and a row that is not like the first."""
    rng = np.random.default_rng(steps)
    values = np.round(rng.normal(size=(5, 700)) * steps) / np.float32(64)
    values[:, ::7] = rng.normal(size=values[:, ::7].shape) * tiny
    values[3] = rng.standard_t(1, size=700)
    values = values.astype(np.float32)
    assert 2 * np.unique(np.abs(values[0])).size < 700
    np.testing.assert_array_equal(rank_rows(values), rank_rows_reference(values))
