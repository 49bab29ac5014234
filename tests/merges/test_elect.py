from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.merges.elect import Elect, ElectMax, ElectSum
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows, small_floats

# Three models of two tensors. Columns of "w": agreement, conflict won by −, cancelled, one voter, all zero.
BY_HAND = [
    {"w": [4.0, 1.0, 2.0, 0.0, 0.0], "v": [1.0, 1.0]},
    {"w": [2.0, -3.0, -1.0, 0.0, 0.0], "v": [1.0, -3.0]},
    {"w": [-1.0, 0.0, -1.0, 5.0, 0.0], "v": [1.0, 0.5]},
]
ORACLES = [(Elect, oracles.elect_mean), (ElectSum, oracles.elect_sum), (ElectMax, oracles.elect_max)]
SIGNS = {"positive": 1, "none": 0}


def tables(rows_: Any) -> list[dict[str, Any]]:
    return [{name: np.array(row, np.float32) for name, row in model.items()} for model in rows_]


def apply(merge: Any, cells: Any, weights: Any) -> Any:
    return merge_table(merge, [{"w": cell} for cell in cells], weights=list(weights))["w"]


def test_dis_mean_by_hand() -> None:
    merged = merge_table(Elect(), tables(BY_HAND))
    assert merged["w"].tolist() == [3.0, -3.0, 0.0, 5.0, 0.0]
    assert merged["v"].tolist() == [1.0, -3.0]


def test_positive_zero_rule_by_hand() -> None:
    assert merge_table(Elect(zero="positive"), tables(BY_HAND))["w"].tolist() == [3.0, -3.0, 2.0, 5.0, 0.0]


def test_majority_is_counted_over_all_tensors() -> None:
    # Elected signs: w + − 0 + 0, v + −: three to two. "w" alone has two to one; make "v" turn it.
    assert merge_table(Elect(zero="majority"), tables(BY_HAND))["w"].tolist()[2] == 2.0
    turned = [{**model, "v": [-1.0, -1.0]} for model in BY_HAND]
    merged = merge_table(Elect(zero="majority"), tables(turned))
    assert merged["w"].tolist() == [3.0, -3.0, -1.0, 5.0, 0.0]
    assert merge_table(ElectSum(zero="majority"), tables(turned))["w"].tolist()[2] == -2.0
    assert merge_table(ElectMax(zero="majority"), tables(turned))["w"].tolist()[2] == -1.0


def test_a_tied_majority_elects_nothing() -> None:
    tied = tables([{"w": [1.0, 1.0, 5.0]}, {"w": [1.0, -2.0, -5.0]}])
    assert merge_table(Elect(zero="majority"), tied)["w"].tolist() == [1.0, -2.0, 0.0]


def test_weights_enter_the_vote_and_the_divisor() -> None:
    cells = np.array([[1.0], [-2.0], [4.0]], np.float32)
    # Σ w·δ = 4 − 2 + 2 = 4: plus; (4·1 + 0.5·4) / 4.5
    assert apply(Elect(), cells, [4.0, 1.0, 0.5])[0] == np.float32(6.0 / 4.5)
    # A negative weight turns a vote round: 1 + 2 = 3: plus; (1·1 + (−1)(−2)) / (1 − 1 → 1)
    assert apply(Elect(), cells[:2], [1.0, -1.0]).tolist() == [3.0]
    assert apply(ElectSum(), cells, [4.0, 1.0, 0.5]).tolist() == [6.0]
    assert apply(ElectMax(), cells, [4.0, 1.0, 0.75]).tolist() == [4.0]


@pytest.mark.parametrize("zero", SIGNS)
@pytest.mark.parametrize(("record", "oracle"), ORACLES)
@given(cells=rows(), data=st.data())
def test_equals_the_oracle(record: Any, oracle: Any, zero: Any, cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    wanted = oracle(cells.tolist(), weights, SIGNS[zero])
    assert np.allclose(apply(record(zero=zero), cells, weights), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("record", "oracle"), ORACLES)
@given(cells=rows(), data=st.data())
def test_majority_equals_the_oracle(record: Any, oracle: Any, cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    zero = oracles.majority(cells.tolist(), weights)
    wanted = oracle(cells.tolist(), weights, zero)
    assert np.allclose(apply(record(zero="majority"), cells, weights), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("zero", ["majority", "positive", "none"])
@given(cells=rows(), data=st.data())
def test_the_order_of_models_does_not_matter(zero: Any, cells: Any, data: Any) -> None:
    order = list(data.draw(st.permutations(range(len(cells)))))
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    permuted = apply(Elect(zero=zero), cells[order], [weights[t] for t in order])
    assert np.array_equal(permuted, apply(Elect(zero=zero), cells, weights))


@given(cells=rows(), models=st.integers(1, 4))
def test_identical_models_give_that_model(cells: Any, models: int) -> None:
    same = np.stack([cells[0]] * models)
    assert np.array_equal(apply(Elect(), same, [1.0] * models), cells[0])
    assert np.array_equal(apply(ElectMax(), same, [1.0] * models), cells[0])


def test_majority_asks_for_one_survey_and_the_others_for_none() -> None:
    assert Elect(zero="majority").survey(Found()) is not None
    assert Elect(zero="majority").survey(Found(shared=(0,))) is None
    assert Elect().survey(Found()) is None
    assert ElectSum(zero="positive").survey(Found()) is None


def test_majority_spans_many_blocks() -> None:
    # One block elects +, the next ones −: only the whole count shows the majority.
    column = np.r_[np.ones(70_000), -np.ones(80_000)].astype(np.float32)
    cells = [{"w": np.r_[column, 1.0].astype(np.float32)}, {"w": np.r_[column, -1.0].astype(np.float32)}]
    assert merge_table(Elect(zero="majority"), cells)["w"][-1] == -1.0


@pytest.mark.parametrize("case", cases("ties", "authors"), ids=str)
def test_golden_ties(case: Case) -> None:
    arrays = case.arrays
    deltas = oracles.deltas_of(arrays)
    trimmed = [
        oracles.unflat(oracles.flat(delta) * mask.astype(np.float32), delta)
        for delta, mask in zip(deltas, arrays["expected_flat_mask"], strict=True)
    ]
    records = {"dis-mean": Elect, "dis-sum": ElectSum, "dis-max": ElectMax}
    merged = merge_table(records[case.params["merge_func"]](zero="majority"), trimmed)
    assert_close(oracles.flat(merged), arrays["expected_flat_tv"], case)
    for name, delta in merged.items():
        assert_close(
            arrays["base"][name] + np.float32(case.params["lam"]) * delta, arrays["expected"][name], case
        )


@pytest.mark.parametrize("case", cases("della_merge", "authors"), ids=str)
def test_golden_della_elect_and_fuse(case: Case) -> None:
    arrays = case.arrays
    dropped = [
        {"": (delta[""] * arrays[f"mask_keep_{i}"] / arrays[f"keep_prob_{i}"]).astype(np.float32)}
        for i, delta in enumerate(oracles.deltas_of(arrays))
    ]
    # The released code counts a zero sum as positive; the paper's sgn 0 = 0 is the default of `zero`.
    record = Elect if case.params["normalize"] else ElectSum
    merged = merge_table(record(zero="positive"), dropped, weights=case.params["weights"])[""]
    assert_close(arrays["base"] + np.float32(case.params["lam"]) * merged, arrays["expected"], case)


def test_a_scalar_and_an_empty_tensor() -> None:
    place = Place("s", (), weights=(1.0, 1.0))
    assert Elect().apply(np.array([2.0, 4.0], np.float32), place, Found()).tolist() == 3.0
    assert Elect().apply(np.zeros((2, 0), np.float32), place, Found()).shape == (0,)
