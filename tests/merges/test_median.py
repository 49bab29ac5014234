from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.merges.median import Median
from deltasmith.operation.protocols import Found, Place
from merges.examples import rows


def apply(cells: Any, weights: Any = None) -> Any:
    weights = tuple(weights or [1.0] * len(cells))
    return Median().apply(cells, Place("w", cells.shape[1:], weights=weights), Found())


def test_by_hand() -> None:
    cells = np.array([[1.0, 5.0], [9.0, -5.0], [2.0, 100.0]], np.float32)
    assert apply(cells).tolist() == [2.0, 5.0]
    assert apply(cells[:2]).tolist() == [5.0, 0.0]
    assert (Median.space, Median.spaces) == ("weight", ("weight", "delta"))


@given(cells=rows(), data=st.data())
def test_equals_the_oracle_in_any_order_and_ignores_weights(cells: Any, data: Any) -> None:
    order = data.draw(st.permutations(range(len(cells))))
    wanted = [median(column) for column in cells.T.tolist()]
    assert apply(cells[list(order)], list(range(len(cells)))).tolist() == wanted


def test_one_outlier_does_not_move_it() -> None:
    cells = np.array([[1.0], [1.1], [1e30]], np.float32)
    assert apply(cells)[0] == np.float32(1.1)
