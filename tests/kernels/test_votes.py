from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.kernels import votes
from merges.examples import rows, small_floats

PAIRS = {
    "weighted_sum": (votes.weighted_sum, votes.weighted_sum_defined),
    "elect_mean": (
        lambda c, w: votes.elect_mean(c, w, np.abs(w) + 0.5, 1),
        lambda c, w: votes.elect_mean_defined(c, w, np.abs(w) + 0.5, 1),
    ),
    "elect_sum": (lambda c, w: votes.elect_sum(c, w, -1), lambda c, w: votes.elect_sum_defined(c, w, -1)),
    "elect_max": (lambda c, w: votes.elect_max(c, w, 0), lambda c, w: votes.elect_max_defined(c, w, 0)),
    "unify": (votes.unify, lambda c, w: votes.elect_max_defined(c, w, -1)),
    "median": (lambda c, w: votes.median(c), lambda c, w: votes.median_defined(c)),
}


def same_bits(got: Any, wanted: Any) -> bool:
    return got.dtype == wanted.dtype == np.float32 and got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("models", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 5000])
def test_compiled_equals_definition_bit_for_bit(name: str, models: int, size: int) -> None:
    rng = np.random.default_rng(models * 10_000 + size)
    cells = rng.normal(size=(models, size)).astype(np.float32)
    cells[rng.random(cells.shape) < 0.4] = 0
    # Ties, and votes that cancel; without -0.0, which numpy's median turns into 0.0.
    cells[:, : size // 3] = np.round(cells[:, : size // 3]) + 0.0
    weights = rng.choice([1.0, -0.3, 0.7, 0.0], size=models)
    compiled, defined = PAIRS[name]
    assert same_bits(compiled(cells, weights), defined(cells, weights))


@pytest.mark.parametrize("zero", [-1, 0, 1])
@given(cells=rows(), data=st.data())
def test_elections_equal_their_definitions_where_votes_cancel(zero: int, cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    shares = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    assert same_bits(
        votes.elect_mean(cells, weights, shares, zero),
        votes.elect_mean_defined(cells, weights, shares, zero),
    )
    assert same_bits(votes.elect_sum(cells, weights, zero), votes.elect_sum_defined(cells, weights, zero))
    assert same_bits(votes.elect_max(cells, weights, zero), votes.elect_max_defined(cells, weights, zero))
    assert votes.sign_balance(cells, weights) == votes.sign_balance_defined(cells, weights)


@given(rows())
def test_median_equals_its_definition(cells: Any) -> None:
    assert np.array_equal(votes.median(cells), votes.median_defined(cells))


def test_weights_are_rounded_to_float32_once() -> None:
    cells = np.array([[3.0]], np.float32)
    assert votes.weighted_sum(cells, [0.1])[0] == np.float32(0.1) * np.float32(3)


def test_negative_zero_survives_a_sum_of_one() -> None:
    assert np.signbit(votes.weighted_sum(np.array([[-0.0]], np.float32), [1.0]))[0]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 3, 0), (2, 2, 2, 2)])
def test_shapes_are_kept_and_inputs_untouched(shape: tuple[int, ...]) -> None:
    cells = np.arange(2 * int(np.prod(shape)), dtype=np.float32).reshape(2, *shape) - 3
    cells.setflags(write=False)
    before = cells.copy()
    for compiled, defined in PAIRS.values():
        got = compiled(cells, np.array([1.0, -0.5]))
        assert got.shape == shape
        assert same_bits(np.asarray(got), np.asarray(defined(cells, np.array([1.0, -0.5]))))
    assert np.array_equal(cells, before)


def test_strided_cells_are_read_right() -> None:
    cells = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::2, ::-1]
    assert np.array_equal(votes.weighted_sum(cells, [1.0, 2.0]), cells[0] + 2 * cells[1])
