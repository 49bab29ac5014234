"""Data of the loss analysis: what counts, what is cut, and what is refused by name; no torch, no transformers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

import pytest

from deltasmith.analysis.data import Example, chunked, read_examples
from deltasmith.analysis.tokenizing import Encoded, TextTokenizer, Turns
from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.lab.tokens import BOS, EOS, UNK, CharTokenizer

CHARS = CharTokenizer.standard()


def by_characters(text):
    ids = CHARS.encode(text)
    return Encoded((BOS, *ids), (0, *range(len(ids))))


def bare(text):
    return Encoded(tuple(CHARS.encode(text)), tuple(range(len(text))))


CHARACTERS = TextTokenizer(by_characters, bare, vocabulary=len(CHARS.vocab), start=BOS, end=EOS, unknown=UNK)


def in_words(text):
    """Number runs of letters and single other characters: a token's id is its length, or above 100 its character."""
    found = list(re.finditer(r"[a-z]+|.", text, re.DOTALL))
    ids = tuple(len(m[0]) if m[0].isalpha() else 100 + ord(m[0]) for m in found)
    return Encoded(ids, tuple(m.start() for m in found))


WORDS = TextTokenizer(in_words, in_words, vocabulary=300)
BLIND = TextTokenizer(lambda t: Encoded(in_words(t).ids), lambda t: Encoded(in_words(t).ids), vocabulary=300)


def file_of(tmp_path, *objects, name="data.jsonl"):
    path = tmp_path / name
    lines = [one if isinstance(one, str) else json.dumps(one) for one in objects]
    path.write_text("\n".join(lines) + "\n")
    return path


def spelled(example):
    return CHARS.decode(example.tokens[: example.first]), CHARS.decode(example.tokens[example.first :])


# What counts.


def test_of_plain_text_all_but_the_first_token_counts(tmp_path):
    path = file_of(tmp_path, "one", "", "  ", "two!", name="data.txt")
    found = read_examples(path, CHARACTERS, length=10)
    assert found.examples == (
        Example((BOS, *CHARS.encode("one")), 1),
        Example((BOS, *CHARS.encode("two!")), 1),
    )
    assert (found.documents, found.tokens, found.name, found.notes) == (2, 7, "data.txt", ())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    same = read_examples(file_of(tmp_path, {"text": "one"}, "", {"text": "two!"}), CHARACTERS, length=10)
    assert same.examples == found.examples


@pytest.mark.parametrize("length", [2, 3, 4, 5, 7, 26, 27, 28])
def test_every_token_of_a_long_text_but_its_first_is_predicted_once(tmp_path, length):
    text = "abcdefghijklmnopqrstuvwxyz"
    found = read_examples(file_of(tmp_path, text, name="d.txt"), CHARACTERS, length=length)
    assert max(len(e.tokens) for e in found.examples) <= length
    assert found.tokens == len(text)
    assert "".join(CHARS.decode(e.tokens[e.first :]) for e in found.examples) == text
    assert all(e.counted >= 1 for e in found.examples)


def test_of_an_answer_its_tokens_and_the_end_of_sequence_count(tmp_path):
    found = read_examples(file_of(tmp_path, {"prompt": "2+2=", "answer": "4"}), CHARACTERS, length=10)
    (example,) = found.examples
    assert example.tokens == (BOS, *CHARS.encode("2+2=4"), EOS)
    assert example.first == 5
    assert example.counted == found.tokens == 2


def test_no_end_of_sequence_is_added_where_there_is_none_or_the_tokenizer_adds_it(tmp_path):
    path = file_of(tmp_path, {"prompt": "a=", "answer": "1"})
    without = dataclasses.replace(CHARACTERS, end=None)
    assert read_examples(path, without, length=10).examples[0].tokens[-1] == CHARS.encode("1")[0]

    def closed(text):
        encoded = by_characters(text)
        return Encoded((*encoded.ids, EOS), (*encoded.starts, 0))

    itself = dataclasses.replace(CHARACTERS, encode=closed)
    (example,) = read_examples(path, itself, length=10).examples
    assert (example.tokens, example.first) == ((BOS, *CHARS.encode("a=1"), EOS), 3)


def test_a_token_across_the_boundary_does_not_count_where_its_beginning_is_known(tmp_path):
    path = file_of(tmp_path, {"prompt": "say ab", "answer": "cd now"})
    # say | | abcd | | now: "abcd" begins in the prompt.
    (told,) = read_examples(path, WORDS, length=10).examples
    assert (told.tokens, told.first) == ((3, 132, 4, 132, 3), 3)
    # Without offsets the prompt is say | | ab, and the first difference is at "abcd".
    (untold,) = read_examples(path, BLIND, length=10).examples
    assert (untold.tokens, untold.first) == ((3, 132, 4, 132, 3), 2)


def test_an_empty_prompt_leaves_the_whole_answer_to_count(tmp_path):
    (example,) = read_examples(
        file_of(tmp_path, {"prompt": "", "answer": "abc"}), CHARACTERS, length=9
    ).examples
    assert example.counted == 4


# Conversations.

TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ok"},
]


def render(messages, asking):
    return "".join(f"{m['role'][0]}:{m['content']}\n" for m in messages) + ("a:" if asking else "")


def test_without_marks_the_last_turn_counts_from_where_the_question_for_it_ends(tmp_path):
    tokenizer = dataclasses.replace(CHARACTERS, render=render)
    found = read_examples(file_of(tmp_path, {"messages": TALK}), tokenizer, length=99)
    (example,) = found.examples
    assert spelled(example) == ("u:hi\na:yo\nu:bye\na:", "ok\n")
    assert example.tokens[-1] != EOS  # the template ends a turn, not we
    assert found.notes == (
        "the chat template does not mark the assistant's turns: only the last of each conversation counts",
    )


def test_with_marks_each_turn_of_the_assistant_is_an_example(tmp_path):
    ids = CHARS.encode("u:hi\na:yo\nu:bye\na:ok\n")
    tokenizer = dataclasses.replace(
        CHARACTERS, render=render, turns=lambda _: Turns(tuple(ids), ((7, 9), (18, 20)))
    )
    found = read_examples(file_of(tmp_path, {"messages": TALK}), tokenizer, length=99)
    assert [spelled(e) for e in found.examples] == [("u:hi\na:", "yo"), ("u:hi\na:yo\nu:bye\na:", "ok")]
    assert (found.documents, found.tokens, found.notes) == (1, 4, ())


# What is cut.


def test_a_long_example_keeps_its_beginning_and_its_end(tmp_path):
    path = file_of(tmp_path, {"prompt": "abcdefgh", "answer": "yz"}, {"prompt": "a", "answer": "z"})
    found = read_examples(path, CHARACTERS, length=6)
    assert found.examples[0].tokens == (BOS, *CHARS.encode("ghyz"), EOS)
    assert [spelled(e) for e in found.examples] == [("gh", "yz"), ("a", "z")]
    assert found.notes == ("1 examples were too long and keep only their last 6 tokens",)
    (blind,) = read_examples(
        file_of(tmp_path, {"prompt": "a b c d ", "answer": "ef g"}), WORDS, length=4
    ).examples
    assert (blind.tokens, blind.first) == ((132, 2, 132, 1), 1)


def test_of_an_answer_longer_than_the_length_only_its_end_counts(tmp_path):
    (example,) = read_examples(
        file_of(tmp_path, {"prompt": "a", "answer": "uvwxyz"}), CHARACTERS, length=4
    ).examples
    assert (example.tokens, example.first, example.counted) == ((BOS, *CHARS.encode("yz"), EOS), 1, 3)


def test_the_context_bounds_the_length_and_the_limit_the_documents(tmp_path):
    path = file_of(tmp_path, "abcdef", "gh", "ij", name="d.txt")
    found = read_examples(path, CHARACTERS, length=512, context=5, limit=2)
    assert [len(e.tokens) for e in found.examples] == [5, 3, 3]
    assert found.documents == 2
    assert found.notes == (
        "examples of at most 5 tokens, the model's longest input",
        "the first 2 of 3 documents",
    )
    assert read_examples(path, CHARACTERS, length=5, context=5, limit=3).notes == ()
    assert read_examples(path, CHARACTERS, length=512, context=7).notes == ()  # the longest has seven tokens
    long = file_of(tmp_path, {"prompt": "a", "answer": "uvwxyz"})
    assert read_examples(long, CHARACTERS, length=512, context=4).notes == (
        "examples of at most 4 tokens, the model's longest input",
        "1 examples were too long and keep only their last 4 tokens",
    )


def test_chunks_keep_the_order():
    examples = [Example((1, i), 1) for i in range(5)]
    assert [[e.tokens[1] for e in chunk] for chunk in chunked(examples, 2)] == [[0, 1], [2, 3], [4]]
    with pytest.raises(RecipeError, match="batch is 0; give 1 or more"):
        chunked(examples, 0)


# What is refused, by name.


def boom(text):
    raise KeyError(text)


def squeamish(text):
    return boom(text) if text == "abc" else by_characters(text)


@pytest.mark.parametrize(
    ("line", "tokenizer", "message"),
    [
        ("{", CHARACTERS, "invalid JSON"),
        ("[1]", CHARACTERS, "no JSON object"),
        ({"question": "a"}, CHARACTERS, "`text` is missing (there is 'question')"),
        ({}, CHARACTERS, "`text` is missing (there is nothing)"),
        ({"prompt": "a"}, CHARACTERS, "`answer` is missing (there is 'prompt')"),
        ({"answer": "a"}, CHARACTERS, "`prompt` is missing (there is 'answer')"),
        ({"text": 7}, CHARACTERS, "`text` is not a string"),
        ({"text": ""}, CHARACTERS, "it does not tokenise (there is no token)"),
        ({"text": "äöü"}, CHARACTERS, "it does not tokenise (all its 3 tokens are unknown)"),
        (
            {"prompt": "a", "answer": "äö"},
            CHARACTERS,
            "the answer does not tokenise (all its tokens are unknown)",
        ),
        ({"text": "abc"}, dataclasses.replace(CHARACTERS, encode=squeamish), "it does not tokenise ('abc')"),
        (
            {"text": "a~"},
            dataclasses.replace(CHARACTERS, vocabulary=70),
            f"the tokenizer yields token {CHARS.encode('a')[0]}, and the network knows those below 70",
        ),
        ({"text": "word"}, WORDS, "its only token has nothing before it to be predicted from"),
        ({"prompt": "a", "answer": ""}, CHARACTERS, "the answer is empty"),
        ({"prompt": "say wo", "answer": "rd"}, WORDS, "no token begins within the answer"),
        ({"messages": TALK}, CHARACTERS, "the model has no chat template for `messages`"),
        ({"messages": []}, CHARACTERS, "`messages` is not a list of turns"),
        ({"messages": [{"role": "user"}]}, CHARACTERS, "turn 0 of `messages` has no `role` and `content`"),
        (
            {"messages": TALK[:1]},
            dataclasses.replace(CHARACTERS, render=render),
            "its last turn is not the assistant's",
        ),
        (
            {"messages": TALK},
            dataclasses.replace(CHARACTERS, render=lambda m, asking: str(len(m))),
            "the chat template renders the turns before the last answer otherwise without it",
        ),
        (
            {"messages": TALK},
            dataclasses.replace(CHARACTERS, render=lambda m, asking: boom("bad template")),
            "it does not tokenise ('bad template')",
        ),
        (
            {"messages": TALK},
            dataclasses.replace(CHARACTERS, turns=lambda m: Turns((BOS, 9, 9), ())),
            "the assistant says nothing",
        ),
    ],
)
def test_bad_documents_are_named_with_their_line(tmp_path, line, tokenizer, message):
    path = file_of(tmp_path, {"text": "+ -"}, "", line)
    with pytest.raises(DamagedInputError) as caught:
        read_examples(path, tokenizer, length=10)
    assert str(caught.value).startswith(f"{message} in {path}:3; ")


@pytest.mark.parametrize("content", ["", "\n \n", "[]", "\ufeff"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_a_file_without_documents_is_refused(tmp_path, content, name):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DamagedInputError, match=r"it holds no document in .*give one document a line"):
        read_examples(path, CHARACTERS, length=10)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(DamagedInputError, match="cannot be read"):
        read_examples(tmp_path / "none.txt", CHARACTERS, length=10)
    (path := tmp_path / "data.txt").write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(DamagedInputError, match=r"not UTF-8 text in .*data\.txt:2"):
        read_examples(path, CHARACTERS, length=10)


@pytest.mark.parametrize(
    ("options", "message"), [({"length": 1}, "length is 1"), ({"limit": 0}, "limit is 0")]
)
def test_lengths_and_limits_without_sense_are_refused(tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        read_examples(file_of(tmp_path, {"text": "abc"}), CHARACTERS, **{"length": 10, **options})


def test_some_unknown_tokens_are_a_note(tmp_path):
    found = read_examples(file_of(tmp_path, {"text": "für"}), CHARACTERS, length=10)
    assert found.notes == ("1 of 4 tokens are unknown to the tokenizer",)
