"""Model Breadcrumbs: the middle of the magnitudes, per row and per tensor."""

from __future__ import annotations

import edit_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.edits.keep_middle import KeepMiddleOfRow, KeepMiddleOfTensor
from deltasmith.operation.reference import edit_table
from golden_cases import assert_close, cases

DENSITIES = st.sampled_from([0.05, 0.3, 0.5, 0.95, 1.0])
GAMMAS = st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9])
VALUES = st.integers(-6, 6).map(lambda n: n / 4)


@settings(deadline=None)  # the first call compiles
@given(
    st.integers(2, 20).flatmap(lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1)),
    DENSITIES,
    GAMMAS,
)
def test_rows_equal_the_loop(rows, density, gamma):
    width = len(rows[0])
    got = edit_table(KeepMiddleOfRow(density=density, gamma=gamma), {"w": np.array(rows, np.float32)})["w"]
    assert got.tolist() == [
        oracles.keep_middle(row, int(width * gamma), int(width * density)) for row in rows
    ]


@settings(deadline=None)  # the first call compiles
@given(st.lists(VALUES, min_size=2, max_size=40), DENSITIES, GAMMAS)
def test_tensors_equal_the_loop(values, density, gamma):
    n = len(values)
    kept = int(density * n)
    removed = min(int(gamma * n), n - kept)
    got = edit_table(KeepMiddleOfTensor(density=density, gamma=gamma), {"w": np.array(values, np.float32)})[
        "w"
    ]
    assert got.tolist() == oracles.keep_middle(values, removed, kept)


@pytest.mark.parametrize("case", cases("breadcrumbs", "authors"), ids=str)
def test_released_code(case):
    edit = KeepMiddleOfRow(density=case.params["beta_keep"], gamma=case.params["gamma_remove"])
    got = edit_table(edit, case.arrays["delta_0"])
    for name, expected in case.arrays["expected"].items():
        assert_close(got[name], expected, case)


def test_a_gamma_too_small_for_the_tensor_removes_nothing():
    delta = np.arange(1.0, 51.0, dtype=np.float32)
    got = edit_table(KeepMiddleOfTensor(density=0.5, gamma=0.01), {"w": delta})["w"]
    assert got.tolist() == [0.0] * 25 + delta[25:].tolist()


def test_single_elements_stay():
    for edit in (KeepMiddleOfRow(density=0.2, gamma=0.1), KeepMiddleOfTensor(density=0.2, gamma=0.1)):
        assert edit_table(edit, {"w": np.float32([3.0])})["w"].tolist() == [3.0]
    column = np.ones((4, 1), np.float32)
    assert edit_table(KeepMiddleOfRow(density=0.2, gamma=0.1), {"w": column})["w"].all()


def test_the_kernels_of_a_convolution_are_one_row():
    delta = np.arange(1.0, 19.0, dtype=np.float32).reshape(2, 1, 3, 3)
    got = edit_table(KeepMiddleOfRow(density=0.34, gamma=0.12), {"w": delta})["w"]
    assert got.reshape(2, 9).tolist() == [[0, 0, 0, 0, 0, 6, 7, 8, 0], [0, 0, 0, 0, 0, 15, 16, 17, 0]]
