"""Text as pieces: every token once, what is held out apart, domains in balance, the same for all who ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_readers import START, characters

from deltasmith.analysis.tokenizing import TextTokenizer
from deltasmith.errors import DamagedInputError, RecipeError, RefusedError
from deltasmith.features import numbering
from deltasmith.features.corpora import Corpora, read_corpora
from deltasmith.features.pieces import Pieces, cut

CONTEXT = 9


def write(path: Path, sizes: list[int], seed: int = 0) -> Path:
    """Documents of so many letters; all letters, so no two passages are likely to be alike."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"))
    lines = [json.dumps({"text": "".join(rng.choice(letters, size))}) for size in sizes]
    path.write_text("\n".join(lines))
    return path


def read(
    sources: list[tuple[str, Path]],
    held_out: int = 200,
    train: int | None = None,
    seed: int = 0,
    tokenizer: TextTokenizer | None = None,
    context: int = CONTEXT,
) -> Corpora:
    return read_corpora(
        sources,
        tokenizer or characters(),
        context=context,
        train_tokens=train,
        held_out_tokens=held_out,
        seed=seed,
    )


@pytest.fixture
def two(tmp_path: Path) -> list[tuple[str, Path]]:
    return [
        ("long", write(tmp_path / "long.jsonl", [300, 40, 700, 3], 1)),
        ("short", write(tmp_path / "short.jsonl", [90] * 6, 2)),
    ]


def rows(pieces: Pieces, domain: int | None = None) -> list[tuple[int, ...]]:
    """Analysed ids of each piece."""
    return [
        tuple(ids[1:length].tolist())
        for ids, length, of in zip(pieces.ids, pieces.lengths, pieces.domain, strict=True)
        if domain is None or of == domain
    ]


def same(one: Corpora, other: Corpora) -> bool:
    fields = ("ids", "lengths", "domain", "document", "passage", "piece")
    return all(
        np.array_equal(getattr(a, field), getattr(b, field))
        for a, b in ((one.train, other.train), (one.held_out, other.held_out))
        for field in fields
    )


@pytest.mark.parametrize("start", [START, None])
def test_every_token_is_analysed_once(start: int | None) -> None:
    ids = np.arange(10, 10 + 3 * (CONTEXT - 1) + 2, dtype=np.int32)
    found = cut(ids, CONTEXT, start)
    assert np.concatenate([piece[1:] for piece in found]).tolist() == ids[start is None :].tolist()
    assert {len(piece) for piece in found[:-1]} == {CONTEXT}
    before = [start] * len(found) if start is not None else [piece[1] - 1 for piece in found]
    assert [piece[0] for piece in found] == before


def test_a_document_that_leaves_nothing_to_analyse() -> None:
    assert cut(np.zeros(0, np.int32), CONTEXT, START) == []
    assert cut(np.array([5], np.int32), CONTEXT, None) == []


@pytest.mark.parametrize("start", [START, None])
def test_held_out_passages_and_the_rest_are_all_there_is(two: Any, start: int | None) -> None:
    tokenizer = characters(start)
    found = read(two, tokenizer=tokenizer)
    every = [
        tuple(piece[1:].tolist())
        for _, path in two
        for line in path.read_text().splitlines()
        for piece in cut(
            np.array(tokenizer.encode_bare(json.loads(line)["text"]).ids, np.int32), CONTEXT, start
        )
    ]
    held, train = rows(found.held_out), set(rows(found.train))
    whole = [row for row in held if row in every]
    assert not train & set(held)
    assert len(held) - len(whole) <= 2  # the last passage of each domain is cut to fit
    # Nothing else is lost than what such a passage has beyond the cut.
    assert set(every) - set(held) - train == {row for row in set(every) - train if row not in whole}
    assert len(set(every) - set(held) - train) <= 2
    assert (found.held_out.ids[:, 0] == START).all() == (start is not None)


def test_held_out_tokens_are_shared_out_exactly(two: Any) -> None:
    found = read(two, held_out=201)
    assert np.bincount(found.held_out_tokens.domain).tolist() == [101, 100]
    assert [record["held_out_tokens"] for record in found.records] == [101, 100]


def test_held_out_arrays_follow_the_pieces(two: Any) -> None:
    found = read(two)
    arrays, pieces = found.held_out_tokens, found.held_out
    assert arrays.ids.tolist() == [token for row in rows(pieces) for token in row]
    for array in vars(arrays).values():
        assert (array.dtype, array.shape) == (np.int32, (200,))
    assert (np.diff(arrays.passage) >= 0).all()
    assert np.unique(arrays.passage).tolist() == list(range(int(arrays.passage.max()) + 1))
    assert (np.diff(arrays.sequence) >= 0).all()
    assert np.bincount(arrays.sequence).tolist() == pieces.analysed.tolist()
    for passage in range(int(arrays.passage.max()) + 1):
        inside = pieces.passage == passage
        assert len({*zip(pieces.domain[inside].tolist(), pieces.document[inside].tolist(), strict=True)}) == 1


def test_passages_are_runs_of_pieces(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [3000])
    found = read([("a", path)], held_out=16 * 3 * (CONTEXT - 1))
    assert np.bincount(found.held_out.passage).tolist()[:-1] == [3] * 15
    text = json.loads(path.read_text())["text"]
    for passage in range(15):
        inside = found.held_out.taken(np.flatnonzero(found.held_out.passage == passage))
        together = [token for row in rows(inside) for token in row]
        assert characters().encode_bare(text).ids.index(together[0]) >= 0
        assert str(together)[1:-1] in str(list(characters().encode_bare(text).ids))


def test_what_is_held_out_does_not_depend_on_other_corpora_or_later_documents(
    tmp_path: Path, two: Any
) -> None:
    both, alone = read(two), read([two[0]], held_out=100)
    assert rows(both.held_out, 0) == rows(alone.held_out)
    lines = two[0][1].read_text()
    longer = tmp_path / "longer.jsonl"
    longer.write_text(lines + "\n" + write(tmp_path / "x.jsonl", [200], 9).read_text())
    kept = set(rows(read([("long", longer)], held_out=100).held_out))
    assert (
        len(kept & set(rows(alone.held_out))) > len(kept) / 2
    )  # all would be, but for the new document's share


def test_it_is_a_function_of_texts_and_seed(two: Any) -> None:
    assert same(read(two), read(two))
    assert not same(read(two), read(two, seed=1))
    assert set(rows(read(two).held_out)) != set(rows(read(two, seed=1).held_out))


def test_domains_give_equal_shares_and_the_smaller_is_repeated(two: Any) -> None:
    found = read(two)
    tokens = [int(found.train.analysed[found.train.domain == domain].sum()) for domain in (0, 1)]
    assert abs(tokens[0] - tokens[1]) < CONTEXT
    assert [record["train_tokens"] for record in found.records] == tokens
    assert found.records[0]["repeats"] == 1.0
    assert 2 < found.records[1]["repeats"] < 2.3  # 943 tokens to 440
    often = np.unique(found.train.piece[found.train.domain == 1], return_counts=True)[1]
    assert set(often) == {2, 3}
    texts = {}
    for number, row in zip(found.train.piece.tolist(), rows(found.train), strict=True):
        assert texts.setdefault(number, row) == row
    assert not found.notes


def test_no_corpus_is_repeated_more_than_four_times_unasked(tmp_path: Path) -> None:
    sources = [("a", write(tmp_path / "a.jsonl", [2000])), ("b", write(tmp_path / "b.jsonl", [200]))]
    found = read(sources, held_out=20)
    assert [record["repeats"] for record in found.records] == [
        pytest.approx(0.39, abs=0.02),
        pytest.approx(4, abs=0.1),
    ]
    assert found.notes == ("a: 37% of the text is trained on, as much as of the others",)
    asked = read(sources, held_out=20, train=3000)
    assert asked.records[1]["repeats"] == pytest.approx(
        1500 / 185, abs=0.2
    )  # less what a cut passage leaves over
    assert any(note.startswith("b: the text is repeated 8.") for note in asked.notes)


def test_training_tokens_as_asked_for(two: Any) -> None:
    found = read(two, train=301)
    for record, share in zip(found.records, (151, 150), strict=True):
        assert share <= record["train_tokens"] < share + CONTEXT


def test_only_enough_documents_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [50] * 100)
    found = read([("a", path)], held_out=100, train=200)
    (record,) = found.records
    assert (record["documents"], record["tokens"]) == (8, 400)
    assert found.notes[0] == "a: 8 of 100 documents are enough, and no more were read"
    assert len(set(found.train.document.tolist()) - set(range(8))) > 0  # in no order of the file
    assert record["train_tokens"] >= 200


def test_any_stretch_of_the_training_text_has_all_domains(tmp_path: Path) -> None:
    sources = [(name, write(tmp_path / f"{name}.jsonl", [4000], seed)) for seed, name in enumerate("abcd")]
    domain = read(sources, held_out=40).train.domain
    for first in range(0, len(domain) - 64, 64):
        assert np.bincount(domain[first : first + 64], minlength=4).min() >= 8
    for first in range(4):  # nor is every fourth, or sixteenth, of one domain
        assert np.bincount(domain[first::4], minlength=4).min() > 0.15 * len(domain) / 4
        assert np.bincount(domain[first::16], minlength=4).min() > 0


def test_the_record_of_a_corpus(two: Any) -> None:
    record = read(two).records[1]
    assert list(record) == [
        *("name", "source", "sha256", "documents", "tokens", "held_out_tokens", "train_tokens", "repeats")
    ]
    assert (record["name"], record["source"], record["documents"], record["tokens"]) == (
        "short",
        "short.jsonl",
        6,
        540,
    )
    json.dumps(record)


def test_a_long_text_is_numbered_in_parts_behind_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    inner = characters()

    def watched(text: str) -> Any:
        seen.append(text)
        return inner.encode_bare(text)

    monkeypatch.setattr(numbering, "_CHUNK", 50)
    text = "\n".join("x" * size for size in (30, 15, 120, 7, 60))
    (tmp_path / "a.txt").write_text(text)
    tokenizer = TextTokenizer(encode=watched, encode_bare=watched, vocabulary=67, start=START)
    found = read([("a", tmp_path / "a.txt")], held_out=10, tokenizer=tokenizer)
    assert "".join(seen) == text
    assert max(map(len, seen)) <= 50
    assert seen[0] == "x" * 30 + "\n" + "x" * 15 + "\n"
    assert found.records[0]["tokens"] == len(text)


# Refusals.


@pytest.mark.parametrize("held_out", [600, 10**6])
def test_a_corpus_too_small_for_its_share(two: Any, held_out: int) -> None:
    message = rf"the corpus 'short' has 540 tokens, too few to hold out {held_out // 2:,} .*short.jsonl; give more text"
    with pytest.raises(
        RefusedError, match=message if held_out == 600 else "'long' has 1,043 tokens"
    ) as caught:
        read(two, held_out=held_out)
    assert caught.value.exit_code == 1


def test_a_corpus_of_one_passage(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="has 6 tokens, too few to hold out 3"):
        read([("a", write(tmp_path / "a.jsonl", [6]))], held_out=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "no text was given"),
        ({"context": 1}, "context is 1; give 2 or more"),
        ({"held_out": 1}, "held out tokens is 1; give 2 or more"),
        ({"train": 1}, "train tokens is 1; give 2 or more"),
    ],
)
def test_what_makes_no_sense(two: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(**({"sources": two} | change))


def test_one_name_twice(two: Any) -> None:
    with pytest.raises(RecipeError, match="two corpora are called 'long'; give each its own name"):
        read([two[0], ("long", two[1][1])])


def test_tokens_that_the_network_does_not_know(two: Any) -> None:
    with pytest.raises(
        RefusedError, match=r"the token [0-9]+ is not among the 20 that the network knows in .*long.jsonl:1"
    ):
        read(two, tokenizer=characters(vocabulary=20))


def test_a_text_that_does_not_tokenise(two: Any) -> None:
    def broken(text: str) -> Any:
        raise KeyError("z")

    with pytest.raises(DamagedInputError, match=r"it does not tokenise \('z'\) in .*long.jsonl:1"):
        read(two, tokenizer=TextTokenizer(encode=broken, encode_bare=broken, vocabulary=67))


def test_nothing_to_analyse(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DamagedInputError, match="the corpus 'a' has no token to analyse"):
        read([("a", tmp_path / "a.txt")], held_out=1, tokenizer=characters(None))


def test_unknown_tokens_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab?" * 100)
    assert read([("a", tmp_path / "a.txt")], held_out=10).notes == (
        "a: 33.3% of the tokens are unknown to the tokenizer",
    )
