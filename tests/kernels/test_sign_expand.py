"""From bits to floats: the compiled loops equal their definitions, whatever the range and the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.kernels import sign_expand


def drawn(n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(n) * 1e-3).astype(np.float32)
    return np.where(rng.random(n) < 0.2, np.float32([0.0, -0.0])[rng.integers(2, size=n)], values)


def bits_of(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8)


@given(st.integers(0, 30), st.integers(0, 5000), st.integers(1, 3000), st.integers(0, 9000))
def test_expanding_equals_its_definition(offset: int, n: int, width: int, first: int) -> None:
    bits = bits_of((offset + n + 7) // 8, seed=n)
    scales = np.random.default_rng(n).standard_normal((first + n) // width + 1).astype(np.float32)
    got, wanted = np.empty(n, np.float32), np.empty(n, np.float32)
    sign_expand.expand_signs(bits, offset, scales, width, first, got)
    sign_expand.expand_signs_defined(bits, offset, scales, width, first, wanted)
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 13])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 2047, 2048, 5000])
def test_the_other_expansions_equal_their_definitions(offset: int, n: int) -> None:
    bits, values = bits_of((offset + n + 7) // 8), drawn(n, seed=3)
    got, wanted = drawn(n, seed=4), drawn(n, seed=4)
    sign_expand.add_signs(bits, offset, 0.3, got)
    sign_expand.add_signs_defined(bits, offset, 0.3, wanted)
    assert got.tobytes() == wanted.tobytes()
    sign_expand.expand_masked(bits, offset, values, 0.7, got)
    sign_expand.expand_masked_defined(bits, offset, values, 0.7, wanted)
    assert got.tobytes() == wanted.tobytes()
    got[:], wanted[:] = values, values
    sign_expand.clear_flagged(bits, offset, got)
    sign_expand.clear_flagged_defined(bits, offset, wanted)
    assert got.tobytes() == wanted.tobytes()
    table = np.arange(4096, dtype=np.float32)
    sign_expand.expand_sampled(bits, offset, table, 2**64 - 5, 12345, got)
    sign_expand.expand_sampled_defined(bits, offset, table, 2**64 - 5, 12345, wanted)
    assert got.tobytes() == wanted.tobytes()


def test_too_few_bits_are_refused() -> None:
    out, bits = np.empty(9, np.float32), np.zeros(1, np.uint8)
    with pytest.raises(ValueError, match="1 bytes do not hold bits 0 to 9"):
        sign_expand.expand_signs(bits, 0, np.ones(1, np.float32), 9, 0, out)
    with pytest.raises(ValueError, match="2 scales of 4 elements do not reach element 9"):
        sign_expand.expand_signs(np.zeros(2, np.uint8), 0, np.ones(2, np.float32), 4, 0, out)
    with pytest.raises(ValueError, match="8 values for 9 elements"):
        sign_expand.expand_masked(np.zeros(2, np.uint8), 0, out[:8], 1.0, out)
