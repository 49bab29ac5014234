"""Several magnitudes: the reading of the paper that the golden cases fix, and the errors it should have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deltasmith.codecs.bitdelta import BitDelta
from deltasmith.codecs.magnitude_blocks import MagnitudeBlocks
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from golden_cases import Case, assert_close, cases


def round_trip(codec: Codec, delta: Any) -> Any:
    cell = Cell(Spec("w", delta.shape, DTYPES["float32"]))
    return codec.decode(codec.encode(delta, cell), cell)


@pytest.mark.parametrize("case", cases("bitdelta_multibit"), ids=str)
def test_golden_equal_counts(case: Case) -> None:
    for blocks in case.params["Ms"]:
        got = round_trip(MagnitudeBlocks(blocks=blocks), case.arrays["delta_0"])
        assert_close(got, case.arrays[f"expected_M_{blocks}"], case)


@pytest.mark.parametrize(
    ("blocks", "counts", "widths"),
    [(1, 0.603, 0.603), (2, 0.373, 0.564), (4, 0.234, 0.347), (8, 0.149, 0.182), (16, 0.096, 0.092)],
)
def test_errors_of_gaussian_deltas(blocks: int, counts: float, widths: float) -> None:
    # Equal widths depend on the largest element: the table's errors are those of a largest of 5.12 deviations.
    delta = np.random.default_rng(0).standard_normal((500, 1000)).astype(np.float32)
    delta[0, 0] = 5.12
    norm = np.linalg.norm(delta.astype(np.float64))
    for scheme, error in (("equal_count", counts), ("equal_width", widths)):
        near = round_trip(MagnitudeBlocks(blocks=blocks, scheme=scheme), delta)
        assert np.linalg.norm(near.astype(np.float64) - delta) / norm == pytest.approx(error, abs=2e-3)


@pytest.mark.parametrize("zero", ["minus", "plus"])
def test_one_block_is_bitdelta(zero: Any) -> None:
    delta = np.random.default_rng(0).standard_normal((30, 70)).astype(np.float32)
    delta[3] = 0
    one = round_trip(MagnitudeBlocks(blocks=1, zero=zero), delta)
    assert np.allclose(one, round_trip(BitDelta(zero=zero), delta), rtol=1e-6)


def test_zeros_stay_or_take_the_sign_they_are_told() -> None:
    delta = np.array([0.0, -0.0, 3.0, -5.0], np.float32)
    for zero, sign in (("zero", 0.0), ("minus", -1.0), ("plus", 1.0)):
        got = round_trip(MagnitudeBlocks(blocks=1, zero=zero), delta)
        assert got.tolist() == [2 * sign, 2 * sign, 2, -2]


def test_bits_per_element() -> None:
    delta = np.random.default_rng(0).standard_normal(6400).astype(np.float32)
    cell = Cell(Spec("w", (6400,), DTYPES["float32"]))
    for blocks, bits in ((1, 1), (2, 2), (3, 3), (16, 5)):
        arrays = MagnitudeBlocks(blocks=blocks).encode(delta, cell)
        assert sum(a.nbytes for n, a in arrays.items() if n in ("signs", "planes", "zeros")) == bits * 800
