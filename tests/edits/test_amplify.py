"""Amplification is one multiplication."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from deltasmith.edits.amplify import Amplify
from deltasmith.operation.reference import edit_table
from golden_cases import assert_close, cases


def test_by_hand():
    delta = np.array([[1.0, -2.0], [0.0, 4.0]], np.float32)
    assert edit_table(Amplify(factor=-0.5), {"w": delta})["w"].tolist() == [[-0.5, 1.0], [0.0, -2.0]]
    assert not edit_table(Amplify(factor=0.0), {"w": delta})["w"].any()


@pytest.mark.parametrize("case", cases("expo", "authors"), ids=str)
def test_expo_is_amplify_by_one_plus_alpha(case):
    base, tuned = case.arrays["sft"], case.arrays["aligned"]
    edit = Amplify(factor=1.0 + case.params["alpha"])
    extrapolated = edit_table(edit, {n: tuned[n] - base[n] for n in base})
    for name, expected in case.arrays["expected"].items():
        assert_close(base[name] + extrapolated[name], expected, case)


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), True, "twice"])
def test_impossible_factors_are_refused(factor):
    with pytest.raises(ValidationError, match="factor"):
        Amplify(factor=factor)
