"""Texts from disk: what is a document, what is passed over, what is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.features.documents import read_texts


def _texts(found: object) -> list[str]:
    return [document.text for document in found.documents]  # type: ignore[attr-defined]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in {
        "b.py": b"two",
        "a/z.py": "drei ✓".encode(),
        "a.txt": b"\xef\xbb\xbfone",
        ".hidden": b"secret",
        ".git/config": b"secret",
        "a/data.bin": b"x\0y",
        "a/latin.txt": b"caf\xe9",
        "blank.txt": b" \n",
    }.items():
        (tmp_path / "text" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / name).write_bytes(data)
    (tmp_path / "outside.txt").write_text("outside")
    (tmp_path / "text" / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "text" / "around").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "text" / "pipe")
    return tmp_path / "text"


def test_a_folder_is_its_text_files_in_order(folder: Path) -> None:
    found = read_texts("code", folder)
    assert _texts(found) == ["one", "two", "drei ✓"]
    assert [document.where for document in found.documents] == ["a.txt", "b.py", "a/z.py"]
    assert found.source == "text"
    (note,) = found.notes
    assert note == "code: passed over 1 binary, 1 blank, 1 hidden, 1 links, 1 no UTF-8, 1 not regular"


def test_its_hash_is_that_of_what_is_read(folder: Path) -> None:
    before = read_texts("code", folder).sha256
    (folder / "a" / "data.bin").write_bytes(b"\0")
    assert read_texts("code", folder).sha256 == before
    (folder / "b.py").rename(folder / "c.py")
    renamed = read_texts("code", folder).sha256
    (folder / "c.py").write_text("three")
    assert len({before, renamed, read_texts("code", folder).sha256}) == 3


def test_a_pattern_reads_what_matches(folder: Path) -> None:
    found = read_texts("code", folder / "**" / "*.py")
    assert _texts(found) == ["drei ✓", "two"]
    assert not found.notes


def test_objects_and_plain_files(tmp_path: Path) -> None:
    lines = b'{"text": "one\\ntwo", "more": 1}\n\n{"text": " "}\n{"text": "three"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.json").write_bytes(b'[{"text": "four"}]')
    (tmp_path / "plain").write_bytes(b'{"text": "five"}\nsix')
    found = read_texts("x", tmp_path / "a.jsonl")
    assert _texts(found) == ["one\ntwo", "three"]
    assert found.sha256 == hashlib.sha256(lines).hexdigest()
    assert (found.source, found.documents[1].where) == ("a.jsonl", f"{tmp_path}/a.jsonl:4")
    assert _texts(read_texts("x", tmp_path / "a.json")) == ["four"]
    assert _texts(read_texts("x", tmp_path / "plain")) == ['{"text": "five"}\nsix']


@pytest.mark.parametrize("pattern", [".", "**/*.json*"])
def test_objects_within_a_folder(tmp_path: Path, pattern: str) -> None:
    for name, data in {
        "a.jsonl": '{"text": "one"}\n{"text": " "}\n{"prompt": "two", "answer": "!"}\n',
        "b.json": '[{"text": "three"}]',
        "config.json": '{"vocab_size": 3}',
        "list.json": "[1]",
        "none.json": "[]",
        "odd.json": "{",
        "empty.jsonl": "\n",
        "hollow.jsonl": '{"text": ""}\n',
    }.items():
        (tmp_path / name).write_text(data)
    found = read_texts("x", tmp_path / pattern)
    assert _texts(found) == ["one", "two!", "three"]
    assert [document.where for document in found.documents] == ["a.jsonl:1", "a.jsonl:3", "b.json:[0]"]
    assert found.notes == ("x: passed over 2 blank, 4 no documents",)
    (tmp_path / "c.jsonl").write_text('{"text": "four"}\n{"tex": "five"}\n')
    with pytest.raises(DamagedInputError, match=r"`text` is missing in c\.jsonl:2"):
        read_texts("x", tmp_path / pattern)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"prompt": "y"}', r"`text` is missing in .*a.jsonl:2; give an object"),
        ("a.jsonl", b'{"text": 3}', "`text` is no string"),
        ("a.jsonl", b"{", r"invalid JSON in .*a.jsonl:1"),
        ("a.jsonl", b" \n", "the corpus 'x' holds no text"),
        ("a.json", b"[]", "the corpus 'x' holds no text"),
        ("a.jsonl", b'{"text": ""}', "the corpus 'x' holds no text"),
        ("a.txt", b"\xef\xbb\xbf \n", "the corpus 'x' holds no text"),
        ("a.txt", b"fine\ncaf\xe9", r"it is not UTF-8 text in .*a.txt:2"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedInputError, match=message) as caught:
        read_texts("x", tmp_path / name)
    assert caught.value.exit_code == 3


def test_a_prompt_and_its_answer_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "1 + 1?", "answer": " 2", "id": "x"}\n')
    assert _texts(read_texts("a", tmp_path / "a.jsonl")) == ["1 + 1? 2"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="it cannot be read"):
        read_texts("x", tmp_path / "none.txt")
    with pytest.raises(DamagedInputError, match="holds no text in"):
        read_texts("x", tmp_path / "*.py")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a").write_bytes(b"\0\1")
    with pytest.raises(DamagedInputError, match=r"holds no text \(passed over 1 binary\)"):
        read_texts("x", tmp_path / "empty")
