"""float32 → stored bytes: against numpy and ml_dtypes, over every exponent and every rounding position."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deltasmith.kernels.encode import ENCODABLE, count_stored_nonfinite, encode
from deltasmith.table.dtypes import DTYPES

ORACLES = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def encoded(name, x):
    out = np.full(x.size * DTYPES[name].itemsize, 0xAB, np.uint8)
    kept = x.copy()
    bad = encode(name, x, out)
    np.testing.assert_array_equal(x.view(np.uint32), kept.view(np.uint32))
    return out.view(ORACLES[name]), bad


def widened(values):
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def assert_encodes(name, x):
    got, bad = encoded(name, x)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(ORACLES[name])
    wide = widened(expected)
    nan = np.isnan(wide)
    assert np.isnan(widened(got)[nan]).all()
    width = f"u{DTYPES[name].itemsize}"
    np.testing.assert_array_equal(got.view(width)[~nan], expected.view(width)[~nan])
    assert bad == np.count_nonzero(~np.isfinite(wide))


def every_rounding_position():
    """All signs and exponents, with fractions around every tie of bfloat16 and of float16."""
    high = np.arange(512, dtype=np.uint32)[:, None] << 23
    steps = [k << shift for shift in (13, 16) for k in range(8)]
    near = [s + d for s in steps for d in (-1, 0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    fractions = np.array([f for f in near if f >= 0] + [0x7FFFFF, 0x7FF000, 0x7FEFFF, 0x7F8000], np.uint32)
    return np.ascontiguousarray((high | (fractions & 0x7FFFFF)).reshape(-1)).view(np.float32)


@pytest.mark.parametrize("name", ENCODABLE)
def test_every_exponent_and_tie_is_rounded_as_the_libraries_do(name):
    assert_encodes(name, every_rounding_position())


@pytest.mark.parametrize("name", ENCODABLE)
@given(
    bits=hnp.arrays(
        np.uint32, st.sampled_from([0, 1, 2, 7, 8, 9, 31, 33, 64]), elements=st.integers(0, 2**32 - 1)
    )
)
def test_any_bits_are_rounded_as_the_libraries_do(name, bits):
    assert_encodes(name, bits.view(np.float32))


def test_bfloat16_by_hand():
    # 1 + 2^-8 is halfway between 1 and 1 + 2^-7: to even; 1 + 3·2^-8 is halfway too, and even is above.
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20), 3.4e38], np.float32)
    got, bad = encoded("bfloat16", x)
    assert got.astype(np.float64).tolist() == [1.0, 1 + 2**-6, -(1 + 2**-7), np.inf]
    assert bad == 1


def test_float16_by_hand():
    x = np.array([65504, 65519.99, 65520, 2**-24, 2**-25, 3 * 2**-25, 2**-14 - 2**-26], np.float32)
    got, bad = encoded("float16", x)
    assert got.astype(np.float64).tolist() == [65504, 65504, np.inf, 2**-24, 0.0, 2**-23, 2**-14]
    assert bad == 1


@pytest.mark.parametrize("name", ENCODABLE)
def test_fault_45_minus_zero_subnormals_and_nan_survive(name):
    smallest = np.float32(2**-24 if name == "float16" else 2**-133)  # representable in the target
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFC00000], np.uint32).view(np.float32)
    got, bad = encoded(name, np.concatenate([np.array([-0.0, smallest, -smallest], np.float32), nans]))
    wide = widened(got)
    assert np.signbit(wide[0])
    assert wide[0] == 0
    assert wide[1:3].tolist() == [smallest, -smallest]
    assert np.isnan(wide[3:]).all()
    assert bad == 4


@pytest.mark.parametrize("name", ENCODABLE)
def test_fault_46_what_does_not_fit_is_counted(name):
    x = np.ones(100_001, np.float32)
    assert encoded(name, x)[1] == 0
    x[[3, 70_000]] = [np.inf, np.nan]
    x[100_000] = 70000.0
    assert encoded(name, x)[1] == (3 if name == "float16" else 2)


@pytest.mark.parametrize("size", [0, 1])
def test_fault_49_no_element_and_one(size):
    for name in ENCODABLE:
        assert_encodes(name, np.full(size, 0.1, np.float32))


def test_a_buffer_of_the_wrong_size_or_type_is_refused():
    with pytest.raises(ValueError, match="3 elements of bfloat16 do not fill a buffer of 7 bytes"):
        encode("bfloat16", np.zeros(3, np.float32), np.zeros(7, np.uint8))
    with pytest.raises(ValueError, match="cannot be encoded as int8"):
        encode("int8", np.zeros(3, np.float32), np.zeros(3, np.uint8))


def test_stored_bytes_that_are_not_finite_are_counted():
    for name, dtype in ORACLES.items():
        x = np.array([1, np.nan, -np.inf, 2, np.inf, 0], dtype)
        assert count_stored_nonfinite(name, x.view(np.uint8)) == 3
        assert count_stored_nonfinite(name, x[:1].view(np.uint8)) == 0
    for name in ("float8_e4m3fn", "float8_e5m2"):
        every = np.arange(256, dtype=np.uint8)
        wide = every.view(getattr(ml_dtypes, name)).astype(np.float32)
        assert count_stored_nonfinite(name, every) == np.count_nonzero(~np.isfinite(wide))
    parts = np.array([1 + 1j, complex(np.nan, 0), complex(np.inf, np.inf)], np.complex64)
    assert count_stored_nonfinite("complex64", parts.view(np.uint8)) == 3
    assert count_stored_nonfinite("int64", np.full(8, 0xFF, np.uint8)) == 0
    assert count_stored_nonfinite("float32", np.zeros(0, np.uint8)) == 0
