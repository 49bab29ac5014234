"""The tensor hash: a fixed definition, whatever the order, the cuts and the threads."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import DamagedInputError
from deltasmith.formats import hashing
from deltasmith.formats.hashing import CHUNK, ChunkHasher, hash_bytes, hash_file_range


def definition(data: bytes, chunk: int = CHUNK) -> str:
    digests = [xxhash.xxh3_128_digest(data[i : i + chunk]) for i in range(0, len(data), chunk)]
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def test_golden_values():
    """These are in manifests that people keep: they may never change."""
    assert hash_bytes(b"") == ChunkHasher(0).digest() == "99aa06d3014798d86001c324468d497f"
    assert hash_bytes(b"abc") == "f758394eebabb2bb51ee911f78f31836"
    assert hash_bytes(pattern(CHUNK + 1)) == "4ec6108b776edaa23bdf780cf922bc1b"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_memory_file_and_pieces_agree_with_the_definition(size, tmp_path):
    data = pattern(size)
    path = tmp_path / "file"
    path.write_bytes(b"head" + data + b"tail")
    fd = os.open(path, os.O_RDONLY)
    assert hash_file_range(fd, 4, size) == hash_bytes(data) == definition(data)
    os.close(fd)
    hasher = ChunkHasher(size)
    for start in reversed(range(0, size, 300_001)):
        assert not hasher.complete
        hasher.add(start, data[start : start + 300_001])
    assert hasher.complete
    assert hasher.digest() == definition(data)


@given(
    data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60)), order=st.randoms(use_true_random=False)
)
def test_any_cuts_in_any_order(data, cuts, order):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "CHUNK", 8)
        edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
        pieces = [(a, data[a:b]) for a, b in pairwise(edges)]
        order.shuffle(pieces)
        hasher = ChunkHasher(len(data))
        for i, (start, piece) in enumerate(pieces):
            if sum(len(p) for _, p in pieces[:i]) < len(data):
                with pytest.raises(ValueError, match="not complete"):
                    hasher.digest()
            hasher.add(start, memoryview(piece))
            hasher.add(start, b"")
        assert hasher.digest() == definition(data, 8)


def test_threads_may_add_at_once():
    size, step = 5 * CHUNK + 12345, 70_001
    data = pattern(size)
    for _ in range(5):
        hasher = ChunkHasher(size)
        with ThreadPoolExecutor(8) as pool:
            starts = sorted(range(0, size, step), key=lambda s: s % 7)
            list(pool.map(lambda s, h=hasher: h.add(s, data[s : s + step]), starts))
        assert hasher.digest() == definition(data)


def test_memory_stays_bounded_when_pieces_come_in_order():
    data = pattern(3 * CHUNK)
    hasher = ChunkHasher(len(data))
    for start in range(0, len(data), 70_001):
        hasher.add(start, data[start : start + 70_001])
        assert len(hasher._open) <= 1
        assert all(not chunk.ahead for chunk in hasher._open.values())
    assert hasher._open == {}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, 8), (0, 8)),
        ((0, 3), (2, 3)),
        ((0, 3), (0, 8)),
        ((4, 2), (5, 2)),
        ((4, 2), (3, 2)),
        ((0, 8), (0, 2)),
    ],
)
def test_bytes_given_twice_are_an_error(first, second, monkeypatch):
    monkeypatch.setattr(hashing, "CHUNK", 8)
    hasher = ChunkHasher(12)
    hasher.add(first[0], b"x" * first[1])
    with pytest.raises(ValueError, match="hashed before"):
        hasher.add(second[0], b"x" * second[1])


@pytest.mark.parametrize("offset", [-1, 3])
def test_bytes_outside_the_tensor_are_an_error(offset):
    with pytest.raises(ValueError, match="outside a tensor of 4 bytes"):
        ChunkHasher(4).add(offset, b"xx")


def test_a_file_that_ends_early_is_named_as_such(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(DamagedInputError, match="the file ends at byte 10, 2 bytes too early"):
        hash_file_range(fd, 4, 8)
    os.close(fd)
