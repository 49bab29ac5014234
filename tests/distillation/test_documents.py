"""The data of a distillation: reading, cutting, holding out, ordering."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from deltasmith.distillation.documents import batches, prepare, read_documents
from deltasmith.errors import DamagedInputError


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_file_holds_a_document_a_line(tmp_path: Path) -> None:
    assert read_documents(written(tmp_path, "a.txt", "one\n\n  \ntwo words\n")) == ["one", "two words"]


def test_objects_hold_text_or_prompt_and_answer(tmp_path: Path) -> None:
    text = '{"text": "one"}\n\n{"id": 1, "prompt": "2 + 2?\\n", "answer": "4"}\n'
    assert read_documents(written(tmp_path, "a.jsonl", text)) == ["one", "2 + 2?\n4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "it holds no document"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}', "'text' is missing"),
        ("a.jsonl", '{"prompt": "a"}', "'answer' is missing"),
        ("a.jsonl", "{", "invalid JSON"),
    ],
)
def test_files_without_documents_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DamagedInputError, match=message):
        read_documents(written(tmp_path, name, text))


def test_documents_are_cut_and_none_is_on_both_sides(tmp_path: Path) -> None:
    lines = [chr(ord("a") + n) * (5 + 4 * n) for n in range(20)]
    data = prepare(written(tmp_path, "a.txt", "\n".join(lines)), encode, length=8, seed=3)
    assert data.documents == 20
    pieces = data.training + data.validation
    assert max(map(len, pieces)) == 8
    assert min(map(len, pieces)) > 1
    assert not {p[0] for p in data.training} & {p[0] for p in data.validation}
    total = sum((5 + 4 * n) // 8 + ((5 + 4 * n) % 8 > 1) for n in range(20))
    assert total - 10 <= len(pieces) <= total
    assert len(data.validation) == max(8, round(0.1 * total))
    assert len(data.sha256) == 64


def test_two_documents_are_the_least(tmp_path: Path) -> None:
    data = prepare(written(tmp_path, "a.txt", "abc\ndef"), encode, length=8, seed=0)
    assert (len(data.training), len(data.validation)) == (1, 1)
    for text in ("abcdef", "abc\nd\ne"):
        with pytest.raises(DamagedInputError, match="fewer than two documents have more than a token"):
            prepare(written(tmp_path, "b.txt", text), encode, length=8, seed=0)


def test_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "\n".join(f"document {n}" for n in range(50)))
    first, again, other = (prepare(path, encode, 128, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.validation != other.validation


def test_every_round_sees_every_piece_once() -> None:
    pieces = [(n, n) for n in range(10)]
    stream = list(itertools.islice(batches(pieces, 4, seed=0), 5))
    seen = [piece for batch in stream for piece in batch]
    assert all(len(batch) == 4 for batch in stream)
    assert sorted(seen[:10]) == sorted(seen[10:]) == pieces
    assert seen[:10] != seen[10:]
    assert len(next(batches(pieces[:3], 8, seed=0))) == 8
