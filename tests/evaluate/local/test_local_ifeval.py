"""IFEval: every instruction by hand, strict and loose, and what cannot be checked is never passed."""

from __future__ import annotations

import json

import pytest
from fakes import TASKS, FakeModel, oracle

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.local import ifeval
from deltasmith.evaluate.local.catalogue import load_task
from deltasmith.evaluate.local.ifeval import language_detector, variants
from deltasmith.evaluate.local.instructions import (
    INSTRUCTIONS,
    Arguments,
    NotCheckableError,
    check_for,
    sentences,
)

FILE = TASKS / "ifeval.jsonl"


@pytest.fixture(autouse=True)
def _no_detector(monkeypatch):
    """Make the tests the same with and without langdetect."""
    monkeypatch.setattr(ifeval, "language_detector", lambda: None)


def german_or_english(text: str) -> str | None:
    return "de" if "Tee" in text else "en" if text.strip().isascii() else None


# (instruction, arguments, responses that follow it, responses that do not)
CASES = [
    ("keywords:existence", {"keywords": ["Oak", "elm"]}, ["an OAK by elms"], ["an oak", "o a k elm"]),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        ["Tea, TEA", "teatea"],
        ["tea", "no"],
    ),
    ("keywords:frequency", {"keyword": "t.a", "frequency": 1, "relation": "less than"}, ["tea"], ["t.a"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["concatenate"], ["a Cat!", "cat"]),
    (
        "keywords:letter_frequency",
        {"letter": "X", "let_frequency": 3, "let_relation": "at least"},
        ["xXx"],
        ["xx"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        ["a!"],
        ["a!!"],
    ),
    ("language:response_language", {"language": "de"}, ["Tee ist gut"], ["tea is good"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["A. B."],
        ["A b."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["A b."],
        ["A. B."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***a***b***"],
        ["a", "a******b"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["a-b c", "it's x"],
        ["a b"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b"], ["a b c"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["a b\n\nthen, c", 'a\n\n\n\n"Then" d'],
        ["then\n\na", "a\n\nthen\n\nb", "a\n\nthence b"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]"], ["[a]", "[a [b"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["bye\np. s. x", "P.S. x"],
        ["PS x", "bye"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S x", "P. P. S"], ["P.S. x"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "x\n- a\n  - b", "* a\n- b\n**c**"],
        ["* a", "* a\n* b\n* c", "**a**\n* b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["So: My answer is no.", "My answer is maybe."],
        ["No.", "my answer is yes"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** *b*", "**a** **b**"],
        ["**a**", "*a\nb* *c*", "** ** *a*", "****"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        ["PART 1\na\nPART 2\nb", "PART1 PART2"],
        ["PART 1", "Part 1 Part 2", "PART one PART two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```", "```\n3\n```"],
        ["a", '{"a": 1} x'],
    ),
    ("detectable_format:title", {}, ["<<a b>>\nc"], ["<a>", "<< >>", "<<a\nb>>"]),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "a ****** b ******"],
        ["a", "a****** a", "a******b******c"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, [" say it.\nSo."], ["So. Say it."]),
    ("startend:end_checker", {"end_phrase": "The end."}, ["x the END.", '"x the end."\n'], ["The end. x"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["A WELL-KNOWN fact", "NO! I"],
        ["No WAY", "x"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["one WORD"],
        ["TWO WORDS"],
    ),
    ("change_case:english_capital", {}, ["ALL LOUD 1"], ["Not all", "DER Tee", "123"]),
    ("change_case:english_lowercase", {}, ["all quiet 1"], ["Not all", "été"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
    ("startend:quotation", {}, ['"a"', ' "a" '], ['"', '"a', "a"]),
]


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


@pytest.mark.parametrize(("name", "given", "right", "wrong"), CASES)
def test_instructions_by_hand(name, given, right, wrong):
    check = check_for(name, Arguments(given, "f:1", german_or_english))
    assert {text: check(text) for text in right} == dict.fromkeys(right, True)
    assert {text: check(text) for text in wrong} == dict.fromkeys(wrong, False)
    assert not check("")
    assert not check(" \n")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three? Four", 4),
        ("Dr. Who met Mrs. X. at 3.5 p.m. on Main St. 5", 1),
        ("J. R. Smith came. He left.", 2),
        ("I saw it. I did.", 2),
        ("Wait... what? Yes.", 2),
        ('"Go!" he said. "No." She left.', 3),
        ("a line\nanother line", 1),
        ("", 0),
    ],
)
def test_sentences_by_hand(text, count):
    assert len(sentences(text)) == count, sentences(text)


def test_loose_forms_by_hand():
    assert variants("a\n*b*\nc") == (
        "a\n*b*\nc",
        "*b*\nc",
        "a\n*b*",
        "*b*",
        "a\nb\nc",
        "b\nc",
        "a\nb",
        "b",
    )


def test_strict_and_loose_at_both_levels():
    task = load_task(f"ifeval={FILE}")
    prompts = {name: question.prompt for name, question in task.questions.items()}
    model = oracle(
        {
            prompts["7"]: "Sure, here they are:\nElbe Oder Rhine",
            prompts["8"]: "Cranes creak. *That is all.*",
            prompts["8.2"]: "A boat.",
            prompts["10"]: "the key is under the mat",
        }
    )
    outcomes = {one.id: one for one in task.answer(model, task.ids)}
    assert [o.score for o in outcomes.values() if o.weight] == [0.0, 0.0, 0.0, 1.0]
    assert outcomes["7"].detail["loose"] == [True]
    assert outcomes["8"].detail["strict"] == [True, True, False]
    assert outcomes["8"].detail["loose"] == [True, True, True]
    notes = task.notes(list(outcomes.values()))
    assert notes[0] == (
        "prompt-level strict 25.0 %, instruction-level strict 50.0 %, "
        "prompt-level loose 75.0 %, instruction-level loose 83.3 %"
    )


def test_what_cannot_be_checked_is_named_and_neither_passed_nor_asked():
    task, model = load_task(f"ifeval={FILE}"), FakeModel(write=lambda prompt: "Tee")
    outcomes = task.answer(model, task.ids)
    assert [(o.id, o.weight) for o in outcomes] == [("7", 1), ("8", 1), ("8.2", 1), ("9", 0), ("10", 1)]
    assert len(model.prompts) == 4
    (note,) = [note for note in task.notes(outcomes) if "not checkable" in note]
    assert note.startswith(
        "1 prompts are left out as not checkable (9); 1: telling a language needs langdetect"
    )
    assert any("judged by its letters alone" in note for note in task.notes(outcomes))


def test_a_language_is_told_where_it_can_be(monkeypatch):
    without = load_task(f"ifeval={FILE}").digest
    monkeypatch.setattr(ifeval, "language_detector", lambda: german_or_english)
    monkeypatch.setattr(ifeval, "version", lambda package: "1")
    task = load_task(f"ifeval={FILE}")
    (outcome,) = task.answer(FakeModel(write=lambda prompt: "Der Tee."), ["9"])
    assert (outcome.score, outcome.weight) == (1.0, 1.0)
    assert not any("letters alone" in note for note in task.notes([outcome]))
    assert task.digest != without


def test_arguments_the_file_does_not_give(tmp_path):
    path = tmp_path / "i.jsonl"
    rows = [
        {
            "key": 1,
            "prompt": "x",
            "original_prompt": "Say a",
            "instruction_id_list": ["punctuation:no_comma"],
        },
        {"key": 2, "prompt": "x", "original_prompt": "Say b", "instruction_id_list": ["keywords:existence"]},
        {"key": 3, "prompt": "Say c", "instruction_id_list": ["made:up"], "kwargs": [{}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, model = load_task(f"ifeval={path}"), FakeModel(write=lambda prompt: "a")
    outcomes = task.answer(model, task.ids)
    assert model.prompts == ["Say a"]
    assert [o.detail.get("not_checked") for o in outcomes] == [
        None,
        "the file does not give keywords",
        "made:up is not among the 25 instructions known here",
    ]
    path.write_text(json.dumps(rows[1]))
    with pytest.raises(DamagedInputError, match="none of its 1 questions can be checked"):
        load_task(f"ifeval={path}")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kwargs": [{}, {}]}, "'kwargs' is not a list of 1 objects, one for each instruction"),
        ({"kwargs": {}}, "'kwargs' is not a list of 1 objects"),
        ({"instruction_id_list": []}, "'instruction_id_list' is empty"),
        ({"prompt": None}, "'prompt' is missing"),
        ({"kwargs": [{"num_words": "few", "relation": "at least"}]}, "the instruction's num_words is 'few'"),
        ({"kwargs": [{"num_words": 2, "relation": "about"}]}, "the instruction's relation is 'about'"),
    ],
)
def test_odd_questions_are_named(tmp_path, change, what):
    path = tmp_path / "i.jsonl"
    row = {
        "key": 1,
        "prompt": "x",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 2.0, "relation": "at least"}],
    }
    path.write_text(json.dumps(row))
    load_task(f"ifeval={path}")
    path.write_text("\n" + json.dumps({**row, **change}))
    with pytest.raises(DamagedInputError) as caught:
        load_task(f"ifeval={path}")
    assert str(caught.value).startswith(what)
    assert f"in {path}:2;" in str(caught.value)


def test_an_unknown_instruction_cannot_be_checked():
    with pytest.raises(NotCheckableError, match="made:up"):
        check_for("made:up", Arguments({}, "f:1", None))


def test_each_option_changes_the_digest():
    variants_ = [{}, {"limit": 2}, {"chat": True}, {"max_tokens": 9}]
    assert len({load_task(f"ifeval={FILE}", **given).digest for given in variants_}) == 4
    model = FakeModel(template="<{}>")
    load_task(f"ifeval={FILE}", chat=True).answer(model, ["7"])
    assert model.prompts == ["<Name three rivers. Use no commas.>"]
    assert (model.decodings[0].tokens, model.decodings[0].stop) == (1280, ())


def test_langdetect_says_the_same_every_time():
    pytest.importorskip("langdetect")
    detect = language_detector()
    assert detect is not None
    assert detect("Der Tee steht auf dem Tisch und wird langsam kalt.") == "de"
    assert len({detect("ok la") for _ in range(40)}) == 1
    assert detect("12 345") is None
