import doctest

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deltasmith.kernels import ulp as module
from deltasmith.kernels.ulp import (
    different,
    escapes,
    low_bits,
    raise_low,
    split,
    to_distances,
    to_distances_reference,
    to_tokens,
    to_words,
    to_words_reference,
)

WORDS = [np.uint8, np.uint16, np.uint32, np.uint64]


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("floating", [True, False])
def test_kernels_equal_their_definitions_and_each_other_backwards(word, floating):
    random = np.random.default_rng(1)
    top = np.iinfo(word).max
    words = random.integers(0, top, 3000, dtype=word, endpoint=True)
    predicted = words + random.integers(-5, 6, 3000).astype(np.int64).astype(word)
    predicted[:1000] = random.integers(0, top, 1000, dtype=word, endpoint=True)
    words[-4:] = 0, top, top // 2, top // 2 + 1
    out, back = np.empty_like(words), np.empty_like(words)
    to_distances(words, predicted, floating, out)
    assert np.array_equal(out, to_distances_reference(words, predicted, floating))
    to_words(out, predicted, floating, back)
    assert np.array_equal(back, words)
    assert np.array_equal(to_words_reference(out, predicted, floating), words)


def test_neighbouring_floats_are_at_a_distance_of_one():
    values = np.arange(0, 0x7F81, dtype=np.uint16)  # 0.0 up to infinity and the first NaN
    line = np.concatenate([(values | 0x8000)[::-1], values])  # from the last negative to the last positive
    up, down = np.empty(line.size - 1, np.uint16), np.empty(line.size - 1, np.uint16)
    to_distances(line[1:].copy(), line[:-1].copy(), True, up)
    to_distances(line[:-1].copy(), line[1:].copy(), True, down)
    assert set(up.tolist()) == {2}  # one up folds to 2
    assert set(down.tolist()) == {1}
    ordered = line.view(ml_dtypes.bfloat16).astype(np.float32)[1:-1]
    assert np.all(np.diff(ordered[np.isfinite(ordered)]) >= 0)


@pytest.mark.parametrize("word", WORDS)
def test_every_difference_counts(word):
    words = np.arange(20_000).astype(word)
    assert different(words, words.copy()) == different(words[:0], words[:0]) == 0
    other = words.copy()
    for found, at in enumerate((0, 8191, 8192, 19_999), 1):
        other[at] ^= word(1)
        assert different(words, other) == found


@pytest.mark.parametrize("word", WORDS)
def test_split_is_tokens_low_bits_and_escapes_of_one_group_after_the_other(word):
    random = np.random.default_rng(3)
    sizes, lows = (1000, 9, 1, 517), (0, 0, 0, 0) if word is np.uint8 else (0, 3, 8, 1)
    tops = [min(1 << 8 * word().itemsize, 1 << low + 9) for low in lows]
    parts = [random.integers(0, top, size).astype(word) for size, top in zip(sizes, tops, strict=True)]
    values, groups = np.concatenate(parts), np.array([(0, s, k, 0) for s, k in zip(sizes, lows, strict=True)])
    tokens, planes = np.empty(values.size, np.uint8), np.empty(8 * values.size, np.uint8)
    upper, counts = np.empty_like(values), np.empty(4, np.int64)
    split(values, groups, tokens, planes, upper, counts)
    some, plane, high = [], 0, 0
    for part, low, count in zip(parts, lows, counts.tolist(), strict=True):
        alone = np.empty(part.size, np.uint8)
        assert to_tokens(part, word(low), alone) == count
        some.append(alone)
        bits, rest = np.empty(low * -(-part.size // 8), np.uint8), np.empty(count, word)
        low_bits(part, low, bits)
        escapes(part, word(low), rest)
        assert np.array_equal(planes[plane : plane + bits.size], bits)
        assert np.array_equal(upper[high : high + count], rest)
        plane, high = plane + bits.size, high + count
    assert np.array_equal(tokens, np.concatenate(some))
    assert high > 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tokens_low_bits_and_escapes_make_up_the_value(data):
    word = data.draw(st.sampled_from(WORDS))
    width = np.dtype(word).itemsize * 8
    low = data.draw(st.integers(0, width - 8))
    small = st.integers(0, min(2**width - 1, 2 ** (low + 9)))
    values = data.draw(
        hnp.arrays(word, st.integers(0, 40), elements=st.one_of(small, st.integers(0, 2**width - 1)))
    )
    tokens = np.empty(values.size, np.uint8)
    count = to_tokens(values, word(low), tokens)
    upper = values.astype(object) // 2**low
    assert tokens.tolist() == [min(u, 255) for u in upper]
    high = np.empty(count, word)
    escapes(values, word(low), high)
    assert high.tolist() == [u for u in upper if u >= 255]
    m = -(-values.size // 8)
    planes = np.empty(low * m, np.uint8)
    low_bits(values, low, planes)
    for i, value in enumerate(values.tolist()):
        t, place = divmod(i, m)
        assert [(int(planes[j * m + place]) >> t) & 1 for j in range(low)] == [
            (value >> j) & 1 for j in range(low)
        ]
    out = np.empty_like(values)
    assert raise_low(tokens, planes, low, high, out)
    assert np.array_equal(out, values)


def test_escapes_of_every_strip_are_found():
    values = np.zeros(1000, np.uint16)
    values[[0, 255, 256, 999]] = 255, 256, 65535, 300
    out = np.empty(4, np.uint16)
    escapes(values, np.uint16(0), out)
    assert out.tolist() == [255, 256, 65535, 300]


def test_too_many_or_too_few_escapes_are_noticed():
    tokens, nothing = np.array([255, 3, 255], np.uint8), np.empty(0, np.uint8)
    out = np.empty(3, np.uint16)
    for count in (0, 1, 3):
        assert not raise_low(tokens, nothing, 0, np.full(count, 300, np.uint16), out)
    assert raise_low(tokens, nothing, 0, np.array([300, 301], np.uint16), out)
    assert out.tolist() == [300, 3, 301]
