"""The journal of an evaluation: what is written is found again, what is torn is dropped, what is damaged is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltasmith.errors import DamagedInputError, RefusedError, ResourceError
from deltasmith.evaluate.journal import Journal, Key, default_journal
from deltasmith.evaluate.task import Outcome
from models import environment

KEY = Key("model", "numpy", "gsm8k", "d1")
FIRST = Outcome("a", 0.1 + 0.2, 3.0, {"text": "ß\n\ud800", "right": [True, None]})
SECOND = Outcome("b", 0.0)


def filled(path: Path) -> bytes:
    with Journal.open(path) as journal:
        journal.record(KEY, [FIRST, SECOND])
        journal.answers(KEY).put("how?", ["so", 1.5])
    return path.read_bytes()


def test_what_is_recorded_is_found_again_exactly(tmp_path):
    filled(tmp_path / "j")
    with Journal.open(tmp_path / "j") as journal:
        assert journal.outcomes(KEY) == {"a": FIRST, "b": SECOND}
        assert journal.answers(KEY).get("how?") == ["so", 1.5]
        assert journal.answers(KEY).get("why?") is None


@pytest.mark.parametrize(
    "other",
    [
        Key("another", "numpy", "gsm8k", "d1"),
        Key("model", "torch", "gsm8k", "d1"),
        Key("model", "numpy", "mbpp", "d1"),
        Key("model", "numpy", "gsm8k", "d2"),
        Key("model", "numpy", "gsm8k", "d1", "0.0.0"),
    ],
)
def test_another_key_finds_nothing(tmp_path, other):
    filled(tmp_path / "j")
    with Journal.open(tmp_path / "j") as journal:
        assert journal.outcomes(other) == {}
        assert journal.answers(other).get("how?") is None
        journal.record(other, [Outcome("a", 9.0)])
    with Journal.open(tmp_path / "j") as journal:
        assert journal.outcomes(KEY)["a"] == FIRST
        assert journal.outcomes(other)["a"].score == 9.0


def test_a_line_torn_anywhere_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "j"
    whole = filled(path)
    start = len(b"".join(whole.splitlines(keepends=True)[:1]))
    end = len(b"".join(whole.splitlines(keepends=True)[:2]))
    for size in [*range(start, end - 1, 9), end - 2, end - 1]:
        path.write_bytes(whole[:size])
        with Journal.open(path) as journal:
            assert set(journal.outcomes(KEY)) == {"a"}, size
            journal.record(KEY, [SECOND])
        with Journal.open(path) as journal:
            assert journal.outcomes(KEY) == {"a": FIRST, "b": SECOND}


@pytest.mark.parametrize("line", [0, 1, 2])
def test_one_changed_byte_in_a_whole_line_is_an_error_that_names_the_line(tmp_path, line):
    path = tmp_path / "j"
    lines = filled(path).splitlines(keepends=True)
    for at in range(0, len(lines[line]) - 1, 7):
        changed = bytearray(lines[line])
        changed[at] ^= 1
        if changed[at] == ord("\n"):
            continue
        damaged = b"".join([*lines[:line], bytes(changed), *lines[line + 1 :]])
        path.write_bytes(damaged)
        with pytest.raises(DamagedInputError) as found:
            Journal.open(path)
        assert found.value.where == f"{path}:{line + 1}"
        assert path.read_bytes() == damaged
    path.write_bytes(b"".join(lines))
    Journal.open(path).close()  # and nothing is locked any more


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"a": 1}\n', b"\x00\x01", b"\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match="no entry of a journal"):
        Journal.open(path)
    assert path.read_bytes() == content


def test_two_processes_cannot_have_it_open(tmp_path):
    path = tmp_path / "j"
    code = (
        "import sys; from pathlib import Path; from deltasmith.evaluate.journal import Journal;"
        " Journal.open(Path(sys.argv[1]))"
    )
    with Journal.open(path):
        other = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, env=environment()
        )
    assert "RefusedError" in other.stderr
    with Journal.open(path), pytest.raises(RefusedError, match="another process"):
        Journal.open(path)


def test_an_unused_journal_leaves_nothing_behind(tmp_path):
    Journal.open(tmp_path / "new" / "j").close()
    assert list((tmp_path / "new").iterdir()) == []
    filled(tmp_path / "j")
    Journal.open(tmp_path / "j").discard([KEY])
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_lack_of_resources(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError):
        Journal.open(tmp_path / "j")
    tmp_path.chmod(0o700)


def test_answers_are_heard_when_they_are_added(tmp_path):
    heard: list[int] = []
    with Journal.open(tmp_path / "j") as journal:
        answers = journal.answers(KEY, heard.append)
        answers.put("one", 1)
        assert (answers.get("one"), len(answers), heard) == (1, 1, [1])


def test_the_default_place_depends_on_what_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_journal(tmp_path / "r.json", [KEY]) == tmp_path / "r.json.journal"
    here = default_journal(None, [KEY])
    assert here.parent == tmp_path / "deltasmith" / "evaluations"
    assert default_journal(None, [KEY]) == here
    assert default_journal(None, [Key("model", "numpy", "gsm8k", "d2")]) != here


def test_what_is_saved_is_discarded_and_the_rest_stays(tmp_path):
    path, other = tmp_path / "j", Key("another", "numpy", "gsm8k", "d1")
    filled(path)
    with Journal.open(path) as journal:
        journal.record(other, [FIRST])
        journal.answers(other).put("how?", "well")
        journal.record(KEY, [SECOND])
        journal.discard([KEY])
    assert [p.name for p in tmp_path.iterdir()] == ["j"]
    with Journal.open(path) as journal:
        assert journal.outcomes(KEY) == {}
        assert journal.answers(KEY).get("how?") is None
        assert journal.outcomes(other) == {"a": FIRST}
        assert journal.answers(other).get("how?") == "well"
        journal.discard([other])
    assert list(tmp_path.iterdir()) == []
