from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.errors import RefusedError
from deltasmith.merges.cabs import Cabs, CabsFilled, CabsWholeBlocks, n_of_m, prune_in_turn
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows

A = [4.0, 3.0, 2.0, 1.0, -9.0]
B = [5.0, 6.0, 8.0, 7.0, 1.0]


def merged(merge: Any, cells: Any, weights: Any = None) -> Any:
    return merge_table(merge, [{"w": np.asarray(c, np.float32)} for c in cells], weights=weights)["w"]


def test_by_hand() -> None:
    # Blocks (0 1)(2 3)(4): A keeps 0, 2, 4; B what is largest of the rest: 1, 3, nothing.
    assert merged(Cabs(n=1, m=2), [A, B], [1.0, 0.5]).tolist() == [4.0, 3.0, 2.0, 3.5, -9.0]
    assert merged(Cabs(n=1, m=2), [B, A]).tolist() == [4.0, 6.0, 8.0, 1.0, 1.0]


def test_whole_blocks_zero_the_tail_and_short_tensors() -> None:
    assert merged(CabsWholeBlocks(n=1, m=2), [A, B]).tolist() == [4.0, 6.0, 2.0, 7.0, 0.0]
    assert merged(CabsWholeBlocks(n=3, m=32), [A, B]).tolist() == [0.0] * 5
    # The default keeps ceil(3 · 5 / 32) = 1 of a short tensor for each model.
    assert merged(Cabs(n=3, m=32), [A, B]).tolist() == [0.0, 0.0, 8.0, 0.0, -9.0]


def test_avoidance_or_filling_where_there_is_too_little_room() -> None:
    cells = np.array([A[:4], B[:4]], np.float32)
    assert prune_in_turn(Cabs(n=3, m=4), cells)[1].tolist() == [0.0, 0.0, 0.0, 7.0]
    assert prune_in_turn(CabsFilled(n=3, m=4), cells)[1].tolist() == [0.0, 6.0, 8.0, 7.0]
    assert prune_in_turn(CabsFilled(n=2, m=4), cells)[1].tolist() == [5.0, 6.0, 8.0, 7.0]
    assert prune_in_turn(CabsFilled(n=1, m=4), cells)[1].tolist() == [0.0, 0.0, 8.0, 0.0]


def test_three_models_share_nothing_and_the_last_may_get_nothing() -> None:
    rng = np.random.default_rng(1)
    cells = rng.normal(size=(3, 6, 4)).astype(np.float32)
    pruned = prune_in_turn(Cabs(n=1, m=4), cells)
    assert ((pruned != 0).sum(axis=0) <= 1).all()
    assert (pruned != 0).reshape(3, -1).sum(axis=1).tolist() == [6, 6, 6]
    assert not prune_in_turn(Cabs(n=2, m=4), cells)[2].any()


def test_ties_go_to_the_lower_index() -> None:
    delta = np.array([1.0, -1.0, 1.0, 1.0], np.float32)
    assert n_of_m(delta, np.zeros(4, bool), 2, 4).tolist() == [True, True, False, False]


@given(cells=rows(), m=st.integers(1, 6), data=st.data())
def test_equals_the_oracle(cells: Any, m: int, data: Any) -> None:
    n = data.draw(st.integers(1, m))
    weights = [1.0, -0.5, 2.0, 0.25, 4.0][: len(cells)]
    assert merged(Cabs(n=n, m=m), cells, weights).tolist() == oracles.cabs(cells.tolist(), weights, n, m)


def test_blocks_run_across_rows_and_chunks() -> None:
    rng = np.random.default_rng(3)
    cells = np.round(rng.normal(size=(2, 900, 301)) * 8).astype(np.float32)
    wanted = oracles.cabs([c.reshape(-1).tolist() for c in cells], [1.0, 1.0], 3, 7)
    assert merged(Cabs(n=3, m=7), cells).reshape(-1).tolist() == wanted


def test_fields_are_checked() -> None:
    with pytest.raises(ValidationError, match="n must not exceed m: a block of 4 has no 5 elements"):
        Cabs(n=5, m=4)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Cabs(n=0, m=4)
    with pytest.raises(RefusedError, match="5 elements do not divide into blocks of 2"):
        merged(CabsFilled(n=1, m=2), [A, B])


@pytest.mark.parametrize("case", cases("cabs"), ids=str)
def test_golden(case: Case) -> None:
    record = {"roberta": CabsWholeBlocks, "7b": CabsFilled}[case.params["script"]]
    merge = record(n=case.params["n"], m=case.params["m"])
    deltas = oracles.models_of(case.arrays, "delta")
    expected = oracles.models_of(case.arrays, "expected")
    for name in deltas[0]:
        pruned = prune_in_turn(merge, np.stack([delta[name] for delta in deltas]))
        for got, wanted in zip(pruned, expected, strict=True):
            assert_close(got, wanted[name], case)
    if 2 * case.params["n"] < case.params["m"]:
        # Where models need not overlap, the default agrees with both scripts.
        for name in deltas[0]:
            stacked = np.stack([delta[name] for delta in deltas])
            assert np.array_equal(
                prune_in_turn(Cabs(n=merge.n, m=merge.m), stacked), prune_in_turn(merge, stacked)
            )
