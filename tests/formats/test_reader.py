import errno
import gc
import os
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.formats import safetensors_reader
from deltasmith.formats.safetensors_reader import CHUNK, Files, SafetensorsFile
from formats import attacks

KINDS = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def read(checkpoint, name, start=0, stop=None):
    stop = checkpoint.specs[name].size if stop is None else stop
    out = np.full(stop - start, 77, dtype=np.float32)
    checkpoint.read(name, start, out)
    return out


@pytest.fixture
def small(tmp_path):
    return SafetensorsFile(attacks.small_file(tmp_path / "model.safetensors"))


def open_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def assert_refused(act, *args):
    with pytest.raises(DamagedInputError) as caught:
        act(*args)
    assert caught.value.exit_code == 3
    assert "model.safetensors" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 2), (0, 4)])
def test_fault_49_every_type_and_shape(tmp_path, kind, shape):
    values = (np.arange(int(np.prod(shape))).reshape(shape) - 3).astype(KINDS[kind])
    arrays = {"pad": np.zeros(1, np.uint8), "x": values}  # x begins at an odd offset
    file = SafetensorsFile(attacks.write_safetensors(tmp_path / "m.safetensors", arrays))
    flat = values.reshape(-1).astype(np.float32)
    assert np.array_equal(read(file, "x"), flat)
    for start in range(flat.size + 1):
        assert np.array_equal(read(file, "x", start, flat.size), flat[start:])
    assert file.raw("x", 0, flat.size) == values.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_reads_longer_than_the_scratch_buffer(tmp_path, kind):
    size = 2 * CHUNK + 13
    values = np.random.default_rng(0).normal(size=size).astype(np.float32).astype(KINDS[kind])
    file = SafetensorsFile(attacks.write_safetensors(tmp_path / "m.safetensors", {"x": values}))
    assert np.array_equal(read(file, "x"), values.astype(np.float32))
    assert np.array_equal(read(file, "x", 11, size - 1), values.astype(np.float32)[11:-1])


def test_fault_45_special_values_survive_raw_and_read(tmp_path):
    bits = np.array([0x80000000, 1, 0x7F800001, 0xFF800000, 0x7FC00000], dtype=np.uint32)
    file = SafetensorsFile(
        attacks.write_safetensors(tmp_path / "m.safetensors", {"x": bits.view(np.float32)})
    )
    assert read(file, "x").view(np.uint32).tolist() == bits.tolist()
    assert file.raw("x", 1, 4) == bits[1:4].tobytes()


def test_raw_of_integers_and_read_of_integers(tmp_path):
    file = SafetensorsFile(attacks.write_safetensors(tmp_path / "m.safetensors", {"i": np.arange(5)}))
    assert np.frombuffer(file.raw("i", 2, 5), np.int64).tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="tensor i is int64 and is never turned into float32"):
        file.read("i", 0, np.empty(5, np.float32))


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, 3), (2, 1)])
def test_ranges_outside_the_tensor(small, start, size):
    with pytest.raises(ValueError, match="outside tensor a of 2 elements"):
        small.read("a", start, np.empty(size, np.float32))
    with pytest.raises(ValueError, match="outside tensor a of 2 elements"):
        small.raw("a", start, start + size)


def test_sources_name_the_file(small, tmp_path):
    (source,) = small.sources
    path = tmp_path / "model.safetensors"
    assert (source.name, source.path, source.nbytes) == ("model.safetensors", str(path), path.stat().st_size)


@pytest.mark.parametrize("name", ["with space.safetensors", "ünï—码.safetensors", "new\nline.safetensors"])
def test_fault_38_odd_but_possible_paths(tmp_path, name):
    assert read(SafetensorsFile(attacks.small_file(tmp_path / name)), "a").tolist() == [1, 2]


@pytest.mark.parametrize("tensor", ["a", "b"])
def test_fault_33_truncated_while_open(small, tmp_path, tensor):
    os.truncate(tmp_path / "model.safetensors", small.header.data_start + 4)
    message = assert_refused(small.read, tensor, 0, np.empty(small.specs[tensor].size, np.float32))
    assert f'while tensor "{tensor}" was read' in message
    assert f'"{tensor}"' in assert_refused(small.raw, tensor, 0, small.specs[tensor].size)
    assert "its size went from" in assert_refused(small.check_unchanged)


def test_fault_33_replaced_while_closed(small, tmp_path):
    small.check_unchanged()
    small.close()
    attacks.small_file(tmp_path / "other")
    (tmp_path / "other").replace(tmp_path / "model.safetensors")
    assert "another file has taken its place" in assert_refused(small.raw, "a", 0, 1)
    assert "another file has taken its place" in assert_refused(small.check_unchanged)


def test_fault_33_written_to(small, tmp_path):
    status = (tmp_path / "model.safetensors").stat()
    os.utime(tmp_path / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "it was written to" in assert_refused(small.check_unchanged)


def test_fault_33_removed(small, tmp_path):
    read(small, "a")
    (tmp_path / "model.safetensors").unlink()
    assert read(small, "a").tolist() == [1, 2]  # the open descriptor still reads it
    assert "vanished" in assert_refused(small.check_unchanged)


def test_a_failing_disk_is_reported(small, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(safetensors_reader.os, "preadv", fail)
    monkeypatch.setattr(safetensors_reader.os, "pread", fail)
    assert 'tensor "a" cannot be read (Input/output error)' in assert_refused(
        small.read, "a", 0, np.empty(2, np.float32)
    )
    assert 'tensor "b" cannot be read (Input/output error)' in assert_refused(small.raw, "b", 0, 2)


def test_fault_56_short_reads_are_looped(small, monkeypatch):
    whole, single = os.preadv, os.pread
    monkeypatch.setattr(safetensors_reader.os, "preadv", lambda fd, bufs, at: whole(fd, [bufs[0][:3]], at))
    monkeypatch.setattr(safetensors_reader.os, "pread", lambda fd, count, at: single(fd, min(count, 3), at))
    assert read(small, "a").tolist() == [1, 2]
    assert read(small, "b").tolist() == list(range(8))
    assert small.raw("b", 0, 8) == attacks.small_arrays()["b"].tobytes()


def test_fault_49_more_than_2_31_elements_in_a_sparse_file(tmp_path):
    count = (1 << 31) + 5
    path = tmp_path / "m.safetensors"
    path.write_bytes(attacks.assemble({"x": attacks.entry("BF16", [count], 0, 2 * count)}))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2 * count)
        file.seek(-2, os.SEEK_END)
        file.write(b"\x80\x3f")
    assert read(SafetensorsFile(path), "x", count - 3, count).tolist() == [0, 0, 1]


def test_descriptors_are_few_and_reopened(tmp_path):
    files = Files(limit=3)
    gc.collect()
    before = open_descriptors()
    shards = [
        SafetensorsFile(
            attacks.write_safetensors(tmp_path / f"{i}.st", {"x": np.full(2, i, np.float32)}), files=files
        )
        for i in range(10)
    ]
    for _ in range(2):
        for i, shard in enumerate(shards):
            assert read(shard, "x").tolist() == [i, i]
            assert files.open_count <= 3
            assert open_descriptors() - before <= 3
    with files.descriptor(str(tmp_path / "0.st")):
        assert files.open_count <= 3
    files.close()
    assert files.open_count == 0
    assert read(shards[4], "x").tolist() == [4, 4]
    del shards, shard, files
    assert open_descriptors() == before


def test_threads_share_a_file_and_few_descriptors(tmp_path):
    files = Files(limit=2)
    size = 3 * CHUNK // 2 + 7
    values = [np.arange(i, i + size).astype(np.float32).astype(ml_dtypes.bfloat16) for i in range(5)]
    shards = [
        SafetensorsFile(attacks.write_safetensors(tmp_path / f"{i}.st", {"x": v}), files=files)
        for i, v in enumerate(values)
    ]
    wrong = []

    def work(seed):
        for turn in range(20):
            i = (seed + turn) % 5
            start = (seed * 1000 + turn * 37) % 5000
            if not np.array_equal(read(shards[i], "x", start), values[i][start:].astype(np.float32)):
                wrong.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert files.open_count <= 2
