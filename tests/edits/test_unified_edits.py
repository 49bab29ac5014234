"""The edits of "A Unified View of Delta Parameter Editing" as additive changes of the fine-tuned weights, golden."""

from __future__ import annotations

import numpy as np
import pytest

from deltasmith.edits.amplify import Amplify
from deltasmith.edits.drop import Drop
from deltasmith.edits.drop_biased import BiasByGradient, BiasBySign
from deltasmith.edits.drop_partly import DropPartly, kept_divisor
from deltasmith.edits.keep_largest import KeepLargestInTensor
from deltasmith.edits.low_rank import LowRank
from deltasmith.edits.quantise import Quantise
from deltasmith.kernels import drops
from deltasmith.operation.reference import edit_table
from golden_cases import assert_close, cases


def change(edit, delta, **options):
    """Return edit(delta) - delta, the difference in float64."""
    edited = edit_table(edit, {"w": delta}, **options)["w"]
    return edited.astype(np.float64) - delta


@pytest.mark.parametrize("case", cases("kdare"), ids=str)
def test_k_dare(case):
    arrays, density = case.arrays, 1.0 - case.params["p"]
    delta, kept = arrays["delta_0"], arrays["mask_drop"] == 0
    for i, k in enumerate(case.params["ks"]):
        edited = drops.partly_rescaled(delta, kept, kept_divisor(density, k), k)
        assert_close(edited, arrays[f"expected_delta_{i}"], case)
        assert_close(edited.astype(np.float64) - delta, arrays[f"expected_edit_{i}"], case)
        if k == 0:
            assert_close(edited, arrays["expected_dare_authors"], case)


@pytest.mark.parametrize("case", cases("kdare"), ids=str)
def test_k_dare_with_k_0_is_dare_to_the_bit(case):
    delta, density = case.arrays["delta_0"], 1.0 - case.params["p"]
    pairs = [
        edit_table(edit, {"w": delta}, key=lambda name: 12)["w"]
        for edit in (DropPartly(density=density, k=0.0), Drop(density=density))
    ]
    assert pairs[0].tobytes() == pairs[1].tobytes()


@pytest.mark.parametrize("case", cases("kdare"), ids=str)
@pytest.mark.parametrize("key", [0, 7])
def test_k_dare_with_a_mask_of_our_own(case, key):
    """The record draws a mask; the change it makes is the paper's (k - 1)(M - p) / (1 - p) of the delta."""
    delta, p = case.arrays["delta_0"], case.params["p"]
    dropped = ~drops.drawn(key, 0, delta.size, 1.0 - p).reshape(delta.shape)
    for k in case.params["ks"]:
        got = change(DropPartly(density=1.0 - p, k=k), delta, key=lambda name: key)
        assert_close(got, (k - 1) * (dropped - p) / (1 - p) * delta.astype(np.float64), case)


@pytest.mark.parametrize("case", cases("unified_edits"), ids=str)
@pytest.mark.parametrize("role", ["bitdelta", "svd", "ties", "expo"])
def test_the_classes_of_the_paper(case, role):
    delta, params = case.arrays["delta_0"], case.params
    edit = {
        "bitdelta": Quantise(codec="bitdelta"),
        "svd": LowRank(rank=params["rank"]),
        "ties": KeepLargestInTensor(density=params["kept"] / delta.size),
        "expo": Amplify(factor=1.0 + params["expo_alpha"]),
    }[role]
    assert_close(change(edit, delta), case.arrays[f"expected_{role}"], case)


@pytest.mark.parametrize("case", cases("biased_drop"), ids=str)
def test_biased_drops(case):
    arrays, fields = case.arrays, {"density": 1.0 - case.params["p"], "k": case.params["k"]}
    delta = {"w": arrays["delta_0"]}
    assert_close(edit_table(BiasBySign(**fields), delta)["w"], arrays["expected_sign"], case)
    got = edit_table(BiasByGradient(**fields), delta, statistics={"w": arrays["grad"]})["w"]
    assert_close(got, arrays["expected_product"], case)
    assert (got != edit_table(BiasBySign(**fields), delta)["w"]).any()
