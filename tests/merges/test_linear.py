from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.merges.linear import Linear, LinearSum
from deltasmith.merges.mean import Mean
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows

counts = st.integers(1, 100_000)


def apply(merge: Any, cells: Any, weights: Any) -> Any:
    return merge.apply(cells, Place("w", cells.shape[1:], weights=tuple(weights)), Found())


def test_spaces() -> None:
    for merge in (Linear, LinearSum):
        assert merge.space == "weight"
        assert merge.spaces == ("weight", "delta")


def test_fedavg_by_hand() -> None:
    # Two clients of 100 and 300 examples: (100·1 + 300·3) / 400 = 2.5.
    cells = np.array([[1.0, -2.0], [3.0, 2.0]], np.float32)
    assert apply(Linear(), cells, [100, 300]).tolist() == [2.5, 1.0]
    assert apply(LinearSum(), cells, [2.0, -1.0]).tolist() == [-1.0, -6.0]


@given(cells=rows(), data=st.data())
def test_equals_the_oracle(cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(counts, min_size=len(cells), max_size=len(cells)))
    wanted = np.array(oracles.weighted_sum(cells.tolist(), weights)) / sum(weights)
    assert np.allclose(apply(Linear(), cells, weights), wanted, rtol=1e-6, atol=1e-6)
    assert np.array_equal(apply(Linear(), cells, weights), apply(Mean(), cells, weights))


@given(cells=rows(), data=st.data(), factor=counts)
def test_scaling_all_weights_changes_nothing(cells: Any, data: Any, factor: int) -> None:
    weights = data.draw(st.lists(counts, min_size=len(cells), max_size=len(cells)))
    scaled = apply(Linear(), cells, [factor * w for w in weights])
    assert np.allclose(scaled, apply(Linear(), cells, weights), rtol=1e-6, atol=1e-6)


@given(cells=rows(), data=st.data())
def test_identical_models_give_that_model(cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(counts, min_size=len(cells), max_size=len(cells)))
    same = np.stack([cells[0]] * len(cells))
    assert np.allclose(apply(Linear(), same, weights), cells[0], rtol=1e-6, atol=0)


def test_huge_sample_counts_do_not_overflow() -> None:
    cells = np.full((2, 1), 3e38, np.float32)
    assert np.isfinite(apply(Linear(), cells, [1e30, 1e30])).all()


def test_weights_that_add_up_to_zero_are_refused() -> None:
    with pytest.raises(RecipeError, match="add up to zero"):
        apply(Linear(), np.ones((2, 1), np.float32), [1.0, -1.0])


@pytest.mark.parametrize("case", cases("linear"), ids=str)
def test_golden(case: Case) -> None:
    arrays = case.arrays
    merge = Linear() if case.params["normalize"] else LinearSum()
    merged = merge_table(merge, oracles.models_of(arrays), weights=case.params["weights"])
    for name, tensor in merged.items():
        assert_close(tensor, arrays["expected"][name], case)
