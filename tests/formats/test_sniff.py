import errno
from pathlib import Path

import pytest

from deltasmith.errors import DamagedInputError, ResourceError
from deltasmith.formats import sniff
from deltasmith.formats.safetensors_reader import SafetensorsFile
from deltasmith.formats.sniff import open_regular, read_head, what_it_is
from formats import attacks


def assert_refused(act, path):
    with pytest.raises(DamagedInputError) as caught:
        act(path)
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize("what", attacks.LOOKALIKES)
def test_fault_29_says_what_the_file_is(tmp_path, what):
    content, remedy = attacks.LOOKALIKES[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    message = assert_refused(SafetensorsFile, path)
    assert what in message
    assert remedy in message
    assert "not a safetensors file" in message
    assert "model.safetensors" in message


def test_an_unknown_head_is_not_guessed_at():
    assert what_it_is(b'\x10\0\0\0\0\0\0\0{"a"') is None


def test_fault_37_only_regular_files_are_opened(tmp_path):
    for what, path in attacks.special_files(tmp_path).items():
        message = assert_refused(open_regular, path)
        assert f"found a {what} where a file was expected" in message
        assert str(path) in message


def test_fault_37_a_file_swapped_for_a_pipe_between_stat_and_open(tmp_path, monkeypatch):
    pipe = attacks.special_files(tmp_path)["named pipe"]
    honest = attacks.small_file(tmp_path / "a.safetensors")
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    status = honest.stat()
    monkeypatch.setattr(Path, "stat", lambda path: status)
    assert "named pipe" in assert_refused(open_regular, pipe)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_fault_17_missing(tmp_path):
    message = assert_refused(open_regular, tmp_path / "none.safetensors")
    assert message == f"there is no such file in {tmp_path / 'none.safetensors'}; check the path"


def test_fault_17_unreadable(tmp_path, monkeypatch):
    path = attacks.small_file(tmp_path / "a.safetensors")

    def deny(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sniff.os, "open", deny)
    assert "permission denied" in assert_refused(open_regular, path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_fault_54_too_many_open_files_is_a_matter_of_resources(tmp_path, monkeypatch, number):
    path = attacks.small_file(tmp_path / "a.safetensors")

    def fail(*args, **kwargs):
        raise OSError(number, "Too many open files")

    monkeypatch.setattr(sniff.os, "open", fail)
    with pytest.raises(ResourceError, match="too many files are open") as caught:
        open_regular(path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "nul\0byte"])
def test_fault_38_impossible_paths(tmp_path, name):
    assert_refused(open_regular, f"{tmp_path}/{name}")


def test_read_head(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"abcdef")
    assert read_head(path, 4) == b"abcd"
    assert read_head(path) == b"abcdef"


def test_read_head_reports_a_read_error(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"abcdef")

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sniff.os, "pread", fail)
    assert "Input/output error" in assert_refused(read_head, path)
