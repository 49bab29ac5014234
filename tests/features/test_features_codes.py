"""Codes are the dense matrix they stand for, whatever is done to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deltasmith.features.codes import Codes, joined

MATRICES = arrays(
    np.float32, st.tuples(st.integers(1, 7), st.integers(1, 5)), elements=st.sampled_from([0, 0, 1, 2.5])
)


@given(MATRICES)
def test_dense_and_back(matrix: np.ndarray) -> None:
    codes = Codes.of_dense(matrix)
    assert (codes.dense() == matrix).all()
    assert (codes.tokens, codes.width) == matrix.shape
    assert codes.fires.tolist() == (matrix > 0).sum(axis=0).tolist()


@given(MATRICES, st.randoms())
def test_permuted_moves_whole_tokens(matrix: np.ndarray, drawn: object) -> None:
    order = np.arange(len(matrix))
    drawn.shuffle(order)  # type: ignore[attr-defined]
    assert (Codes.of_dense(matrix).permuted(order).dense() == matrix[order]).all()


@given(
    st.lists(
        arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.sampled_from([0, 1])),
        min_size=1,
    )
)
def test_joined_stacks_tokens(parts: list[np.ndarray]) -> None:
    assert (joined([Codes.of_dense(part) for part in parts]).dense() == np.concatenate(parts)).all()


def test_negative_values_do_not_fire() -> None:
    assert Codes.of_dense(np.array([[-1, 2]], np.float32)).latents.tolist() == [1]


def test_rows_that_do_not_span_the_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="do not span"):
        Codes(np.array([0, 1]), np.zeros(2, np.int32), np.ones(2, np.float32), 3)
