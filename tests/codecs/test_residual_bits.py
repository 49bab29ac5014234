"""BitDelta applied to its own residual: one pass is BitDelta, and sums and multiples need no decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deltasmith.codecs.bitdelta import BitDelta
from deltasmith.codecs.protocol import Cell, Held
from deltasmith.codecs.residual_bits import ResidualBits, concatenated
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

SHAPE = (300, 701)
CELL = Cell(Spec("w", SHAPE, DTYPES["float32"]))


def delta(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(SHAPE) * 1e-3).astype(np.float32)
    values[rng.random(SHAPE) < 0.1] = 0
    return values


@pytest.mark.parametrize("zero", ["minus", "plus"])
def test_one_pass_is_bitdelta(zero: Any) -> None:
    one, plain = ResidualBits(passes=1, zero=zero), BitDelta(zero=zero)
    ours, theirs = one.encode(delta(), CELL), plain.encode(delta(), CELL)
    assert ours["signs"].tobytes() == theirs["signs"].tobytes()
    assert ours["scales"].tobytes() == theirs["scale"].tobytes()
    assert one.decode(ours, CELL).tobytes() == plain.decode(theirs, CELL).tobytes()


def test_passes_by_hand() -> None:
    values = np.array([4.0, -1.0, 1.0, -2.0], np.float32)  # then 2, 1, -1, 0, then .5 (mean 1): 1, 0, 0, 1
    cell = Cell(Spec("w", (4,), DTYPES["float32"]))
    codec = ResidualBits(passes=3)
    arrays = codec.encode(values, cell)
    assert arrays["scales"].tolist() == [2.0, 1.0, 0.5]
    assert [row[0] for row in arrays["signs"]] == [0b0101, 0b0011, 0b1001]
    assert codec.decode(arrays, cell).tolist() == [3.5, -1.5, 0.5, -2.5]


def test_errors_of_gaussian_deltas() -> None:
    values = (np.random.default_rng(1).standard_normal(SHAPE) * 1e-3).astype(np.float32)
    errors = []
    for passes in (1, 2, 3, 4):
        codec = ResidualBits(passes=passes)
        near = codec.decode(codec.encode(values, CELL), CELL).astype(np.float64)
        errors.append(np.linalg.norm(near - values) / np.linalg.norm(values.astype(np.float64)))
    assert errors == pytest.approx([0.603, 0.363, 0.243, 0.183], abs=3e-3)


def test_sums_and_multiples_without_decoding() -> None:
    one, two = ResidualBits(passes=2), ResidualBits(passes=3)
    first, second = one.encode(delta(1), CELL), two.encode(delta(2), CELL)
    third = BitDelta().encode(delta(3), CELL)
    joined = concatenated([first, second, third], [2.0, -0.5, 1.0])
    assert joined["signs"].shape[0] == 6
    wanted = (
        2.0 * one.decode(first, CELL).astype(np.float64)
        - 0.5 * two.decode(second, CELL)
        + BitDelta().decode(third, CELL)
    )
    got = ResidualBits(passes=6).decode(joined, CELL)
    assert np.allclose(got, wanted, rtol=1e-6, atol=1e-9)
    assert concatenated([first])["scales"].tobytes() == first["scales"].tobytes()


def test_what_is_no_sum_of_signs_is_refused() -> None:
    with pytest.raises(ValueError, match="300 scales for 1 masks"):
        concatenated([BitDelta(scale="row").encode(delta(), CELL)])
    with pytest.raises(ValueError, match="stored as zero"):
        concatenated([BitDelta(zero="zero").encode(delta(), CELL)])
    with pytest.raises(ValueError, match="signs is uint8 of shape"):
        ResidualBits(passes=3).decode(ResidualBits(passes=2).encode(delta(), CELL), CELL)


def test_ranges_read_only_their_bytes() -> None:
    codec = ResidualBits(passes=2)
    arrays = codec.encode(delta(), CELL)
    whole = codec.decode(arrays, CELL).reshape(-1)
    asked: list[int] = []

    class Counting(Held):
        def read(self, name: str, start: int, stop: int) -> Any:
            asked.append(stop - start)
            return super().read(name, start, stop)

    out = np.empty(1001, np.float32)
    codec.decoder(CELL, Counting(arrays)).read(70_003, out)
    assert np.array_equal(out, whole[70_003:71_004])
    assert asked == [126, 126]
