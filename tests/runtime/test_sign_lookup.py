"""Products straight from bits: every way to compute them equals the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from deltasmith.runtime.lookup import add_products, clear, defined_products, expand, words_of

SHAPES = [(1, 1), (3, 5), (7, 33), (16, 32), (65, 64), (5, 100)]


def drawn(rows: int, columns: int, passes: int = 1, vectors: int = 2, seed: int = 0):
    random = np.random.default_rng(seed)
    bits = random.random((passes, rows, columns)) < 0.5
    words = np.stack([words_of(np.packbits(b.reshape(-1), bitorder="little"), rows, columns) for b in bits])
    scales = random.random((passes, rows)).astype(np.float32)
    x = np.zeros((vectors, words.shape[1] * 32), np.float32)
    x[:, :columns] = random.standard_normal((vectors, columns))
    return bits, words, scales, x


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 70), seed=st.integers(0, 1 << 30))
def test_words_hold_the_bits_of_every_row(rows: int, columns: int, seed: int) -> None:
    bits, words, _, _ = drawn(rows, columns, seed=seed)
    for n in range(rows):
        for k in range(columns):
            assert words[0, k // 32, n] >> np.uint32(k % 32) & 1 == bits[0, n, k]


def test_many_rows_are_rearranged_in_pieces() -> None:
    random = np.random.default_rng(1)
    for columns in (3, 8):  # more rows than one piece has
        bits = random.random((200_000, columns)) < 0.5
        words = words_of(np.packbits(bits.reshape(-1), bitorder="little"), 200_000, columns)
        packed = np.packbits(bits, axis=1, bitorder="little")[:, 0]
        assert np.array_equal(words[0], packed.astype(np.uint32))


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 bytes of bits for 9 elements"):
        words_of(np.zeros(1, np.uint8), 3, 3)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_looked_up_products_equal_the_definition(shape: tuple[int, int], passes: int) -> None:
    bits, words, scales, x = drawn(*shape, passes=passes)
    out = np.ones((2, shape[0]), np.float32)
    add_products(words, scales, x, out, 0, shape[0])
    plain = sum(
        x[:, : shape[1]].astype(np.float64) @ (np.where(b, 1.0, -1.0) * s[:, None]).T
        for b, s in zip(bits, scales, strict=True)
    )
    np.testing.assert_allclose(defined_products(words, scales, x), plain, atol=1e-9)
    np.testing.assert_allclose(out - 1, plain, atol=2e-5)


def test_a_part_of_the_rows_leaves_the_others() -> None:
    _, words, scales, x = drawn(20, 40)
    out = np.zeros((2, 20), np.float32)
    add_products(words, scales, x, out, 5, 9)
    assert not out[:, :5].any()
    assert not out[:, 9:].any()
    np.testing.assert_allclose(out[:, 5:9], defined_products(words, scales, x)[:, 5:9], atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expanding_gives_the_signs(shape: tuple[int, int]) -> None:
    bits, words, _, _ = drawn(*shape)
    out = np.empty((shape[1], shape[0]), np.float32)
    expand(words[0], 0, shape[0], out)
    assert np.array_equal(out, np.where(bits[0].T, 1, -1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clearing_keeps_what_has_a_bit(shape: tuple[int, int]) -> None:
    bits, words, _, _ = drawn(*shape)
    values = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    for start in {0, shape[0] // 2}:
        part = values[start:].copy()
        clear(words[0], start, part)
        assert np.array_equal(part, np.where(bits[0], values, 0)[start:])
