import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.codecs import sparse as module
from deltasmith.codecs.protocol import Cell
from deltasmith.codecs.sparse import Sparse
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

EXACT = Sparse(values="float32")
KINDS = ["float32", "bfloat16", "float16"]


def cell_of(size):
    return Cell(Spec("w", (size,), DTYPES["float32"]))


def test_examples():
    assert doctest.testmod(module).failed == 0


def pruned(size, density, seed=0, scale=4e-4):
    random = np.random.default_rng(seed)
    delta = (random.standard_normal(size) * scale).astype(np.float32)
    return np.where(random.random(size) < density, delta, np.float32(0))


@pytest.mark.parametrize(
    ("density", "per_element"),
    [(0.5, 1 / 8), (0.2, 1 / 8), (0.1, 0.1), (0.01, 0.0109), (0.0, 0.0), (1.0, 0.0)],
)
def test_positions_take_the_smaller_of_a_bit_and_a_byte(density, per_element):
    size = 200_000
    delta = pruned(size, density, 1)
    stream = Sparse(values="bfloat16").encode(delta, cell_of(size))["stream"]
    expected = size * per_element + 2 * np.count_nonzero(delta)
    assert abs(stream.size - expected) < 0.02 * size * per_element + 100


def test_an_all_zero_tensor_is_its_index_alone():
    arrays = EXACT.encode(np.full(1 << 18, -0.0, np.float32), cell_of(1 << 18))
    assert arrays["stream"].size == 0
    assert arrays["index"].tolist() == [0, 0, 0, 0]
    again = EXACT.decode(arrays, cell_of(1 << 18))
    assert not again.any()
    assert not np.signbit(again).any()


@pytest.mark.parametrize("density", [0.001, 0.1, 0.6, 1.0])
def test_float32_is_exact(density):
    delta = pruned(150_000, density, 2)
    again = EXACT.decode(EXACT.encode(delta, cell_of(delta.size)), cell_of(delta.size))
    assert np.array_equal(again, delta)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 6e-8, 1.0, 65504.0, 1e30, 1e37])
def test_rounding_holds_its_bound_at_every_scale(kind, scale):
    """float16 alone would flush the first three to zero and overflow at the last three."""
    codec = Sparse(values=kind)
    delta = pruned(5000, 0.3, 3, scale)
    again = codec.decode(codec.encode(delta, cell_of(5000)), cell_of(5000)).astype(np.float64)
    exact = delta.astype(np.float64)
    assert np.linalg.norm(again - exact) <= codec.bound * np.linalg.norm(exact)
    assert np.count_nonzero(delta) > 1000
    if scale > 1e-38:
        where = np.abs(exact) > scale * 1e-3
        assert np.all(np.abs(again - exact)[where] <= codec.bound * np.abs(exact)[where])


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_the_largest_floats_do_not_overflow(kind):
    largest = np.finfo(np.float32).max
    delta = np.array([largest, -largest, 0, largest / 2], np.float32)
    again = Sparse(values=kind).decode(Sparse(values=kind).encode(delta, cell_of(4)), cell_of(4))
    assert again.tolist() == [largest, -largest, 0, 2.0**127]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(kind, bad):
    with pytest.raises(ValueError, match="infinite elements or NaN"):
        Sparse(values=kind).encode(np.array([1.0, bad], np.float32), cell_of(2))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_range_over_block_borders(data):
    size, codec = 140_000, EXACT
    delta = pruned(size, 0.05, 5)
    arrays = codec.encode(delta, cell_of(size))
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    from deltasmith.codecs.protocol import Held

    out = np.full(stop - start, 7, np.float32)
    codec.decoder(cell_of(size), Held(arrays)).read(start, out)
    assert np.array_equal(out, delta[start:stop])


def test_every_lie_in_a_head_is_a_value_error():
    delta = pruned(1000, 0.05, 6)
    arrays = EXACT.encode(delta, cell_of(1000))
    for offset, value in [(0, 0), (0, 1), (0, 3), (0, 9), (1, 1), (3, 127), (4, 255), (8, 255), (11, 255)]:
        stream = arrays["stream"].copy()
        assert stream[offset] != value
        stream[offset] = value
        with pytest.raises(ValueError, match="block 0"):
            EXACT.decode({**arrays, "stream": stream}, cell_of(1000))
