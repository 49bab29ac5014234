"""Items are read strictly and scored as greedy decoding would score them; the record tells the truth."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.items import Item, Scores, load_items, load_suite, score
from deltasmith.evaluate.llama import Llama, load_folder, read_tensors
from deltasmith.lab import BUNDLED_REGIMES, EXPERTS, family_folder
from deltasmith.lab.tokens import BOS, EOS, CharTokenizer

ITEMS = family_folder() / "items"


def greedy(model: Llama, tokenizer: CharTokenizer, prompt: str, longest: int = 40) -> str | None:
    """Decode token by token; None if the model does not stop."""
    ids = [BOS, *tokenizer.encode(prompt)]
    for _ in range(longest):
        best = int(model.logits(np.array([ids]))[0, -1].argmax())
        if best == EOS:
            return tokenizer.decode(ids[1:])[len(prompt) :]
        ids.append(best)
    return None


@pytest.mark.parametrize("task", EXPERTS)
def test_one_pass_agrees_with_decoding(task: str) -> None:
    folder = family_folder() / "base"
    model, tokenizer = load_folder(folder), CharTokenizer.load(folder)
    items = load_items(ITEMS / f"{task}.jsonl")[:25]
    expected = tuple(greedy(model, tokenizer, item.prompt) == item.answer for item in items)
    assert score(model, tokenizer, items).correct == {task: expected}


def test_the_batch_size_changes_no_mark_and_the_order_is_kept() -> None:
    folder = family_folder() / "base"
    model, tokenizer = load_folder(folder), CharTokenizer.load(folder)
    items = load_suite(ITEMS, EXPERTS)[::12]
    alone = {item.id: score(model, tokenizer, [item]).correct[item.task][0] for item in items}
    together = score(model, tokenizer, items, batch=7).correct
    assert {True, False} <= set(alone.values())
    for task in EXPERTS:
        assert together[task] == tuple(alone[item.id] for item in items if item.task == task)


def test_an_answer_that_goes_on_is_wrong() -> None:
    folder = family_folder() / "large" / "math"
    model, tokenizer = load_folder(folder), CharTokenizer.load(folder)
    item = load_items(ITEMS / "math.jsonl")[0]
    whole = score(model, tokenizer, [item]).correct["math"]
    cut = score(model, tokenizer, [Item(item.id, item.task, item.prompt, item.answer[:-1])]).correct["math"]
    assert (whole, cut) == ((True,), (False,))


def test_scores_average_tasks_not_items() -> None:
    scores = Scores({"a": (True, True, False, False), "b": (True,)})
    assert scores.accuracy == {"a": 0.5, "b": 1.0}
    assert scores.mean == 0.75


def test_a_config_without_stop_token_is_refused() -> None:
    folder = family_folder() / "base"
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [2, 3]}
    model = Llama.from_tensors(config, read_tensors(folder))
    with pytest.raises(DamagedInputError) as caught:
        score(model, CharTokenizer.load(folder), [])
    assert (
        str(caught.value)
        == "bos_token_id is 1 and eos_token_id is [2, 3] in config.json; give one id for each"
    )


GOOD = '{"id": "a", "task": "b", "prompt": "c", "answer": "d"}'


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "a"}', GOOD.replace("}", ', "e": "f"}')])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(DamagedInputError) as caught:
        load_items(path)
    fix = "write an object with id, task, prompt and answer"
    assert str(caught.value) == f"this line is no item in {path}:3; {fix}"


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(f"{GOOD}\n" * 2)
    with pytest.raises(DamagedInputError, match=r"the id 'a' comes twice in .*:2; give each item its own id"):
        load_items(path)


def test_the_bundled_accuracies_are_what_the_record_says() -> None:
    record = json.loads((family_folder() / "RECORD.json").read_text())
    items = load_suite(ITEMS, EXPERTS)
    labels = ["base", *(f"{regime}/{task}" for regime in BUNDLED_REGIMES for task in EXPERTS)]
    assert sorted(record["accuracy"]) == sorted(labels)
    for label in labels:
        folder = family_folder() / label
        found = score(load_folder(folder), CharTokenizer.load(folder), items).accuracy
        # One item in 200: another BLAS may round a near-tie to the other side.
        assert found == pytest.approx(record["accuracy"][label], abs=0.0051), label


def test_experts_know_their_task_and_the_base_does_not() -> None:
    accuracy = json.loads((family_folder() / "RECORD.json").read_text())["accuracy"]
    for regime in BUNDLED_REGIMES:
        for task in EXPERTS:
            assert accuracy[f"{regime}/{task}"][task] > accuracy["base"][task] + 0.3


def test_scoring_600_items_is_quick() -> None:
    folder = family_folder() / "base"
    model, tokenizer, items = load_folder(folder), CharTokenizer.load(folder), load_suite(ITEMS, EXPERTS)
    start = time.process_time()
    score(model, tokenizer, items)
    # About half a second of one core; the bound leaves room for slow machines and threads that spin.
    assert time.process_time() - start < 15
