from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.merges.consensus import Consensus
from deltasmith.operation.reference import merge_table
from golden_cases import Case, cases
from merges import oracles
from merges.examples import rows, small_floats


def merged(merge: Any, cells: Any, weights: Any = None) -> Any:
    return merge_table(merge, [{"w": np.asarray(c, np.float32)} for c in cells], weights=weights)["w"]


def test_by_hand() -> None:
    # Masks at 0.4: position 0 both (3 > 0.8, 2 > 1.2); 1 only the second; 2 nobody.
    cells = [[3.0, 1.0, 0.0], [2.0, 9.0, 0.0]]
    assert merged(Consensus(), cells).tolist() == [5.0, 0.0, 0.0]
    assert merged(Consensus(k=1), cells).tolist() == [5.0, 10.0, 0.0]


@given(cells=rows(st.integers(2, 5)), data=st.data(), mask_scale=st.sampled_from([0.25, 0.5, 1.0]))
def test_equals_the_oracle(cells: Any, data: Any, mask_scale: float) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    k = data.draw(st.integers(1, len(cells)))
    total = oracles.weighted_sum(cells.tolist(), weights)
    masks = oracles.tall_masks(cells.tolist(), weights, mask_scale)
    wanted = [x if sum(m[i] for m in masks) >= k else 0.0 for i, x in enumerate(total)]
    assert merged(Consensus(k=k, mask_scale=mask_scale), cells, weights).tolist() == wanted


def test_more_agreement_than_models_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        merged(Consensus(k=3), [[1.0], [2.0]])
    assert str(error.value) == (
        "consensus asks for 3 models that agree, and there are 2 in w; lower k to 2 or less"
    )


@pytest.mark.parametrize("case", cases("tall_masks"), ids=str)
def test_golden(case: Case) -> None:
    arrays = case.arrays
    deltas, mask_scale = oracles.deltas_of(arrays), case.params["tall_mask_lambda"]
    total = arrays["expected_tv_flat"]
    own = np.abs(np.stack([oracles.flat(d) for d in deltas]))
    rest = mask_scale * np.abs(total - np.stack([oracles.flat(d) for d in deltas]))
    clear = (np.abs(own - rest) > 1e-6).all(axis=0)
    for k in case.params["ks"]:
        got = oracles.flat(merge_table(Consensus(k=k, mask_scale=mask_scale), deltas))
        mask = arrays[f"expected_consensus_k{k}"].astype(bool)
        assert np.array_equal((got != 0)[clear], (mask & (total != 0))[clear])
        assert np.allclose(got[clear], np.where(mask, total, 0)[clear], rtol=1e-6, atol=1e-8)
