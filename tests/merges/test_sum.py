from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.merges.mean import Mean
from deltasmith.merges.sum import Sum
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows, small_floats


def apply(cells: Any, weights: Any) -> Any:
    return Sum().apply(cells, Place("w", cells.shape[1:], weights=tuple(weights)), Found())


def test_by_hand() -> None:
    cells = np.array([[1.0, -2.0, 0.0], [3.0, 2.0, 4.0]], np.float32)
    assert apply(cells, [1.0, 0.5]).tolist() == [2.5, -1.0, 2.0]
    assert apply(cells, [1.0, -1.0]).tolist() == [-2.0, -4.0, -4.0]


@given(cells=rows(), data=st.data())
def test_equals_the_oracle_and_does_not_depend_on_order(cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    order = data.draw(st.permutations(range(len(cells))))
    # Multiples of 1/16 below 2^24 are exact in float32, so order cannot show in the rounding either.
    assert apply(cells, weights).tolist() == oracles.weighted_sum(cells.tolist(), weights)
    permuted = apply(cells[list(order)], [weights[t] for t in order])
    assert np.array_equal(permuted, apply(cells, weights))


@given(rows())
def test_one_model_of_weight_one_is_that_model(cells: Any) -> None:
    assert np.array_equal(apply(cells[:1], [1.0]), cells[0])


@pytest.mark.parametrize("case", cases("task_arithmetic"), ids=str)
def test_golden_task_arithmetic(case: Case) -> None:
    arrays = case.arrays
    deltas, base = oracles.deltas_of(arrays), oracles.base_of(arrays)
    merge = Mean() if case.params.get("normalize") else Sum()
    merged = merge_table(merge, deltas, weights=case.params.get("weights"))
    for name, delta in merged.items():
        assert_close(base[name] + np.float32(case.params["lam"]) * delta, arrays["expected"][name], case)


@pytest.mark.parametrize("case", cases("expo"), ids=str)
def test_golden_expo_is_one_model_of_weight_above_one(case: Case) -> None:
    arrays = case.arrays
    sft, aligned = arrays["sft"], arrays["aligned"]
    delta = {name: aligned[name] - sft[name] for name in sft}
    merged = merge_table(Sum(), [delta], weights=[1 + case.params["alpha"]])
    for name in sft:
        assert_close(sft[name] + merged[name], arrays["expected"][name], case)
