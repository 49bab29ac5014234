"""Blocks of magnitudes: selection equals sorting, ties included; bit planes and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.kernels import levels
from deltasmith.kernels.sign_bits import pack_flags

COUNTS = st.sampled_from([1, 2, 3, 4, 7, 16, 40, 100, 4096])


@given(st.integers(0, 3000), COUNTS, st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_equal_counts_are_those_of_a_stable_sort(n: int, count: int, distinct: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random(distinct).astype(np.float32)
    values[0] = 0
    magnitudes = values[rng.integers(distinct, size=n)]
    got = levels.equal_count_levels(magnitudes, count)
    assert np.array_equal(got, levels.equal_count_levels_defined(magnitudes, count))


def test_equal_widths_by_hand() -> None:
    magnitudes = np.array([1.0, 2.0, 2.9, 3.0, 5.0, 4.9], np.float32)
    assert levels.equal_width_levels(magnitudes, 4).tolist() == [0, 1, 1, 2, 3, 3]
    assert levels.equal_width_levels(np.full(3, 7, np.float32), 4).tolist() == [0, 0, 0]
    assert levels.equal_width_levels(np.zeros(0, np.float32), 4).size == 0


def test_means_are_those_of_float64_and_zero_where_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    magnitudes = rng.random(100_000).astype(np.float32)
    level = rng.integers(0, 3, 100_000).astype(np.uint16)
    wanted = [magnitudes[level == b].astype(np.float64).mean() for b in range(3)]
    assert levels.level_means(magnitudes, level, 4).tolist() == [*np.float32(wanted).tolist(), 0.0]


@pytest.mark.parametrize("planes", [0, 1, 3, 12])
@pytest.mark.parametrize("offset", [0, 3, 8, 21])
@pytest.mark.parametrize("n", [0, 1, 2047, 2049, 70_001])
def test_expanding_equals_its_definition(planes: int, offset: int, n: int) -> None:
    rng = np.random.default_rng(n + planes)
    level = rng.integers(0, 1 << planes, offset + n).astype(np.uint16)
    signs = pack_flags(rng.random(offset + n) < 0.5)
    magnitudes = rng.random(1 << planes).astype(np.float32)
    packed = levels.pack_levels(level, planes)
    got: Any = np.empty(n, np.float32)
    wanted: Any = np.empty(n, np.float32)
    levels.expand_levels(signs, packed, offset, magnitudes, got)
    levels.expand_levels_defined(signs, packed, offset, magnitudes, wanted)
    assert got.tobytes() == wanted.tobytes()
    assert np.array_equal(np.abs(got), magnitudes[level[offset:]])


@pytest.mark.parametrize("expand", [levels.expand_levels, levels.expand_levels_defined])
def test_numbers_beyond_the_blocks_are_refused(expand: Any) -> None:
    packed = levels.pack_levels(np.array([0, 1, 2, 3], np.uint16), 2)
    signs, out = pack_flags(np.ones(4, bool)), np.empty(4, np.float32)
    expand(signs, packed, 0, np.ones(4, np.float32), out)
    with pytest.raises(ValueError, match="beyond the 3 that there are"):
        expand(signs, packed, 0, np.ones(3, np.float32), out)
