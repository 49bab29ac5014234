"""One bit per sign: the compiled loops equal their definitions, whatever the range, the rows and the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.kernels import sign_bits
from deltasmith.kernels.sign_bits import PIECE, cuts_of, pack_flags, pack_signs, unpack_flags
from golden_cases import cases

SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 2047, 2048, 2049, PIECE, PIECE + 2049, 2 * PIECE + 5]


def drawn(n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(n) * 1e-3).astype(np.float32)
    return np.where(rng.random(n) < 0.2, np.float32([0.0, -0.0])[rng.integers(2, size=n)], values)


def bits_of(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [1, 3, 1000, 4096, 1 << 30])
@pytest.mark.parametrize("zero", [-1, 1])
def test_packing_equals_its_definition(size: int, width: int, zero: int) -> None:
    if width < 64:
        size = min(size, 2049)  # the definition is slow on many short rows
    values, cuts = drawn(size), cuts_of(0, size, width)
    bits, sums = pack_signs(values, cuts, zero)
    wanted, totals = sign_bits.pack_signs_defined(values, cuts, zero)
    assert bits.tobytes() == wanted.tobytes()
    assert sums.tobytes() == totals.tobytes()
    assert np.isclose(sums[:, 0].sum(), np.abs(values.astype(np.float64)).sum(), rtol=1e-12)


def test_zeros_of_either_sign_go_where_they_are_told() -> None:
    values = np.array([0.0, -0.0, 1.0, -1.0], np.float32)
    cuts = cuts_of(0, 4, 4)
    assert unpack_flags(pack_signs(values, cuts, -1)[0], 0, 4).tolist() == [False, False, True, False]
    assert unpack_flags(pack_signs(values, cuts, 1)[0], 0, 4).tolist() == [True, True, True, False]


@given(st.integers(0, 5), st.integers(0, 3 * PIECE), st.integers(1, 2 * PIECE))
def test_cuts_are_the_ends_of_rows_and_pieces(pieces: int, n: int, width: int) -> None:
    start = pieces * PIECE
    cuts = cuts_of(start, n, max(width, 50))
    ends = {e for step in (max(width, 50), PIECE) for e in range(step, start + n, step) if e > start}
    assert (cuts + start).tolist() == (sorted({start, *ends, start + n}) if n else [start])


@pytest.mark.parametrize("blocks", [1, 2])
def test_sums_do_not_depend_on_the_block(blocks: int) -> None:
    values = drawn(5 * PIECE + 77)
    whole = pack_signs(values, cuts_of(0, values.size, 1000), -1)[1]
    step = blocks * PIECE
    parts = [
        pack_signs(values[at : at + step], cuts_of(at, values[at : at + step].size, 1000), -1)[1]
        for at in range(0, values.size, step)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_differing_bits_are_counted(words: int, seed: int) -> None:
    one, other = bits_of(8 * words, seed), bits_of(8 * words, seed + 1)
    assert sign_bits.differing(one, other) == sign_bits.differing_defined(one, other)
    assert sign_bits.differing(one, one) == 0


def test_the_dot_product_of_signs() -> None:
    one, other = drawn(1000, 1), drawn(1000, 2)
    cuts = cuts_of(0, 1000, 1000)
    apart = sign_bits.differing(pack_signs(one, cuts, -1)[0], pack_signs(other, cuts, -1)[0])
    assert 1000 - 2 * apart == np.dot(np.where(one > 0, 1, -1), np.where(other > 0, 1, -1))


def test_flags_are_padded_to_whole_words() -> None:
    flags = np.random.default_rng(0).random(77) < 0.5
    bits = pack_flags(flags)
    assert bits.size == 16
    assert np.array_equal(unpack_flags(bits, 0, 77), flags)
    assert not unpack_flags(bits, 77, 51).any()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        sign_bits.differing(np.zeros(1, np.uint8), np.zeros(1, np.uint8))


def test_golden_layout_of_the_released_code() -> None:
    arrays = cases("bitdelta_pack")[0].arrays
    mask = arrays["mask"].astype(bool)
    words = sign_bits.released_words(mask)
    assert words.dtype == np.int32
    assert np.array_equal(words, arrays["expected_packed"])
    assert np.array_equal(sign_bits.released_mask(words), mask)
    with pytest.raises(ValueError, match="not a multiple of 32"):
        sign_bits.released_words(mask[:33])
