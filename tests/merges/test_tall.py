from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.merges.sum import Sum
from deltasmith.merges.tall import Tall, active
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows, small_floats


def merged(merge: Any, cells: Any, weights: Any = None) -> Any:
    return merge_table(merge, [{"w": np.asarray(c, np.float32)} for c in cells], weights=weights)["w"]


def test_by_hand() -> None:
    # τ = (4, 5, 0, 0); task 0: 3 > 0.5·1, 1 ≤ 0.5·4, 2 > 0.5·2 but τ = 0, 0 is not above 0.
    cells = [[3.0, 1.0, 2.0, 0.0], [1.0, 4.0, -2.0, 0.0]]
    assert merged(Tall(task="m0", mask_scale=0.5), cells).tolist() == [4.0, 0.0, 0.0, 0.0]
    assert merged(Tall(task="m1", mask_scale=0.5), cells).tolist() == [0.0, 5.0, 0.0, 0.0]


def test_the_comparison_is_strict() -> None:
    own, rest = np.array([1.0, 1.0, 0.0], np.float32), np.array([2.0, -2.0, 0.0], np.float32)
    assert active(own, rest, 0.5).tolist() == [False, False, False]
    assert active(own, rest, 0.499).tolist() == [True, True, False]


@given(cells=rows(), data=st.data(), mask_scale=st.sampled_from([0.25, 0.5, 1.0]))
def test_equals_the_oracle(cells: Any, data: Any, mask_scale: float) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    task = data.draw(st.integers(0, len(cells) - 1))
    total = oracles.weighted_sum(cells.tolist(), weights)
    mask = oracles.tall_masks(cells.tolist(), weights, mask_scale)[task]
    wanted = [x if m else 0.0 for x, m in zip(total, mask, strict=True)]
    assert merged(Tall(task=f"m{task}", mask_scale=mask_scale), cells, weights).tolist() == wanted


@given(rows(st.just(1)))
def test_one_model_is_that_model(cells: Any) -> None:
    assert np.array_equal(merged(Tall(task="m0"), cells), cells[0])


def test_mask_scale_must_be_positive() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Tall(task="m0", mask_scale=0.0)


@pytest.mark.parametrize("case", cases("tall_masks"), ids=str)
def test_golden(case: Case) -> None:
    arrays = case.arrays
    deltas, mask_scale = oracles.deltas_of(arrays), case.params["tall_mask_lambda"]
    base, total = oracles.flat(arrays["base"]), oracles.flat(merge_table(Sum(), deltas))
    assert_close(total, arrays["expected_tv_flat"], case)
    for task, tuned in enumerate(map(oracles.flat, oracles.models_of(arrays))):
        expected = arrays["expected_mask_flat"][task].astype(bool)
        # The reference compares weights, whose rounding decides near-ties.
        mask = active(base - tuned, (base + total) - tuned, mask_scale)
        assert np.array_equal(mask, expected)
        assert_close(base + mask * total, arrays["expected_recon_flat"][task], case)
        got = oracles.flat(merge_table(Tall(task=f"m{task}", mask_scale=mask_scale), deltas))
        own = np.abs(oracles.flat(deltas[task]))
        rest = np.float32(mask_scale) * np.abs(total - oracles.flat(deltas[task]))
        clear = np.abs(own - rest) > 1e-6
        assert np.array_equal(got[clear], np.where(expected, total, 0)[clear])
