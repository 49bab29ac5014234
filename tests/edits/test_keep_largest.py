"""Trimming: exact counts, ties, the released code's one more, and DARE's magnitude ablation."""

from __future__ import annotations

import edit_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.edits.amplify import Amplify
from deltasmith.edits.keep_largest import KeepAtLeast, KeepLargest, KeepLargestInTensor
from deltasmith.operation.reference import edit_table
from golden_cases import assert_close, cases

DENSITIES = st.sampled_from([0.01, 0.2, 0.29, 0.5, 0.7, 0.99, 1.0])
# Multiples of a quarter: many ties, many zeros.
VALUES = st.lists(st.integers(-6, 6).map(lambda n: n / 4), max_size=30)
TABLES = st.dictionaries(st.sampled_from(["b", "a", "a.x", "c"]), VALUES, min_size=1)


def arrays(table: dict[str, list[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(values, np.float32) for name, values in table.items()}


@settings(deadline=None)  # the first call compiles
@given(TABLES, DENSITIES)
def test_global_equals_the_sort(table, density):
    total = sum(len(values) for values in table.values())
    expected = oracles.keep_largest(table, max(1, int(density * total)))
    got = edit_table(KeepLargest(density=density), arrays(table))
    assert {n: a.tolist() for n, a in got.items()} == expected


@settings(deadline=None)  # the first call compiles
@given(TABLES, DENSITIES)
def test_per_tensor_equals_the_sort(table, density):
    got = edit_table(KeepLargestInTensor(density=density), arrays(table))
    for name, values in table.items():
        count = max(1, int(density * len(values)))
        assert got[name].tolist() == oracles.keep_largest({name: values}, count)[name]


@settings(deadline=None)  # the first call compiles
@given(TABLES, DENSITIES)
def test_at_least_equals_the_threshold(table, density):
    pooled = sorted((abs(x) for values in table.values() for x in values), reverse=True)
    threshold = pooled[min(len(pooled) - 1, int(density * len(pooled)))] if pooled else 0.0
    got = edit_table(KeepAtLeast(density=density), arrays(table))
    assert {n: a.tolist() for n, a in got.items()} == {
        n: [x if abs(x) >= threshold else 0.0 for x in values] for n, values in table.items()
    }


def test_ties_go_to_the_lower_name_then_index():
    table = {"b": np.ones(3, np.float32), "a": -np.ones(3, np.float32)}
    got = edit_table(KeepLargest(density=0.67), table)
    assert {n: a.tolist() for n, a in got.items()} == {"a": [-1.0] * 3, "b": [1.0, 0.0, 0.0]}


def test_one_threshold_may_empty_a_tensor():
    table = {"large": np.full(8, 2.0, np.float32), "small": np.full(8, 1.0, np.float32)}
    assert not edit_table(KeepLargest(density=0.5), table)["small"].any()
    assert edit_table(KeepLargestInTensor(density=0.5), table)["small"].sum() == 4


def test_many_zeros_trim_nothing_in_the_released_code():
    delta = np.array([3.0, 0.0, 0.0, -1.0, 0.0, 0.0], np.float32)
    np.testing.assert_array_equal(edit_table(KeepAtLeast(density=0.5), {"w": delta})["w"], delta)


@pytest.mark.parametrize("case", cases("ties", "authors"), ids=str)
def test_released_trim(case):
    stored = case.arrays
    for i, expected in enumerate(stored["expected_flat_mask"]):
        deltas = {n: stored[f"ft_{i}"][n] - stored["base"][n] for n in stored["base"]}
        kept = edit_table(KeepAtLeast(density=case.params["density"]), deltas)
        flat = np.concatenate([kept[n].reshape(-1) for n in sorted(kept)])
        original = np.concatenate([deltas[n].reshape(-1) for n in sorted(deltas)])
        np.testing.assert_array_equal(flat, original * expected)
        # The paper's count is one less; the values are continuous, so this is the smallest of the kept.
        paper = edit_table(KeepLargest(density=case.params["density"]), deltas)
        count = sum(np.count_nonzero(a) for a in paper.values())
        assert count == expected.sum() - 1 == int(case.params["density"] * expected.size)


@pytest.mark.parametrize("case", cases("dare_magnitude", "authors"), ids=str)
def test_dare_magnitude_is_keep_largest_in_tensor_then_amplify(case):
    delta, p = case.arrays["delta_0"], case.params["p"]
    kept = delta.size - int(delta.size * p)  # the released code counts what it drops
    trimmed = edit_table(KeepLargestInTensor(density=kept / delta.size), {"w": delta})
    assert_close(edit_table(Amplify(factor=1.0 / (1.0 - p)), trimmed)["w"], case.arrays["expected"], case)


@pytest.mark.parametrize("density", [0.0, 1.01, float("nan"), {"layers": [0.1, 1.5]}])
def test_impossible_densities_are_refused(density):
    for edit in (KeepLargest, KeepAtLeast):
        with pytest.raises(ValidationError, match="density"):
            edit(density=density)


def test_per_tensor_density_may_be_a_schedule():
    edit = KeepLargestInTensor.model_validate({"density": {"layers": [0.0001, 1.0]}})
    assert edit.resolved("w", 1.0).density == 1.0
