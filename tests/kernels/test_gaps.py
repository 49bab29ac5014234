import doctest

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.kernels import gaps as module
from deltasmith.kernels.gaps import (
    count,
    find,
    gap_bytes,
    gaps_reference,
    pick,
    put,
    read_gaps,
    spread_mask,
    write_gaps,
)


def test_examples():
    assert doctest.testmod(module).failed == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 600), st.booleans()), max_size=12), st.integers(0, 300))
def test_both_ways_of_telling_positions_come_back(runs, tail):
    pieces = [np.zeros(tail, np.float32)]
    for zeros, negative in runs:
        pieces.insert(0, np.array([0.0] * zeros + [-2.0 if negative else 3.0], np.float32))
    values = np.concatenate(pieces)
    found = count(values)
    assert found == np.count_nonzero(values)
    places = np.empty(found + 1, np.int32)
    find(values, places)
    places = places[:found]
    assert np.array_equal(places, np.flatnonzero(values))
    kept = np.empty(found, np.float32)
    pick(values, places, kept)
    assert np.array_equal(kept, values[values != 0])
    written = np.empty(gap_bytes(places), np.uint8)
    write_gaps(places, written)
    assert written.tolist() == gaps_reference(values).tolist()
    again = np.empty_like(places)
    assert read_gaps(written, values.size, again)
    assert np.array_equal(again, places)
    assert not read_gaps(written, values.size, np.empty(found + 1, np.int32))
    out = np.zeros(values.size, np.float32)
    put(kept, again, out)
    assert np.array_equal(out, values)
    if found:
        assert not read_gaps(written, values.size, np.empty(found - 1, np.int32))
        mask = np.packbits(values != 0, bitorder="little")
        out[:] = 9
        assert spread_mask(mask, kept, out)
        assert np.array_equal(out, values)
        assert not spread_mask(mask, np.append(kept, np.float32(1)), out)
        assert not spread_mask(mask, kept[:-1].copy(), out)


def test_gaps_beyond_the_end_are_refused():
    one = np.empty(1, np.int32)
    assert not read_gaps(np.array([10], np.uint8), 10, one)
    assert not read_gaps(np.array([255, 255, 3], np.uint8), 10, one)
    assert read_gaps(np.array([255, 255, 3], np.uint8), 514, one)
    assert one[0] == 513
    assert read_gaps(np.array([9], np.uint8), 10, one)


def test_the_sign_of_zero_is_no_element():
    assert count(np.array([-0.0, 0.0, 1e-45], np.float32)) == 1
