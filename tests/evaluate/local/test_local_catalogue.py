"""The table of local tasks: names, options, suggestions, the bundled family, and exact match."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import TASKS, FakeModel

from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.evaluate.items import load_suite, score
from deltasmith.evaluate.language import Continuation, Likelihood
from deltasmith.evaluate.llama import load_folder
from deltasmith.evaluate.local.catalogue import KINDS, heeded, is_local, load_task, load_tasks, name_apart
from deltasmith.evaluate.local.common import Options
from deltasmith.evaluate.task import Task
from deltasmith.lab import EXPERTS, family_folder
from deltasmith.lab.tokens import BOS, EOS, CharTokenizer

FILES = {
    "blimp": "blimp",
    "gsm8k": "gsm8k.jsonl",
    "humaneval": "humaneval.jsonl",
    "ifeval": "ifeval.jsonl",
    "items": "items.jsonl",
    "mbpp": "mbpp.jsonl",
    "next_token": "text.txt",
    "perplexity": "text.txt",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract(kind):
    pytest.importorskip("deltasmith.evaluate.sandbox.run")
    task: Task = load_task(f"{kind}={TASKS / FILES[kind]}", tier=object())
    assert task.name == kind
    assert KINDS[kind].help
    assert len(task.ids) == len(set(task.ids)) > 0
    assert all(isinstance(name, str) for name in task.ids)
    assert len(task.digest) == 64
    limited = load_task(f"{kind}={TASKS / FILES[kind]}", tier=object(), limit=1)
    assert list(limited.ids) == list(task.ids)[:1]
    if kind not in ("mbpp", "humaneval"):
        backwards = list(reversed(task.ids))
        outcomes = task.answer(FakeModel(), backwards)
        assert [one.id for one in outcomes] == backwards
        assert {o.id: o for o in outcomes} == {o.id: o for o in task.answer(FakeModel(), task.ids)}
        assert task.answer(FakeModel(), []) == []
        assert task.notes([]) == ()


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("gsmk=f", "'gsmk' is no kind of local task; did you mean \"gsm8k\"?"),
        ("zzzz=f", "'zzzz' is no kind of local task; kinds: " + ", ".join(KINDS)),
        ("famly", "'famly' names no local task; did you mean \"family\"?"),
        ("gsm8k", "'gsm8k' names no local task; did you mean \"gsm8k\"?"),
        ("gsm8k=", "'gsm8k=' names no file; write gsm8k=FILE"),
        ("family:maths", "'family:maths' names nothing of the family; did you mean \"math\"?"),
        ("family:math:code", "'family:math:code' names nothing of the family"),
        ("family", "family stands for 3 tasks (math, code and ins); load them with load_tasks"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(spec, line):
    with pytest.raises(RecipeError) as caught:
        load_task(spec)
    assert str(caught.value).startswith(line)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limt": 3}, "'limt' is no option of a local task; did you mean \"limit\"?"),
        ({"limit": 0}, "limit is 0; give at least 1"),
        ({"shots": -1}, "shots is -1; give at least 0"),
        ({"window": 5}, "window is 5; give at least 100"),
        ({"split": "train"}, "split is 'train'; write test or all"),
    ],
)
def test_odd_options_are_refused(options, line):
    with pytest.raises(RecipeError) as caught:
        load_task(f"items={TASKS / 'items.jsonl'}", **options)
    assert str(caught.value) == line


def test_specs_are_told_from_other_names():
    assert [is_local(s) for s in ("gsm8k=x", "family", "family:math", "gsm8k", "familiar")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_tasks_of_one_name_are_told_apart(tmp_path):
    copies = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        copies.append(tmp_path / folder / "items.jsonl")
        copies[-1].write_bytes((TASKS / "items.jsonl").read_bytes())
    other = tmp_path / "more.jsonl"
    other.write_bytes(copies[0].read_bytes())
    options = Options()

    def names(*specs: str) -> list[str]:
        return [task.name for task in name_apart([t for s in specs for t in load_tasks(s, options)])]

    assert names(f"items={other}", f"perplexity={other}") == ["items", "perplexity"]
    assert names(f"items={other}", f"items={copies[0]}") == ["items:more", "items:items"]
    assert names(f"items={other}", *(f"items={copy}" for copy in copies)) == [
        "items:more",
        *(f"items:{copy}" for copy in copies),
    ]
    assert names("family", "family:validation:math") == ["math", "code", "ins", "math:validation"]


def test_the_family_is_bundled():
    for spec, count, names in (
        ("family", 200, ["math", "code", "ins"]),
        ("family:validation", 120, ["math:validation", "code:validation", "ins:validation"]),
        ("family:code", 200, ["code"]),
    ):
        tasks = load_tasks(spec, Options())
        assert [task.name for task in tasks] == names
        assert {len(task.ids) for task in tasks} == {count}
    assert load_task("family:math").digest != load_task("family:validation:math").digest


def test_exact_match_asks_for_the_answer_and_its_end():
    task = load_task(f"items={TASKS / 'items.jsonl'}")
    model = FakeModel(weigh=lambda asked: Likelihood(-1.5, 2, asked.text == "4"))
    outcomes = task.answer(model, task.ids)
    assert [o.score for o in outcomes] == [0.0, 1.0]
    assert [(one.context, one.text, one.ends) for one in model.asked] == [
        ("1+1=\n", "2", True),
        ("2+2=\n", "4", True),
    ]
    assert outcomes[0].detail == {"logprob": -1.5, "tokens": 2}


def test_items_name_a_missing_file(tmp_path):
    with pytest.raises(DamagedInputError, match="cannot be read"):
        load_task(f"items={tmp_path / 'none.jsonl'}")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DamagedInputError, match="it holds no question"):
        load_task(f"items={tmp_path / 'empty.jsonl'}")


def llama_model(folder: Path) -> FakeModel:
    """Ask the bundled Llama itself, one text at a time, splitting the text where the question does."""
    llama, encoder = load_folder(folder), CharTokenizer.load(folder)

    def weigh(asked: Continuation) -> Likelihood:
        before = [BOS, *encoder.encode(asked.context)]
        target = [*encoder.encode(asked.text), *([EOS] if asked.ends else [])]
        logits = llama.logits(np.array([[*before, *target[:-1]]]))[0, len(before) - 1 :].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        picked = logprobs[np.arange(len(target)), target] - logits.max(1)
        return Likelihood(float(picked.sum()), len(target), bool((logits.argmax(1) == target).all()))

    return FakeModel(weigh=weigh)


def test_the_family_scores_what_items_score_does():
    folder, limit = family_folder() / "small" / "math", 30
    items = load_suite(family_folder() / "items", EXPERTS)
    items = [item for item in items if int(item.id.rsplit("-", 1)[1]) < limit]
    expected = score(load_folder(folder), CharTokenizer.load(folder), items).correct
    model = llama_model(folder)
    tasks = load_tasks("family", Options(limit=limit))
    found = {task.name: tuple(bool(o.score) for o in task.answer(model, task.ids)) for task in tasks}
    assert found == expected
    assert 0 < sum(found["math"]) < limit


def test_importing_the_catalogue_loads_no_kind_and_nothing_heavy():
    code = (
        "import sys, deltasmith.evaluate.local.catalogue as c; "
        "heavy = {'torch', 'transformers', 'lm_eval', 'langdetect', 'deltasmith.evaluate.sandbox', "
        "'deltasmith.evaluate.local.ifeval'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_heeds_what_it_says(kind):
    """An option changes a task's digest if, and only if, the kind declares it."""
    pytest.importorskip("deltasmith.evaluate.sandbox.run")
    train = TASKS / "gsm8k_train.jsonl"
    plain = {"tier": object(), **({"train": train} if kind == "gsm8k" else {})}
    bare = load_task(f"{kind}={TASKS / FILES[kind]}", **plain).digest
    changed = [
        name
        for name, value in {"shots": 1, "train": None, "chat": True, "max_tokens": 9}.items()
        if load_task(
            f"{kind}={TASKS / FILES[kind]}",
            **plain | {name: train if name == "train" and kind != "gsm8k" else value},
        ).digest
        != bare
    ]
    assert heeded(f"{kind}=x") == tuple(changed)
