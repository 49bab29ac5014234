"""The generated problems are right, reproducible, and split so that nothing held out is ever trained on."""

from __future__ import annotations

import hashlib
import itertools
import json
import string
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.lab import EXPERTS, family_folder, tasks
from deltasmith.lab.tokens import EOS, PAD, UNK, CharTokenizer

ITEMS = family_folder() / "items"


def first(task: str, count: int = 2000, split: tasks.Split = "train") -> list[tasks.Example]:
    return list(itertools.islice(tasks.examples(task, split, Random("a seed")), count))


def test_tasks_and_experts_agree() -> None:
    assert tasks.TASKS == EXPERTS
    assert set(tasks.STYLES) == set(EXPERTS)


def test_sums_are_right() -> None:
    for example in first("math"):
        question, result = example.answer.split("=")
        assert eval(question) == int(result) > 0
        for number in question.replace("-", "+").split("+"):
            assert number in example.prompt


def test_code_does_what_the_prompt_says() -> None:
    values = list(range(-50, 90))
    for example in first("code"):
        assert example.answer.startswith("return ")
        found = eval(example.answer.removeprefix("return "), {"x": values})
        assert found == expected_list(example.prompt, values), example


def expected_list(prompt: str, values: list[int]) -> list[int]:
    """Read the prompt's words independently of the templates that made it."""
    words = prompt.split()
    numbers = [int(word) for word in words if word.isdigit()]
    if words[0] in ("first", "last", "skip", "all") or "from" in words:
        n = numbers[0]
        from_start = words[0] in ("skip", "all")
        if words[0] == "last" or words[-1] == "end":
            return values[-n:]
        return values[n:] if from_start else values[:n]
    m = numbers[-1] if numbers else 0
    if {"above", "over"} & set(words):
        values = [v for v in values if v > m]
    elif {"below", "under"} & set(words):
        values = [v for v in values if v < m]
    elif words[-1] in ("even", "odd"):
        values = [v for v in values if (v % 2 == 1) == (words[-1] == "odd")]
    n = numbers[0] if numbers else 0
    if words[0] in ("add", "raise"):
        return [v + n for v in values]
    if words[0] in ("multiply", "scale"):
        return [v * n for v in values]
    return [v - n for v in values] if "off" in words or words[0] == "lower" else values


def test_ins_answers_by_hand() -> None:
    expected = {
        "capitals": "CAT DOG",
        "backwards": "god tac",
        "quotes": '"cat dog"',
        "twice": "cat dog cat dog",
        "last": "dog",
    }
    for kind, answer in expected.items():
        problem = tasks.Problem("ins", kind, ("cat dog",))
        example = tasks.render(problem, Random(0), tasks.STYLES["ins"][0])
        assert example.answer == answer
        assert "cat dog" in example.prompt
    commas = tasks.render(tasks.Problem("ins", "commas", ("cat",)), Random(0), "{result}")
    assert commas.answer == "c,a,t"


def test_every_kind_is_drawn() -> None:
    kinds = {task: Counter(example.key.split("|")[1] for example in first(task)) for task in EXPERTS}
    assert set(kinds["math"]) == {"+", "-"}
    assert len(kinds["ins"]) == 6
    assert len(kinds["code"]) == 3 * 5 + 4 + 3  # maps with every filter, `keep` with four, slices
    assert "keep all" not in kinds["code"]


def test_the_split_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"math|+|2|3").digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    expected = "test" if bucket < 15 else "validation" if bucket < 25 else "train"
    assert tasks.split_of("math|+|2|3") == expected
    share = Counter(tasks.split_of(str(n)) for n in range(20000))
    assert share["test"] == pytest.approx(3000, rel=0.08)
    assert share["validation"] == pytest.approx(2000, rel=0.08)


def test_sums_in_either_order_are_one_problem() -> None:
    assert tasks.Problem("math", "+", (3, 12)).key == tasks.Problem("math", "+", (12, 3)).key
    assert tasks.Problem("math", "-", (12, 3)).key != tasks.Problem("math", "-", (3, 12)).key


@pytest.mark.parametrize("task", EXPERTS)
def test_splits_share_no_problem(task: str) -> None:
    splits: tuple[tasks.Split, ...] = ("train", "validation", "test")
    keys = [{example.key for example in first(task, 1500, split)} for split in splits]
    for one, other in itertools.combinations(keys, 2):
        assert not one & other


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_words_are_never_trained_on(split: tasks.Split) -> None:
    words = {word for example in first("ins", 1500, split) for word in example.key.split("|")[2].split()}
    trained = {word for example in first("ins", 5000) for word in example.key.split("|")[2].split()}
    assert words
    assert not words & trained


def test_pretraining_shows_no_held_out_sum() -> None:
    splits: tuple[tasks.Split, ...] = ("validation", "test")
    held = {example.answer for split in splits for example in tasks.held_out("math", split, 120, 0)}
    held |= {f"{b}+{a}={r}" for a, b, r in (s.replace("=", "+").split("+") for s in held if "+" in s)}
    seen = itertools.chain.from_iterable(
        text.split("\n") for text in itertools.islice(tasks.pretraining_text(Random(5)), 20000)
    )
    assert not held & set(seen)


def test_pretraining_shows_every_style() -> None:
    texts = itertools.islice(tasks.pretraining_text(Random(1)), 3000)
    answers = Counter(text.split("\n")[-1].split(" ")[0] for text in texts)
    for start in ("Sure:", "It", "return", "lambda", "y", "The"):
        assert answers[start] > 20, start


def test_a_seed_decides_everything() -> None:
    assert tasks.held_out("ins", "test", 50, 3) == tasks.held_out("ins", "test", 50, 3)
    assert tasks.held_out("ins", "test", 50, 3) != tasks.held_out("ins", "test", 50, 4)
    one, other = (list(itertools.islice(tasks.pretraining_text(Random("s")), 50)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("task", EXPERTS)
@pytest.mark.parametrize(("split", "count"), [("test", 200), ("validation", 120)])
def test_the_bundled_items_are_what_the_generator_makes(task: str, split: tasks.Split, count: int) -> None:
    name = f"{task}.jsonl" if split == "test" else f"{split}_{task}.jsonl"
    bundled = [json.loads(line) for line in (ITEMS / name).read_text().splitlines()]
    made = tasks.held_out(task, split, count, 0)
    found = [(item["prompt"], item["answer"]) for item in bundled]
    assert found == [(f"{example.prompt}\n", example.answer) for example in made]
    assert len({item["id"] for item in bundled}) == len({e.key for e in made}) == count


def test_the_tokenizer_goes_there_and_back() -> None:
    tokenizer = CharTokenizer.standard()
    text = "\n" + "".join(c for c in string.printable if c.isprintable())
    ids = tokenizer.encode(text)
    assert len(ids) == len(set(ids)) == len(text) == len(tokenizer.vocab) - 4
    assert tokenizer.decode([PAD, *ids, EOS]) == text
    assert tokenizer.encode("é") == [UNK]
    assert CharTokenizer.load(family_folder() / "base") == tokenizer


def test_generated_text_stays_in_the_alphabet() -> None:
    tokenizer = CharTokenizer.standard()
    for text in itertools.islice(tasks.pretraining_text(Random(2)), 2000):
        assert UNK not in tokenizer.encode(text)
        assert len(text) + 2 <= 96


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(DamagedInputError, match="a BPE tokenizer with 1 merges, not one character per token"):
        CharTokenizer.load(tmp_path)


def test_transformers_numbers_text_alike() -> None:
    transformers = pytest.importorskip("transformers")
    folder = family_folder() / "base"
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = CharTokenizer.load(folder)
    text = 'Say cat backwards.\nreturn [v+3 for v in x if v%2==1]  <"?>'
    ids = reference(text)["input_ids"]
    assert ids == [1, *tokenizer.encode(text)]
    assert reference.decode(ids, skip_special_tokens=True) == text
