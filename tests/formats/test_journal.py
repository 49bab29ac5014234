"""The journal: what is whole is believed, what is torn is dropped."""

import errno

import pytest

from deltasmith.errors import ResourceError
from deltasmith.formats import journal as module
from deltasmith.formats.journal import Journal, Replay, replay

NAMES = ["a", "weird \n\r\u2028 \x1b näme", "b.weight"]


def written(path):
    with Journal.begin(path, "plan", "layout", "boot", {}) as journal:
        for i, name in enumerate(NAMES):
            journal.append(name, f"{i:032x}")
    return path.read_bytes()


FINISHED = {name: f"{i:032x}" for i, name in enumerate(NAMES)}


def test_what_was_appended_is_replayed(tmp_path):
    path = tmp_path / "j"
    assert replay(path) is None
    written(path)
    assert replay(path) == Replay("plan", "layout", "boot", FINISHED)
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def test_beginning_anew_keeps_only_what_is_given(tmp_path):
    path = tmp_path / "j"
    written(path)
    with Journal.begin(path, "plan", "layout", "boot 2", {"a": "0" * 32}) as journal:
        journal.append("c", "1" * 32)
    assert replay(path) == Replay("plan", "layout", "boot 2", {"a": "0" * 32, "c": "1" * 32})


def test_fault_51_a_journal_torn_at_any_byte_gives_the_lines_before(tmp_path):
    path = tmp_path / "j"
    data = written(path)
    ends = [i + 1 for i, byte in enumerate(data) if byte == 0x0A]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        found = replay(path)
        if whole == 0:
            assert found is None
        else:
            assert found.finished == dict(list(FINISHED.items())[: whole - 1])


def test_a_flipped_bit_ends_the_replay_where_it_is(tmp_path):
    path = tmp_path / "j"
    data = written(path)
    ends = [i + 1 for i, byte in enumerate(data) if byte == 0x0A]
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x04]) + data[at + 1 :])
        whole = sum(end <= at for end in ends)
        found = replay(path)
        assert (
            (found is None) if whole == 0 else (found.finished == dict(list(FINISHED.items())[: whole - 1]))
        )


def test_foreign_files_are_no_journals(tmp_path):
    path = tmp_path / "j"
    for text in (
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"null\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"record":3}\n',
    ):
        path.write_bytes(text)
        assert replay(path) is None


def test_fault_53_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "j"
    journal = Journal.begin(path, "plan", "layout", "boot", {})
    monkeypatch.setattr(module, "write_all", full)
    with pytest.raises(ResourceError, match=r"the disk is full in .*j; free some space"):
        journal.append("a", "0" * 32)
    journal.close()
    journal.close()
    with pytest.raises(ResourceError):
        Journal.begin(tmp_path / "k", "plan", "layout", "boot", {})
    assert [p.name for p in tmp_path.iterdir()] == ["j"]
