from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.merges.mean import Mean, shares
from deltasmith.operation.protocols import Found, Place
from merges.examples import rows

positive = st.floats(0.01, 100, allow_nan=False)


def apply(cells: Any, weights: Any) -> Any:
    return Mean().apply(cells, Place("layer.w", cells.shape[1:], weights=tuple(weights)), Found())


def test_by_hand() -> None:
    cells = np.array([[1.0, -2.0], [3.0, 2.0]], np.float32)
    assert apply(cells, [1.0, 3.0]).tolist() == [2.5, 1.0]
    assert apply(cells, [2.0, -1.0]).tolist() == [-1.0, -6.0]


@given(cells=rows(), data=st.data(), factor=st.sampled_from([0.25, 8.0, 3.0, -2.0]))
def test_scaling_all_weights_changes_nothing(cells: Any, data: Any, factor: float) -> None:
    weights = data.draw(st.lists(positive, min_size=len(cells), max_size=len(cells)))
    scaled = apply(cells, [factor * w for w in weights])
    assert np.allclose(scaled, apply(cells, weights), rtol=1e-6, atol=1e-6)


@given(cells=rows(), data=st.data())
def test_identical_models_give_that_model(cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(positive, min_size=len(cells), max_size=len(cells)))
    same = np.stack([cells[0]] * len(cells))
    assert np.allclose(apply(same, weights), cells[0], rtol=1e-6, atol=0)


@given(cells=rows(st.just(1)), weight=positive)
def test_one_model_of_any_weight_is_exactly_that_model(cells: Any, weight: float) -> None:
    assert np.array_equal(apply(cells, [weight]), cells[0])


@given(rows())
def test_equal_weights_lie_between_the_extremes(cells: Any) -> None:
    merged = apply(cells, [1.0] * len(cells))
    assert (merged >= cells.min(axis=0) - 1e-5).all()
    assert (merged <= cells.max(axis=0) + 1e-5).all()


def test_weights_that_add_up_to_zero_are_refused() -> None:
    cells = np.ones((2, 3), np.float32)
    with pytest.raises(RecipeError) as error:
        apply(cells, [1.0, -1.0])
    assert str(error.value) == (
        "the weights add up to zero (1, -1) in layer.w; a mean divides by their sum; change a weight, "
        "or use a merge that adds up, such as sum"
    )
    with pytest.raises(RecipeError):
        apply(cells, [0.0, 0.0])
    with pytest.raises(RecipeError):  # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point
        shares(Place("w", (1,), weights=(0.1, 0.2, -0.3)))


def test_small_weights_are_not_zero() -> None:
    assert np.allclose(shares(Place("w", (1,), weights=(1e-30, 3e-30))), [0.25, 0.75])
