"""GSM8K: prompts, filters and scores, by hand and against lm-eval's stock task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import TASKS, FakeModel, oracle

from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.evaluate.local.catalogue import load_task
from deltasmith.evaluate.local.gsm8k import FILTERS, extract, same_answer

TEST, TRAIN = TASKS / "gsm8k.jsonl", TASKS / "gsm8k_train.jsonl"


def load(**options):
    return load_task(f"gsm8k={TEST}", **options)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" 3*4 = 12\n#### 12", "12", "12"),
        (" #### 12 and not 13", "12", "13"),
        (" it is $1,234.", "[invalid]", "$1,234."),
        (" #### -9", "-9", "-9"),
        (" nothing at all", "[invalid]", "[invalid]"),
        ("####12", "[invalid]", "12"),
        (" 7", "[invalid]", "7"),
        ("", "[invalid]", "[invalid]"),
    ],
)
def test_filters_by_hand(text, strict, flexible):
    assert (extract(text, FILTERS[0]), extract(text, FILTERS[1])) == (strict, flexible)


@pytest.mark.parametrize(
    ("found", "answer", "same"),
    [
        ("1,234", "so.\n#### 1234", True),
        ("$12", "#### 12", True),
        ("12.", "#### 12", True),
        ("12.0", "#### 12", False),
        ("12 PM", "#### 12 pm", True),
        ("[invalid]", "#### 12", False),
    ],
)
def test_what_counts_as_the_same_number(found, answer, same):
    assert same_answer(found, answer) is same


def test_an_oracle_is_right_and_silence_is_wrong():
    task = load()
    references = {question.prompt: question.answer for question in task.questions.values()}
    assert [o.score for o in task.answer(oracle(references), task.ids)] == [1.0] * 6
    assert [o.score for o in task.answer(FakeModel(), task.ids)] == [0.0] * 6


def test_the_two_filters_are_kept_apart():
    task = load()
    outcomes = task.answer(FakeModel(write=lambda prompt: " so 12"), task.ids)
    assert [o.score for o in outcomes] == [0.0] * 6
    assert [o.detail["flexible-extract"] for o in outcomes] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert outcomes[0].detail["text"] == " so 12"
    assert task.notes(outcomes) == ("strict-match 0.0 %, flexible-extract 16.7 %; the score is strict-match",)


def test_prompt_and_stop_are_lm_evals():
    model, task = FakeModel(), load()
    task.answer(model, ["1"])
    (prompt,), (decoding,) = model.prompts, model.decodings
    assert prompt == (
        "Question: A printer costs $1,200 and a cable costs $34. What do both cost together?\nAnswer:"
    )
    assert (decoding.tokens, decoding.stop) == (256, ("Question:", "</s>", "<|im_end|>"))


def test_examples_are_the_first_of_the_train_file():
    prompt = load(train=TRAIN, shots=2).questions["0"].prompt
    first, second, third = prompt.split("\n\n")
    assert first.startswith("Question: A cat has 4 kittens")
    assert first.endswith("\nAnswer: 4+5 = <<4+5=9>>9 kittens.\n#### 9")
    assert second.endswith("#### 18")
    assert third.endswith("How many sticks do 4 kites need?\nAnswer:")
    assert load(train=TRAIN).questions["0"].prompt.count("Question:") == 6
    assert load(train=TRAIN, shots=0).questions["0"].prompt.count("Question:") == 1


def test_examples_that_are_not_there():
    with pytest.raises(RecipeError, match="2 examples are asked for and no train file"):
        load(shots=2)
    with pytest.raises(DamagedInputError, match="6 examples are asked for and it holds 5"):
        load(train=TRAIN, shots=6)


def test_a_chat_wraps_the_whole_prompt():
    model = FakeModel(template="<user>{}</user>")
    load(chat=True, train=TRAIN, shots=1).answer(model, ["0"])
    assert model.prompts[0].startswith("<user>Question: A cat")
    assert model.prompts[0].endswith("Answer:</user>")


def test_each_option_changes_the_digest():
    variants = [
        {},
        {"limit": 2},
        {"chat": True},
        {"max_tokens": 9},
        {"train": TRAIN, "shots": 1},
        {"train": TRAIN, "shots": 2},
        {"train": TRAIN, "shots": 0},
    ]
    assert len({load(**given).digest for given in variants}) == len(variants)
    assert load().digest == load().digest


def test_the_digest_follows_the_file(tmp_path):
    copy = tmp_path / "other.jsonl"
    copy.write_bytes(TEST.read_bytes())
    assert load_task(f"gsm8k={copy}").digest == load().digest
    copy.write_bytes(TEST.read_bytes().replace(b"kites", b"drums"))
    assert load_task(f"gsm8k={copy}").digest != load().digest


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text('{"question": "Why?", "answer": "#### 1"}\n{"question": "How?"}\n')
    with pytest.raises(DamagedInputError, match=f"'answer' is missing in {path}:2"):
        load_task(f"gsm8k={path}")


# What a small model may write, and what trips filters: several numbers, signs, dollars, full stops, nothing.
WRITTEN = [
    " 3*4 = 12\n#### 12",
    " #### $1,234\n",
    " He is at -9.",
    " #### 2.5 litres, so 2.50",
    " 15.\n\nQuestion: and now? 99",
    " I do not know....",
    " ####6 or #### 6, or #### 7",
    "",
    " #### ,",
    " The answer is 1,234.",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shots", [0, 3])
def test_lm_eval_asks_and_scores_the_same(tmp_path, shots):
    stock = _stock_task(tmp_path, shots)
    ours = load(train=TRAIN, shots=shots)
    stock.build_all_requests(limit=None, rank=0, world_size=1)
    assert [one.args[0] for one in stock.instances] == [ours.questions[name].prompt for name in ours.ids]
    for text in WRITTEN:
        model = FakeModel(write=lambda prompt, text=text: text)
        for one in stock.instances:
            one.resps, one.filtered_resps = model.generate([one.args[0]], _decoding(one)), {}
        stock.apply_filters()
        for one, outcome in zip(stock.instances, ours.answer(model, ours.ids), strict=True):
            for how in FILTERS:
                theirs = stock.process_results(one.doc, [one.filtered_resps[how]])["exact_match"]
                assert outcome.detail[how] == theirs, (text, how, outcome)
            assert outcome.score == outcome.detail["strict-match"]


def _decoding(instance):
    from deltasmith.evaluate.language import Decoding

    return Decoding(256, tuple(instance.args[1]["until"]))


def _stock_task(tmp_path: Path, shots: int):
    """Build lm-eval's own gsm8k task from its own YAML on our file, with the first examples of the train file."""
    lm_eval = pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.api.task import ConfigurableTask

    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    config |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"train": str(TRAIN), "test": str(TEST)},
            "cache_dir": str(tmp_path),
        },
        "num_fewshot": shots,
        "fewshot_config": {"sampler": "first_n"},
    }
    return ConfigurableTask(config=json.loads(json.dumps(config)))


@pytest.mark.parametrize("answer", ["So it is 12.", "", "####12", "#### twelve", "#### "])
def test_an_answer_without_its_number_is_named(tmp_path, answer):
    path = tmp_path / "g.jsonl"
    lines = [{"question": "Why?", "answer": "#### 1"}, {"question": "How?", "answer": answer}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DamagedInputError, match=f"'answer' holds no #### NUMBER in {path}:2"):
        load_task(f"gsm8k={path}")


def test_numbers_are_written_in_many_ways(tmp_path):
    path = tmp_path / "g.jsonl"
    numbers = ("1,234", "-5", "$12", "-$3", "$-3", "0.5", ".5")
    path.write_text("".join(json.dumps({"question": "?", "answer": f"#### {n}"}) + "\n" for n in numbers))
    assert len(load_task(f"gsm8k={path}").ids) == len(numbers)
