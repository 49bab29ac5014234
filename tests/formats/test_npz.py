import os
import struct
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.errors import DamagedInputError
from deltasmith.formats import npz
from deltasmith.formats.npz import NpzFile
from formats import attacks
from formats.attacks import npy_bytes, write_zip


def read(checkpoint, name, start=0, stop=None):
    stop = checkpoint.specs[name].size if stop is None else stop
    out = np.full(stop - start, 99, np.float32)
    checkpoint.read(name, start, out)
    return out


def assert_refused(path, act=NpzFile):
    with pytest.raises(DamagedInputError) as caught:
        act(path)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert ".npz" in message
    assert message.isprintable()
    return message


ARRAYS = {
    "conv1/W": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv1/b": np.array([1, -2], np.float16),
    "double": np.array([[0.1, 0.2]]),
    "scalar": np.array(3.5, np.float32),
    "none": np.zeros((0, 3), np.float32),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "int": np.arange(4),
    "flags": np.array([True, False]),
    "wave": np.array([1 + 2j], np.complex64),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    file = NpzFile(tmp_path / "x.npz")
    assert {n: (s.shape, s.dtype.name) for n, s in file.specs.items()} == {
        n: (a.shape, a.dtype.name) for n, a in ARRAYS.items()
    }
    for name, array in ARRAYS.items():
        assert file.raw(name, 0, array.size) == np.ascontiguousarray(array).tobytes()
        if file.specs[name].dtype.floating:
            flat = array.reshape(-1).astype(np.float32)
            for start in range(array.size + 1):
                assert np.array_equal(read(file, name, start), flat[start:])
    (source,) = file.sources
    assert (source.name, source.nbytes) == ("x.npz", (tmp_path / "x.npz").stat().st_size)


def test_integers_are_not_floats_and_ranges_are_checked(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    file = NpzFile(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="int is int64 and is never turned"):
        file.read("int", 0, np.empty(4, np.float32))
    with pytest.raises(ValueError, match="outside tensor double of 2 elements"):
        file.raw("double", 1, 3)


BAD = {
    "objects": (npy_bytes("'|O'", "(1,)"), "Python objects (a pickle), which are never read"),
    "record": (npy_bytes("[('a', '|O')]", "(1,)"), "not supported"),
    "big-endian": (npy_bytes("'>f4'"), "'>f4'"),
    "bfloat16 as void": (npy_bytes("'|V2'", "(4,)"), "'|V2'"),
    "text": (npy_bytes("'<U1'"), "'<U1'"),
    "too short": (npy_bytes(payload=b"\0" * 7), "needs"),
    "too long": (npy_bytes(payload=b"\0" * 9), "needs"),
    "negative": (npy_bytes(shape="(-2,)"), "impossible shape"),
    "bool dimension": (npy_bytes(shape="(True,)"), "impossible shape"),
    "list shape": (npy_bytes(shape="[2]"), "impossible shape"),
    "overflow": (npy_bytes(shape="(2**62, 4)"), "damaged"),
    "large": (npy_bytes(shape="(4294967296, 4294967296)"), "needs"),
    "call": (npy_bytes(shape="__import__('os').system('true')"), "damaged"),
    "deep": (npy_bytes(shape="(" * 3000 + ")" * 3000), "damaged"),
    "long header": (npy_bytes(shape="(2," + " " * 9000 + ")"), "too long"),
    "no keys": (b"\x93NUMPY\x01\0\x02\0{}", "damaged"),
    "not a dict": (b"\x93NUMPY\x01\0\x02\0[]", "damaged"),
    "version": (npy_bytes(version=b"\x09\0"), "unknown version"),
    "not npy": (b"hello", "no .npy array"),
    "empty": (b"", "no .npy array"),
}


@pytest.mark.parametrize("what", BAD)
def test_members_that_lie(tmp_path, what):
    content, word = BAD[what]
    message = assert_refused(write_zip(tmp_path / "x.npz", {"a/b.npy": content}))
    assert word in message
    assert "a/b" in message


@pytest.mark.parametrize("what", attacks.LOOKALIKES)
def test_fault_29_other_files_named_npz(tmp_path, what):
    if what == "zip archive":
        pytest.skip("an .npz file is one")
    (tmp_path / "x.npz").write_bytes(attacks.LOOKALIKES[what][0])
    assert what in assert_refused(tmp_path / "x.npz")


def test_fault_29_a_torch_checkpoint_named_npz(tmp_path):
    write_zip(tmp_path / "x.npz", {"archive/data.pkl": b"\x80\x02.", "archive/data/0": b"\0"})
    assert '"archive/data.pkl" is no .npy array' in assert_refused(tmp_path / "x.npz")


@pytest.mark.parametrize("what", [n for n in attacks.BAD_NAMES if n not in ("surrogate", "NUL")])
def test_fault_31_member_names(tmp_path, what):
    assert_refused(write_zip(tmp_path / "x.npz", {attacks.BAD_NAMES[what] + ".npy": npy_bytes()}))


def test_fault_23_a_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy_bytes())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", npy_bytes())
    assert '"a.npy" appears twice' in assert_refused(tmp_path / "x.npz")


def test_fault_20_truncated_anywhere(tmp_path):
    np.savez(tmp_path / "whole.npz", **ARRAYS)
    whole = (tmp_path / "whole.npz").read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / "x.npz").write_bytes(whole[:size])
        assert_refused(tmp_path / "x.npz")


@settings(deadline=None, max_examples=200)
@given(st.data(), st.booleans())
def test_a_flipped_byte_is_survived(tmp_path_factory, data, compressed):
    folder = tmp_path_factory.mktemp("npz")
    (np.savez_compressed if compressed else np.savez)(
        folder / "x.npz", a=np.arange(9, dtype=np.float32), b=np.ones(2)
    )
    content = bytearray((folder / "x.npz").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.npz").write_bytes(content)
    try:
        file = NpzFile(folder / "x.npz")
        for name, spec in file.specs.items():
            file.raw(name, 0, spec.size)
    except DamagedInputError as error:
        message = str(error)
    else:
        return
    assert "x.npz" in message


def test_fault_32_a_flipped_bit_in_a_deflated_array_is_found(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.random.default_rng(0).normal(size=5000))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    file = NpzFile(tmp_path / "x.npz")
    assert "does not unpack" in assert_refused(tmp_path / "x.npz", lambda _: file.raw("a", 0, 1))


def test_a_zip_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_MAX_UNPACKED", 1000)
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(251, np.float32))
    assert "too many to unpack at once" in assert_refused(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", a=np.zeros(251, np.float32))
    assert read(NpzFile(tmp_path / "y.npz"), "a").size == 251


def test_a_deflated_member_that_is_longer_than_it_says(tmp_path):
    path = write_zip(
        tmp_path / "x.npz", {"a.npy": npy_bytes(payload=b"\0" * 5000, shape="(2,)")}, zipfile.ZIP_DEFLATED
    )
    content = path.read_bytes()
    true, told = struct.pack("<I", len(npy_bytes(payload=b"\0" * 5000))), struct.pack("<I", len(npy_bytes()))
    assert content.count(true) == 2
    path.write_bytes(content.replace(true, told))
    assert_refused(path, lambda p: NpzFile(p).raw("a", 0, 2))


def test_encrypted_and_oddly_compressed(tmp_path):
    path = write_zip(tmp_path / "x.npz", {"a.npy": npy_bytes()}, zipfile.ZIP_BZIP2)
    assert "compressed in an unknown way" in assert_refused(path)


def test_unpacked_members_are_kept_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_KEPT_BYTES", 900)
    arrays = {f"a{i}": np.full(100, i, np.float32) for i in range(6)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    file = NpzFile(tmp_path / "x.npz")
    for name in (*arrays, *arrays):
        assert np.array_equal(read(file, name), arrays[name])
        assert len(file._kept) <= 2


def test_threads(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **{f"a{i}": np.full(5000, i, np.float32) for i in range(8)})
    file = NpzFile(tmp_path / "x.npz")
    wrong = []

    def work(seed):
        for turn in range(40):
            i = (seed * 3 + turn) % 8
            if not (read(file, f"a{i}") == i).all():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_fault_33_truncated_while_open(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(5000, np.float32))
    file = NpzFile(tmp_path / "x.npz")
    file.check_unchanged()
    os.truncate(tmp_path / "x.npz", 1000)
    assert 'ended while array "a" was read' in assert_refused(
        tmp_path / "x.npz", lambda _: file.raw("a", 0, 5000)
    )
    assert "its size went from" in assert_refused(tmp_path / "x.npz", lambda _: file.check_unchanged())


def test_a_failing_disk(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", a=np.ones(5, np.float32))
    file = NpzFile(tmp_path / "x.npz")

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(npz.os, "preadv", fail)
    assert "Input/output error" in assert_refused(tmp_path / "x.npz", lambda _: read(file, "a"))
