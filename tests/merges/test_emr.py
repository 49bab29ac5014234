from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.merges.emr import Emr, masked
from deltasmith.merges.unify import Unify
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows, small_floats


def merged(cells: Any, weights: Any = None, **fields: Any) -> Any:
    return merge_table(Emr(**fields), [{"w": np.asarray(c, np.float32)} for c in cells], weights=weights)["w"]


def test_by_hand() -> None:
    # τ = (4, −3, −2); task 0 keeps 4 and −2; λ = (4 + 1 + 2) / (4 + 2)
    cells = [[4.0, 1.0, -2.0], [2.0, -3.0, 2.0]]
    assert np.allclose(merged(cells, task="m0"), np.array([4.0, 0.0, -2.0]) * 7 / 6)
    # task 1 keeps 4 and −3; l2: (2·4 + 3·3) / (16 + 9)
    assert np.allclose(merged(cells, task="m1", rescaler="l2"), np.array([4.0, -3.0, 0.0]) * 17 / 25)


def test_tensor_means_count_tensors_equally() -> None:
    # Task 0 keeps all of "a" (τ = 2) and all of "b" (τ = 4); Σ of means: (1 + 4) / (2 + 4).
    columns = [
        {"a": np.full(10, 1, np.float32), "b": np.full(1, 4, np.float32)},
        {"a": np.full(10, 2, np.float32), "b": np.full(1, 3, np.float32)},
    ]
    by_tensor = merge_table(Emr(task="m0", rescaler="l1_tensor_mean"), columns)
    assert np.allclose(by_tensor["a"], 2 * 5 / 6)
    whole = merge_table(Emr(task="m0"), columns)
    assert np.allclose(whole["a"], 2 * 14 / 24)


def test_nothing_survives_the_mask() -> None:
    cells = [[0.0, 0.0], [1.0, -2.0]]
    for rescaler in ("l1", "l1_tensor_mean", "l2"):
        assert merged(cells, task="m0", rescaler=rescaler).tolist() == [0.0, 0.0]
    assert merged([[1.0, -1.0], [-3.0, 4.0]], task="m0").tolist() == [0.0, 0.0]
    assert merge_table(Emr(task="m0"), [{"w": np.zeros(0, np.float32)}] * 2)["w"].shape == (0,)


def test_one_model_is_rebuilt_exactly() -> None:
    assert merged([[1.0, -0.25, 0.0]], task="m0").tolist() == [1.0, -0.25, 0.0]


def test_tiny_deltas_do_not_vanish_from_the_mask() -> None:
    # Their product underflows in float32; their signs still agree.
    assert np.allclose(merged([[1e-30], [2e-30]], task="m0"), 1e-30, rtol=1e-6, atol=0)


@given(cells=rows(), data=st.data())
def test_equals_the_oracle(cells: Any, data: Any) -> None:
    weights = data.draw(st.lists(small_floats(), min_size=len(cells), max_size=len(cells)))
    task = data.draw(st.integers(0, len(cells) - 1))
    wanted = oracles.emr(cells.tolist(), weights, task)
    assert np.allclose(merged(cells, weights, task=f"m{task}"), wanted, rtol=1e-5, atol=1e-6)


@given(rows(st.integers(1, 4)))
def test_least_squares_is_best_and_l1_keeps_the_norm(cells: Any) -> None:
    own = cells[0].astype(np.float64)
    rebuilt = {r: merged(cells, task="m0", rescaler=r) for r in ("l1", "l2")}
    errors = {r: ((own - d) ** 2).sum() for r, d in rebuilt.items()}
    assert errors["l2"] <= errors["l1"] * (1 + 1e-5) + 1e-5
    if rebuilt["l1"].any():
        assert np.isclose(np.abs(rebuilt["l1"]).sum(), np.abs(own).sum(), rtol=1e-5)


def test_the_rescaler_is_one_for_the_whole_model_over_many_blocks() -> None:
    rng = np.random.default_rng(5)
    columns = [
        {"w": rng.normal(size=(300, 500)).astype(np.float32), "b": np.ones(3, np.float32)} for _ in "abc"
    ]
    got = merge_table(Emr(task="m1"), columns)
    wanted = oracles.emr([oracles.flat(c).tolist() for c in columns], [1.0] * 3, 1)
    assert np.allclose(oracles.flat(got), wanted, rtol=1e-5, atol=1e-7)


def test_unknown_task() -> None:
    with pytest.raises(RecipeError, match="no model is labelled 'm7'"):
        merged([[1.0], [2.0]], task="m7")


@pytest.mark.parametrize("case", cases("emr"), ids=str)
def test_golden_masks_and_rescalers(case: Case) -> None:
    arrays = case.arrays
    deltas = oracles.deltas_of(arrays)
    unified = merge_table(Unify(), deltas)
    stored = {"l1": "paper", "l1_tensor_mean": "tensor_mean", "l2": "l2"}
    for task, delta in enumerate(deltas):
        for name in delta:
            mask = arrays[f"expected_mask_{task}"][name].astype(bool)
            assert np.array_equal(masked(unified[name], delta[name]) != 0, mask)
        for rescaler, role in stored.items():
            got = merge_table(Emr(task=f"m{task}", rescaler=rescaler), deltas)
            scale = arrays[f"expected_rescaler_{role}"][task]
            for name, tensor in got.items():
                assert_close(tensor, scale * masked(unified[name], delta[name]), case)
    rebuilt = merge_table(Emr(task="m0", rescaler="l1_tensor_mean"), deltas)
    for name, expected in arrays["expected_recon_0"].items():
        assert_close(arrays["base"][name] + rebuilt[name], expected, case)
