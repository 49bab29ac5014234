"""A safetensors file that grows from front to back, read back by the safetensors package."""

from __future__ import annotations

import errno
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from deltasmith.errors import RefusedError, ResourceError
from deltasmith.formats import array_file
from deltasmith.formats.array_file import ArrayFile, Entry, room_for
from deltasmith.formats.hashing import hash_bytes
from deltasmith.formats.safetensors_reader import SafetensorsFile

BF16 = np.dtype(ml_dtypes.bfloat16)


def bytes_of(array):
    return np.ascontiguousarray(array).tobytes()


def test_streams_and_arrays_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    random = np.random.default_rng(0)
    first = random.integers(0, 256, 1001).astype(np.uint8)
    second = random.standard_normal((7, 3)).astype(np.float32)
    third = random.standard_normal((5,)).astype(BF16)
    file = ArrayFile(path, room_for(["first", "second", "third", "scalar", "empty"]))
    file.begin([("second", "float32", (7, 3)), ("first", "uint8", None)])
    flat = bytes_of(second)
    for at in range(0, 1001, 100):  # the two grow at once, in pieces that agree in nothing
        file.append("first", first[at : at + 100])
        file.append("second", flat[at // 13 * 2 : (at + 100) // 13 * 2])
    file.append("second", flat[(1100 // 13) * 2 :])
    file.end({"third": third, "scalar": np.array(2.5, np.float64), "empty": np.empty((0, 4), np.int8)})
    size = file.seal({"format": "test", "é": "ü"})
    assert size == path.stat().st_size
    found = load_file(path)
    assert np.array_equal(found["first"], first)
    assert np.array_equal(found["second"], second)
    assert found["third"].tobytes() == third.tobytes()
    assert found["scalar"].shape == ()
    assert found["scalar"] == 2.5
    assert found["empty"].shape == (0, 4)
    assert SafetensorsFile(path).metadata == {"format": "test", "é": "ü"}
    assert {e.name: e.xxh3_128 for e in file.entries} == {
        n: hash_bytes(bytes_of(a)) for n, a in found.items()
    }


@pytest.mark.parametrize("room", [0, 64, 300, 4096])
def test_the_header_finds_room_whatever_was_left(tmp_path, monkeypatch, room):
    """Too little room moves the arrays; too much becomes white space. Either way the arrays are the same."""
    monkeypatch.setattr(array_file, "_MOVE", 100)  # more pieces than one, and none that fits
    path = tmp_path / "a.safetensors"
    random = np.random.default_rng(1)
    arrays = {f"array {i}": random.integers(0, 256, 331 * i).astype(np.uint8) for i in range(8)}
    file = ArrayFile(path, room)
    for name, array in arrays.items():
        file.begin([(name, "uint8", array.shape)])
        file.append(name, array)
        file.end({})
    assert file.seal({}) == path.stat().st_size
    found = load_file(path)
    assert {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    if room < 300:  # moved
        assert SafetensorsFile(path).header.data_start % 64 == 0


def test_enough_room_is_left_for_headers_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(ArrayFile, "_move", None)
    names = [f"model.layers.{i}.self_attn.q_proj.weight::scale" for i in range(200)]
    file = ArrayFile(tmp_path / "a.safetensors", room_for(names))
    file.end({name: np.zeros((100, 10), np.float32) for name in names})
    file.seal({"format": "deltasmith-packed", "version": "1", "base": "0" * 32})


def test_a_stream_must_be_what_was_announced(tmp_path):
    file = ArrayFile(tmp_path / "a.safetensors", 64)
    file.begin([("a", "float32", (4,))])
    file.append("a", b"\0" * 12)
    with pytest.raises(ValueError, match="12 bytes were written"):
        file.end({})
    file.close()


def test_going_on_behind_what_is_there(tmp_path):
    """A second writer, given the entries of the first, continues the file, over whatever lies behind them."""
    one, two = np.arange(10, dtype=np.int32), np.arange(7, dtype=np.int16)
    whole = ArrayFile(tmp_path / "whole", 256)
    whole.end({"one": one})
    whole.end({"two": two})
    whole.seal({"k": "v"})
    first = ArrayFile(tmp_path / "cut", 256)
    first.end({"one": one})
    kept = list(first.entries)
    first.end({"half": np.ones(5000, np.uint8)})
    first.close()
    second = ArrayFile(tmp_path / "cut", 256, kept)
    second.end({"two": two})
    second.seal({"k": "v"})
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_full_disk_is_a_resource_error(tmp_path, monkeypatch):
    file = ArrayFile(tmp_path / "a.safetensors", 64)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array_file, "write_all", full)
    with pytest.raises(ResourceError, match=r"the disk is full in .*a\.safetensors"):
        file.end({"a": np.zeros(3, np.uint8)})
    with pytest.raises(ResourceError, match="the disk is full"):
        file.seal({})
    file.close()
    file.close()  # twice does nothing


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(ResourceError):
        ArrayFile(tmp_path / "nowhere" / "a.safetensors", 64)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError):
        ArrayFile(tmp_path / "link", 64)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_cut_off_while_its_arrays_move(tmp_path):
    file = ArrayFile(tmp_path / "a.safetensors", 0)
    file.end({"a": np.zeros(1000, np.uint8)})
    os.truncate(tmp_path / "a.safetensors", 500)
    with pytest.raises(ResourceError):
        file.seal({})
    file.close()


def test_a_header_that_no_reader_accepts(tmp_path, monkeypatch):
    monkeypatch.setattr(array_file, "MAX_HEADER", 100)
    file = ArrayFile(tmp_path / "a.safetensors", 64)
    file.end({"a" * 200: np.zeros(1, np.uint8)})
    with pytest.raises(RefusedError, match="and readers accept 100"):
        file.seal({})
    file.close()


def test_an_entry_as_plain_data():
    entry = Entry("a", "F32", (2, 3), 0, 24, "00")
    assert Entry(**{**ArrayFile.as_json(entry), "shape": (2, 3)}) == entry
