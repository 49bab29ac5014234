"""Deltas to factors: what is kept, in which order, and what is zero."""

from __future__ import annotations

import numpy as np
import pytest

import golden_cases
from deltasmith.errors import RefusedError
from deltasmith.upscaling.factors import factors, splitter
from deltasmith.upscaling.settings import Settings

SPLIT = splitter("cpu")


def deltas(count: int, rows: int, columns: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rows, columns)).astype(np.float32) for _ in range(count)]


def test_each_expert_is_the_nearest_matrix_of_its_rank():
    given = deltas(3, 7, 11)
    found = factors(given, 7, 11, Settings(("a", "b", "c"), router_rank=2, expert_rank=4), SPLIT)
    assert {n: a.shape for n, a in found.items()} == {
        "smile_gate": (6, 11),
        "smile_svh": (12, 11),
        "smile_u": (7, 12),
    }
    for i, delta in enumerate(given):
        u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
        got = found["smile_u"][:, 4 * i : 4 * i + 4] @ found["smile_svh"][4 * i : 4 * i + 4]
        np.testing.assert_allclose(got, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)
        gate = found["smile_gate"][2 * i : 2 * i + 2]
        np.testing.assert_allclose(
            gate.T @ gate, vt[:2].T @ vt[:2], atol=1e-5
        )  # a projection: signs are free


def test_dense_experts_are_the_deltas():
    given = deltas(2, 5, 4)
    found = factors(given, 5, 4, Settings(("a", "b"), router_rank=1, expert_rank=-1), SPLIT)
    np.testing.assert_array_equal(found["smile_dense"], np.concatenate(given))
    assert set(found) == {"smile_gate", "smile_dense"}


def test_a_gate_has_no_direction_that_the_delta_has_not():
    rng = np.random.default_rng(1)
    low = (rng.normal(size=(9, 2)) @ rng.normal(size=(2, 12))).astype(np.float32)
    given = [np.zeros((9, 12), np.float32), low]
    gate = factors(given, 9, 12, Settings(("a", "b"), router_rank=4, expert_rank=4), SPLIT)["smile_gate"]
    assert not gate[:4].any()
    np.testing.assert_allclose(np.linalg.norm(gate[4:6], axis=1), 1, atol=1e-6)
    assert not gate[6:].any()


@pytest.mark.parametrize("case", golden_cases.cases("smile"), ids=str)
def test_golden_norms(case):
    arrays, params = case.arrays, case.params
    given = [arrays[f"ft_weight_{i}"] - arrays["base_weight"] for i in range(params["experts"])]
    settings = Settings(
        tuple(map(str, range(len(given)))), router_rank=params["gate_k"], expert_rank=params["k"]
    )
    rows, columns = arrays["base_weight"].shape
    gate = factors(given, rows, columns, settings, SPLIT)["smile_gate"]
    parts = (arrays["x"] @ gate.T).reshape(len(arrays["x"]), len(given), -1)
    golden_cases.assert_close(np.linalg.norm(parts, axis=-1), arrays["expected_r"], case)


def test_no_convergence_is_refused():
    broken = np.full((3, 3), np.nan, np.float32)
    with pytest.raises(RefusedError, match="the singular values do not converge"):
        factors([broken], 3, 3, Settings(("a",), router_rank=1, expert_rank=1), SPLIT)
