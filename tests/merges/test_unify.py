from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.merges.unify import Unify
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows, small_floats


def apply(cells: Any, weights: Any) -> Any:
    return Unify().apply(cells, Place("w", cells.shape[1:], weights=tuple(weights)), Found())


def test_by_hand() -> None:
    cells = np.array([[4.0, 1.0, -2.0, 0.0], [2.0, -3.0, 2.0, 0.0], [-1.0, 0.5, 0.0, 0.0]], np.float32)
    unified = apply(cells, [1.0, 1.0, 1.0])
    assert unified.tolist() == [4.0, -3.0, -2.0, 0.0]
    assert not np.signbit(unified[3])


@given(cells=rows(), data=st.data())
def test_equals_the_oracle_in_any_order(cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    order = list(data.draw(st.permutations(range(len(cells)))))
    wanted = oracles.elect_max(cells.tolist(), weights, -1)
    assert apply(cells[order], [weights[t] for t in order]).tolist() == wanted


@pytest.mark.parametrize("case", cases("emr"), ids=str)
def test_golden(case: Case) -> None:
    arrays = case.arrays
    merged = merge_table(Unify(), oracles.deltas_of(arrays))
    for name, tensor in merged.items():
        assert_close(tensor, arrays["expected_unified"][name], case)
