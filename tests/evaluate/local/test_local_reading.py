"""Every way a question file can be wrong: one line, the place, exit code 3."""

from __future__ import annotations

import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.local.reading import by_id, digest_of, read_records


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"a": 1}\n{"a": \n', "invalid JSON in {path}:2"),
        (b'{"a": 1}\n\n[1]\n', "no JSON object in {path}:3"),
        (b"[1]\n", "no JSON object in {path}:[0]"),
        (b'[{"a": 1}, 2]', "no JSON object in {path}:[1]"),
        (b"", "it holds no question in {path}"),
        (b"\n \n", "it holds no question in {path}"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "it is not UTF-8 text in {path}:2"),
        (b"[" * 100_000, "invalid JSON in {path}"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, content, what):
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError) as caught:
        read_records(path)
    assert str(caught.value).startswith(what.format(path=path))
    assert caught.value.exit_code == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        DamagedInputError, match=r"it cannot be read \(No such file or directory\) in .*q\.jsonl"
    ):
        read_records(tmp_path / "q.jsonl")


def test_lines_and_lists_and_marks_are_read_alike(tmp_path):
    lines, array = tmp_path / "lines", tmp_path / "array"
    # U+2028 ends a line for str.splitlines, but not for JSON.
    lines.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\r\n{"a": "z"}'.encode())
    array.write_bytes('[{"a": "x\u2028y"},\n {"a": "z"}]'.encode())
    assert [one.text("a") for one in read_records(lines)] == ["x\u2028y", "z"]
    assert [one.text("a") for one in read_records(array)] == ["x\u2028y", "z"]
    assert [one.where for one in read_records(lines)] == [f"{lines}:1", f"{lines}:3"]


def test_fields_of_the_wrong_kind_are_named(tmp_path):
    path = tmp_path / "q"
    path.write_text('{"a": 1, "b": ["x", 2]}')
    (record,) = read_records(path)
    for read, what in (
        (lambda: record.text("a"), "'a' is not a string"),
        (lambda: record.text("c"), "'c' is missing"),
        (lambda: record.texts("b"), "'b' is not a list of strings"),
        (lambda: record.texts("c"), "'c' is missing"),
    ):
        with pytest.raises(DamagedInputError, match=f"{what} in {path}:1"):
            read()


def test_an_id_twice_is_refused():
    with pytest.raises(DamagedInputError, match="the id 'x' comes twice in f:2"):
        by_id([("x", 1, "f:1"), ("x", 2, "f:2")])


def test_a_digest_depends_on_everything_it_is_given():
    digests = {
        digest_of("a", 1, ["f"], x=1),
        digest_of("b", 1, ["f"], x=1),
        digest_of("a", 2, ["f"], x=1),
        digest_of("a", 1, ["g"], x=1),
        digest_of("a", 1, ["f"], x=2),
        digest_of("a", 1, ["f"], y=1),
    }
    assert len(digests) == 6
    assert digest_of("a", 1, ["f"], x=1, y=2) == digest_of("a", 1, ["f"], y=2, x=1)
