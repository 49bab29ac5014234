"""Stored bytes written where they are wanted, and the buffers they are written to."""

from __future__ import annotations

import doctest
import threading

import ml_dtypes
import numpy as np
import pytest

from containers import packed
from deltasmith.formats import rooms as rooms_module
from deltasmith.formats.opening import open_model
from deltasmith.formats.rooms import Rooms
from deltasmith.table import checkpoint as checkpoint_module
from deltasmith.table.checkpoint import DictCheckpoint, raw_into
from models import family


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("raw") / "models", experts=1, shards=2)
    packed(made.root, "m0", "bits")
    packed(made.root, "m0", "exact", codec="lossless", where="*")
    return made.root


def test_examples():
    for module in (rooms_module, checkpoint_module):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed


@pytest.mark.parametrize("model", ["base", "bits", "exact"])
def test_it_is_what_raw_returns(root, model):
    checkpoint = open_model(str(root / model)).checkpoint
    assert hasattr(checkpoint, "raw_into")
    for name, spec in checkpoint.specs.items():
        width = spec.dtype.itemsize
        for start, stop in ((0, spec.size), (spec.size // 3, spec.size // 2), (spec.size, spec.size)):
            out = np.full((stop - start) * width + 2, 7, np.uint8)
            raw_into(checkpoint, name, start, out[:-2])
            assert out[:-2].tobytes() == bytes(checkpoint.raw(name, start, stop))
            assert out[-2:].tolist() == [7, 7]


def test_ranges_outside_the_tensor_are_refused(root):
    checkpoint = open_model(str(root / "base")).checkpoint
    name, spec = next(iter(checkpoint.specs.items()))
    for start, elements in ((spec.size, 1), (0, spec.size + 1), (-1, 1)):
        with pytest.raises(ValueError, match="outside tensor"):
            raw_into(checkpoint, name, start, np.empty(elements * spec.dtype.itemsize, np.uint8))


def test_checkpoints_without_it_are_read_as_ever():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    out = np.empty(4, np.uint8)
    raw_into(DictCheckpoint({"x": array}), "x", 2, out)
    assert out.view(np.int16).tolist() == [2, 3]


def test_a_buffer_is_used_again_by_its_own_thread_alone():
    rooms = Rooms()
    first = rooms.take("a", 100)
    assert first.dtype == np.float32
    assert np.shares_memory(first, rooms.take("a", 40, "u2"))
    assert not np.shares_memory(first, rooms.take("b", 100))
    longer = rooms.take("a", 101)
    assert not np.shares_memory(first, longer)
    assert np.shares_memory(longer, rooms.take("a", 1, ml_dtypes.bfloat16))
    other = []
    thread = threading.Thread(target=lambda: other.append(rooms.take("a", 100)))
    thread.start()
    thread.join()
    assert not np.shares_memory(longer, other[0])


def test_long_buffers_are_not_kept():
    rooms = Rooms()
    rooms.take("a", 10)
    long = rooms.take("a", (16 << 20) + 1, np.uint8)
    assert long.size == (16 << 20) + 1
    assert not np.shares_memory(long, rooms.take("a", 5))
