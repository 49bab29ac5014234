"""Partition amplification: the combination rule of the released code, nested supports, untouched tensors."""

from __future__ import annotations

from functools import reduce

import edit_oracles as oracles
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.edits.amplify_partitions import (
    AmplifyPartitions,
    AmplifyPartitionsEverywhere,
    amplified,
    effective_factors,
)
from deltasmith.edits.dynamic_prune import DynamicPrune, DynamicPruneAbove
from deltasmith.operation.reference import edit_table
from golden_cases import assert_close, cases

FACTORS = st.sampled_from([0.0, 0.5, 1.0, 1.3, 1.8])


def model(layers: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    linears = {
        f"layers.{i}.{kind}_proj.weight": rng.standard_t(2 + i, (12, 20)).astype(np.float32)
        for i in range(layers)
        for kind in ("q", "up")
    }
    return linears | {"norm.weight": np.ones(6, np.float32)}


def test_by_hand():
    delta = np.array([4.0, -3.0, 2.0, 1.0], np.float32)
    supports = [np.array([1, 0, 0, 0], bool), np.array([1, 1, 1, 0], bool)]
    assert amplified(delta, supports, (1.5, 0.5)).tolist() == [6.0, -1.5, 1.0, 0.0]
    assert amplified(delta, supports, (1.0, 2.0)).tolist() == [8.0, -6.0, 4.0, 0.0]


@pytest.mark.parametrize("case", cases("dppa_dpa", "authors"), ids=str)
def test_released_combination(case):
    inner, outer = case.arrays["p9"], case.arrays["p8"]
    for i, ratio in enumerate(case.params["ratios"]):
        for name, expected in case.arrays[f"expected_{i}"].items():
            supports = [inner[name] != 0, outer[name] != 0]
            assert_close(amplified(outer[name], supports, (ratio["r9"], ratio["r8"])), expected, case)


@given(st.lists(FACTORS, min_size=1, max_size=4), st.data())
def test_any_number_of_partitions_equals_the_pairwise_maximum(factors, data):
    delta = np.array([3.0, -1.0, 0.0, 2.0, -0.5, 4.0], np.float32)
    level = np.array(data.draw(st.lists(st.integers(0, len(factors)), min_size=6, max_size=6)))
    supports = [level <= i for i in range(len(factors))]
    scaled = [np.where(s, delta, 0.0) * np.float32(f) for s, f in zip(supports, factors, strict=True)]
    expected = reduce(oracles.larger_of, reversed(scaled), np.zeros(6, np.float32))
    np.testing.assert_array_equal(amplified(delta, supports, factors), expected)


@given(st.lists(FACTORS, min_size=1, max_size=5))
def test_inner_partitions_never_get_less(factors):
    effective = effective_factors(factors)
    assert list(effective) == sorted(effective, reverse=True)
    assert effective[0] == max(factors)


@pytest.mark.parametrize(
    ("record", "pruning"),
    [(AmplifyPartitions, DynamicPrune), (AmplifyPartitionsEverywhere, DynamicPruneAbove)],
)
def test_the_edit_is_two_prunings_combined(record, pruning):
    table = model()
    inner, outer = (edit_table(pruning(density=d), table) for d in (0.1, 0.2))
    got = edit_table(record(factors=(1.8, 1.2)), table)
    for name in table:
        if name == "norm.weight":
            continue
        assert not (inner[name] != 0)[outer[name] == 0].any(), "the prunings are nested"
        expected = np.where(inner[name] != 0, np.float32(1.8), np.float32(1.2)) * outer[name]
        np.testing.assert_array_equal(got[name], expected)


def test_ties_at_the_cut():
    table = {"layers.0.q_proj.weight": np.ones((4, 5), np.float32)}
    exact = edit_table(AmplifyPartitions(factors=(2.0, 1.0)), table)["layers.0.q_proj.weight"]
    assert exact.reshape(-1).tolist() == [2.0] * 2 + [1.0] * 2 + [0.0] * 16
    released = edit_table(AmplifyPartitionsEverywhere(factors=(2.0, 1.0)), table)
    assert not released["layers.0.q_proj.weight"].any()


def test_three_partitions():
    table = model()
    got = edit_table(AmplifyPartitions(densities=(0.1, 0.2, 0.4), factors=(3.0, 2.0, 1.0)), table)
    kept = [edit_table(DynamicPrune(density=d), table) for d in (0.1, 0.2, 0.4)]
    name = "layers.2.q_proj.weight"
    factor = sum((k[name] != 0).astype(np.float32) for k in kept)
    np.testing.assert_array_equal(got[name], table[name] * factor)


def test_unpruned_tensors():
    table, factors = model(), (1.2, 1.5)
    same = edit_table(AmplifyPartitions(factors=factors), table)["norm.weight"]
    np.testing.assert_array_equal(same, table["norm.weight"])
    scaled = edit_table(AmplifyPartitionsEverywhere(factors=factors), table)["norm.weight"]
    np.testing.assert_array_equal(scaled, table["norm.weight"] * np.float32(1.5))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"factors": (1.0,)}, "2 densities need as many factors, not 1"),
        ({"densities": (0.2, 0.1), "factors": (1.0, 1.0)}, r"densities must ascend, not \(0.2, 0.1\)"),
        ({"factors": (1.0, -0.1)}, "factors"),
        ({"densities": (), "factors": ()}, "densities"),
        ({}, "factors"),
    ],
)
def test_impossible_settings_are_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        AmplifyPartitions(**fields)
