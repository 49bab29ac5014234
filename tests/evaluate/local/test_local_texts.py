"""Text files: pieces that join to the text again, perplexity by hand, next-token accuracy."""

from __future__ import annotations

import math

import pytest
from fakes import TASKS, FakeModel
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.language import TokenLoss
from deltasmith.evaluate.local.catalogue import load_task
from deltasmith.evaluate.local.texts import pieces
from deltasmith.evaluate.results import weighted_average

TEXT = TASKS / "text.txt"


@given(st.text(alphabet="ab \n\r\t\x0b\u2028é", max_size=80), st.integers(1, 12))
def test_pieces_join_to_the_text_and_are_short(text, size):
    found = pieces(text, size)
    assert "".join(found) == text
    assert all(found)
    assert all(len(piece.rstrip()) <= size for piece in found)


def test_pieces_by_hand():
    assert pieces("one two\n\nthree\n\nfour", 10) == ["one two\n\n", "three\n\n", "four"]
    assert pieces("one two\n\nthree\n\nfour", 16) == ["one two\n\nthree\n\n", "four"]
    assert pieces("one two\n\nthree\n\nfour", 99) == ["one two\n\nthree\n\nfour"]
    assert pieces("one two three", 9) == ["one two ", "three"]
    assert pieces("abcdefgh", 3) == ["abc", "def", "gh"]
    assert pieces("", 3) == []


def words(text: str) -> list[TokenLoss]:
    """Lose 2 nats for each word, in windows of three; a word of three letters is guessed."""
    found = text.split()
    windows = [found[n : n + 3] for n in range(0, len(found), 3)]
    return [TokenLoss(2.0 * len(w), len(w), sum(len(x) == 3 for x in w)) for w in windows]


def test_perplexity_by_hand():
    task = load_task(f"perplexity={TEXT}", window=100)
    text = TEXT.read_text(encoding="utf-8")
    outcomes = task.answer(FakeModel(lose=words), task.ids)
    assert sum(o.weight for o in outcomes) == len(text.split())
    assert {o.score for o in outcomes} == {2.0}
    figure = weighted_average([o.score for o in outcomes], [o.weight for o in outcomes], task.average)
    assert figure == pytest.approx(math.exp(2))
    bits = 2 * len(text.split()) / math.log(2) / TEXT.stat().st_size
    assert task.notes(outcomes) == (f"{bits:.4f} bits per byte over {TEXT.stat().st_size} bytes",)
    assert (task.average, task.higher_is_better) == ("perplexity", False)


def test_pieces_of_unequal_loss_are_weighted_by_tokens():
    task = load_task(f"perplexity={TEXT}", window=100)
    model = FakeModel(lose=lambda text: [TokenLoss(len(text) * 0.5, 10 if "ferry" in text else 40, 0)])
    outcomes = task.answer(model, task.ids)
    total = math.fsum(len(text) * 0.5 for text in model.texts)
    figure = weighted_average([o.score for o in outcomes], [o.weight for o in outcomes], task.average)
    assert figure == pytest.approx(math.exp(total / sum(o.weight for o in outcomes)))
    assert {o.weight for o in outcomes} == {10.0, 40.0}


def test_next_token_accuracy_by_hand():
    task = load_task(f"next_token={TEXT}", window=100)
    outcomes = task.answer(FakeModel(lose=words), task.ids)
    found = TEXT.read_text(encoding="utf-8").split()
    figure = weighted_average([o.score for o in outcomes], [o.weight for o in outcomes], task.average)
    assert figure == pytest.approx(sum(len(word) == 3 for word in found) / len(found))
    assert (task.metric, task.higher_is_better, task.name) == ("accuracy", True, "next_token")


def test_ids_depend_on_file_and_window_alone():
    assert list(load_task(f"perplexity={TEXT}", window=100).ids) == ["0", "1", "2", "3", "4"]
    assert list(load_task(f"perplexity={TEXT}", window=100, limit=2).ids) == ["0", "1"]
    assert list(load_task(f"perplexity={TEXT}").ids) == ["0"]


def test_each_option_changes_the_digest_and_so_does_the_kind():
    digests = [
        load_task(f"perplexity={TEXT}", **given).digest for given in ({}, {"limit": 1}, {"window": 100})
    ]
    assert len({*digests, load_task(f"next_token={TEXT}").digest}) == 4


def test_a_text_without_tokens_weighs_nothing():
    task = load_task(f"next_token={TEXT}")
    (outcome,) = task.answer(FakeModel(lose=lambda text: []), task.ids)
    assert (outcome.score, outcome.weight) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("content", "what"), [(b" \n", "it holds no text"), (b"a\n\xff", "it is not UTF-8 text in .*:2")]
)
def test_damaged_texts(tmp_path, content, what):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=what):
        load_task(f"perplexity={path}")
