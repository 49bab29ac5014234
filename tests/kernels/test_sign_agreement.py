"""Agreement of signs: the compiled pass equals its definition, bits and sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deltasmith.kernels.agreement import pack_agreement, pack_agreement_defined
from deltasmith.kernels.sign_bits import PIECE
from deltasmith.merges.emr import masked, task_terms


def drawn(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(n) * 1e-3).astype(np.float32)
    return np.where(rng.random(n) < 0.3, np.float32([0.0, -0.0])[rng.integers(2, size=n)], values)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 2047, 2048, 2049, PIECE, PIECE + 1, 2 * PIECE + 2111])
def test_the_pass_equals_its_definition(n: int) -> None:
    unified, delta = drawn(n, 1), drawn(n, 2)
    bits, sums = pack_agreement(unified, delta)
    wanted, totals = pack_agreement_defined(unified, delta)
    assert bits.tobytes() == wanted.tobytes()
    assert sums.tobytes() == totals.tobytes()


def test_sums_are_those_that_rescalers_ask_for() -> None:
    unified, delta = drawn(3 * PIECE + 500, 1), drawn(3 * PIECE + 500, 2)
    bits, sums = pack_agreement(unified, delta)
    flags = np.unpackbits(bits, bitorder="little")[: delta.size].astype(bool)
    assert np.array_equal(flags, masked(unified, delta) != 0)
    assert np.allclose(sums.sum(axis=0)[:5], task_terms(unified, delta), rtol=1e-12)
    assert np.isclose(sums[:, 5].sum(), np.sum(delta.astype(np.float64) ** 2), rtol=1e-12)


def test_products_too_small_for_float32_still_agree() -> None:
    tiny = np.array([1e-40, -1e-40, 1e-40], np.float32)
    assert pack_agreement(tiny, np.array([1e-40, -1e-40, -1e-40], np.float32))[0][0] == 0b011


def test_lengths_must_be_equal() -> None:
    with pytest.raises(ValueError, match="2 and 3 elements"):
        pack_agreement(drawn(2, 0), drawn(3, 0))
