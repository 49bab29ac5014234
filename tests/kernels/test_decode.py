import doctest

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deltasmith.kernels import decode as module
from deltasmith.kernels.decode import (
    count_nonfinite,
    decode,
    decode_difference,
    expand_low_rank,
    first_nonfinite,
    subtract_bfloat16,
)

EXACT = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


def decoded(name, stored):
    out = np.full(stored.size, 7, dtype=np.float32)
    decode(name, np.ascontiguousarray(stored).view(np.uint8), out)
    return out


def same_bits(a, b):
    both_nan = np.isnan(a) & np.isnan(b)
    assert np.array_equal(a.view(np.uint32)[~both_nan], b.view(np.uint32)[~both_nan])
    assert np.array_equal(np.isnan(a), np.isnan(b))


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_fault_45_every_bit_pattern_of_the_short_types(name):
    kind = EXACT[name]
    patterns = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    with np.errstate(invalid="ignore"):
        expected = patterns.view(kind).astype(np.float32)
    found = decoded(name, patterns)
    same_bits(found, expected)
    assert np.array_equal(np.signbit(found), np.signbit(expected))
    assert count_nonfinite(found) == np.sum(~np.isfinite(expected))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_fault_45_signalling_nan_keeps_its_payload(name):
    stored, bits = {
        "float16": (np.array([0x7D01, 0xFC00], np.uint16), [0x7FA02000, 0xFF800000]),
        "bfloat16": (np.array([0x7F81, 0xFF80], np.uint16), [0x7F810000, 0xFF800000]),
        "float32": (np.array([0x7F800001, 0xFF800000], np.uint32), [0x7F800001, 0xFF800000]),
    }[name]
    found = decoded(name, stored)
    assert found.view(np.uint32).tolist() == bits
    assert count_nonfinite(found) == 2


def test_fault_45_negative_zero_and_subnormals_survive():
    x = np.array([-0.0, 0.0, 1e-45, -1e-40, np.finfo(np.float32).tiny], dtype=np.float32)
    assert np.array_equal(decoded("float32", x).view(np.uint32), x.view(np.uint32))
    assert np.array_equal(decoded("float64", x.astype(np.float64)).view(np.uint32), x.view(np.uint32))


def test_float64_is_rounded_once_and_overflows_to_infinity():
    found = decoded("float64", np.array([1 + 2**-24, 1 + 2**-24 + 2**-40, 1e300, -1e300, np.nan]))
    assert found[:2].tolist() == [1.0, np.nextafter(np.float32(1), np.float32(2))]
    assert count_nonfinite(found) == 3
    assert first_nonfinite(found) == 2


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.integers(0, 70), elements=st.floats(width=64)))
def test_float64_agrees_with_numpy(x):
    with np.errstate(all="ignore"):
        same_bits(decoded("float64", x), x.astype(np.float32))


@pytest.mark.parametrize("name", [*EXACT, "float64"])
@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65])
def test_sizes_and_odd_alignment(name, size):
    kind = EXACT.get(name, np.dtype(np.float64))
    values = (np.arange(size) - size / 2).astype(kind)
    shifted = np.empty(size * kind.itemsize + 1, dtype=np.uint8)
    shifted[1:] = values.view(np.uint8)
    before = shifted.copy()
    out = np.full(size, 7, dtype=np.float32)
    decode(name, shifted[1:], out)
    assert np.array_equal(out, values.astype(np.float32))
    assert np.array_equal(shifted, before)


def test_read_only_bytes_are_decoded():
    out = np.empty(1, dtype=np.float32)
    decode("bfloat16", np.frombuffer(b"\x80\x3f", dtype=np.uint8), out)
    assert out[0] == 1.0


@pytest.mark.parametrize("name", ["int64", "int8", "uint8", "bool", "complex64"])
def test_integers_and_booleans_are_never_decoded(name):
    with pytest.raises(ValueError, match=f"{name} is not a floating type"):
        decode(name, np.zeros(8, np.uint8), np.zeros(1, np.float32))


def test_sizes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="5 bytes are not 2 elements of bfloat16"):
        decode("bfloat16", np.zeros(5, np.uint8), np.zeros(2, np.float32))


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 9998, 9999])
@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000])
def test_nonfinite_is_found_anywhere(at, bits):
    x = np.full(10_000, np.finfo(np.float32).max, dtype=np.float32)
    assert (count_nonfinite(x), first_nonfinite(x)) == (0, -1)
    x.view(np.uint32)[at:] = bits
    assert (count_nonfinite(x), first_nonfinite(x)) == (10_000 - at, at)


def test_nothing_has_nothing_nonfinite():
    empty = np.empty(0, dtype=np.float32)
    assert (count_nonfinite(empty), first_nonfinite(empty)) == (0, -1)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.data())
def test_any_piece_of_a_low_rank_product_has_the_bits_of_the_whole(rows, rank, columns, data):
    values = st.floats(-4, 4, width=32)
    left = data.draw(hnp.arrays(np.float32, (rows, rank), elements=values))
    right = data.draw(hnp.arrays(np.float32, (rank, columns), elements=values))
    whole = np.zeros((rows, columns), dtype=np.float32)
    for k in range(rank):
        whole = (whole + left[:, k : k + 1] * right[k : k + 1]).astype(np.float32)
    whole = (whole * np.float32(0.75)).reshape(-1)
    start = data.draw(st.integers(0, whole.size))
    stop = data.draw(st.integers(start, whole.size))
    out = np.full(stop - start, 9, dtype=np.float32)
    expand_low_rank(left, right, 0.75, start, out)
    assert np.array_equal(out, whole[start:stop])


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64"])
def test_a_difference_is_a_decode_and_a_subtraction(name, size):
    rng = np.random.default_rng(size)
    dtype = {"bfloat16": ml_dtypes.bfloat16}.get(name, name)
    raw = rng.normal(size=size).astype(dtype).view(np.uint8)
    base = rng.normal(size=size).astype(np.float32)
    got, want = np.empty(size, np.float32), np.empty(size, np.float32)
    decode_difference(name, raw, base, got)
    decode(name, raw, want)
    np.testing.assert_array_equal(got, want - base)


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 5000])
def test_subtracting_words_is_decoding_both_and_subtracting(size):
    rng = np.random.default_rng(size)
    mine, ground = (rng.normal(size=size).astype(ml_dtypes.bfloat16).view(np.uint16) for _ in range(2))
    out, base, want = (np.empty(size, np.float32) for _ in range(3))
    assert subtract_bfloat16(mine, ground, out)
    decode("bfloat16", ground.view(np.uint8), base)
    decode_difference("bfloat16", mine.view(np.uint8), base, want)
    np.testing.assert_array_equal(out.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize(("at", "word"), [(0, 0x7F80), (2047, 0xFF80), (2048, 0x7FC1), (2999, 0xFFFF)])
def test_subtracting_words_notices_what_is_not_finite(at, word):
    plain = np.full(3000, 0x3F80, np.uint16)
    odd = plain.copy()
    odd[at] = word
    out = np.empty(3000, np.float32)
    assert not subtract_bfloat16(odd, plain, out)
    assert not subtract_bfloat16(plain, odd, out)
    odd[at] = 0x7F7F  # the largest number, twice: the difference does not fit
    plain[at] = 0xFF7F
    with np.errstate(over="ignore"):
        assert not subtract_bfloat16(odd, plain, out)
        assert subtract_bfloat16(odd, odd, out)
