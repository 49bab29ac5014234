"""lm-eval's tasks asked question by question: scores, weights and averages are its own, and so are the prompts."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import socket

import numpy as np
import pytest
import yaml
from fakes import FakeModel

from deltasmith.errors import DamagedInputError, MissingExtraError, RecipeError, RefusedError
from deltasmith.evaluate.language import Likelihood, TokenLoss
from deltasmith.evaluate.models.numpy_model import NumpyModel
from deltasmith.evaluate.results import weighted_average
from deltasmith.evaluate.sandbox import choose_tier
from deltasmith.lab import family_folder

pytest.importorskip("lm_eval")

import datasets
import lm_eval.tasks

import evaluate
from deltasmith.evaluate.harness import harness_model, harness_tasks
from deltasmith.evaluate.harness_loading import SandboxedCodeEval, hushed, running_code

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's warnings are theirs

ROWS = [
    {"q": f"What is {a} and {b}?", "choices": [str(a + b), str(a - b), f"{a}{b}"], "label": (a * b) % 3}
    for a, b in ((1, 2), (3, 4), (5, 1), (9, 7), (2, 2), (8, 6))
]
CHOICE = {
    "task": "choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
ROLLING = {
    "task": "rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{q}}",
    "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}
LAST_WORD = {
    "task": "last_word",
    "output_type": "loglikelihood",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{' ' + choices[0]}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
WRITING = {
    "task": "writing",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{choices[0]}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 7},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a task file, with data beside it, and returns the folder."""
    root = tmp_path / "tasks"
    root.mkdir()
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def write(task, **changes):
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "data.jsonl")}}}
        text = yaml.safe_dump(data | {"test_split": "test"} | task | changes)
        # A function is written "function NAME": its tag cannot be dumped safely.
        (root / f"{task['task']}.yaml").write_text(text.replace("function utils.", "!function utils."))
        return root

    return write


@pytest.fixture(scope="module")
def model():
    return NumpyModel.load(family_folder() / "base")


def load(root, name, **options):
    (task,) = harness_tasks([name], include_path=root, **options)
    return task


def by_lm_eval(root, name, model, **options):
    with hushed():
        manager = lm_eval.tasks.TaskManager(include_path=str(root), include_defaults=False)
        return lm_eval.simple_evaluate(
            model=harness_model(model), tasks=[name], task_manager=manager, bootstrap_iters=0, **options
        )


def average(task, outcomes):
    return weighted_average([o.score for o in outcomes], [o.weight for o in outcomes], task.average)


@pytest.mark.parametrize(
    ("config", "metric", "kind", "up"),
    [
        (CHOICE, "acc", "mean", True),
        (ROLLING, "word_perplexity", "perplexity", False),
        (ROLLING | {"metric_list": [{"metric": "bits_per_byte"}]}, "bits_per_byte", "mean", False),
        (LAST_WORD, "perplexity", "perplexity", False),
        (WRITING, "exact_match", "mean", True),
    ],
    ids=lambda value: value["metric_list"][0]["metric"] if isinstance(value, dict) else "",
)
def test_a_task_averages_to_lm_evals_figure(folder, model, config, metric, kind, up):
    root = folder(config)
    task = load(root, config["task"])
    outcomes = [o for name in task.ids for o in task.answer(model, [name])]
    theirs = by_lm_eval(root, config["task"], model)["results"][config["task"]]
    assert (task.metric, task.average, task.higher_is_better) == (metric, kind, up)
    assert list(task.ids) == [str(i) for i in range(len(ROWS))]
    assert average(task, outcomes) == pytest.approx(theirs[f"{metric},none"], rel=1e-5)
    others = [
        key
        for key in theirs
        if key.endswith(",none") and "stderr" not in key and metric not in key.split(",")
    ]
    others = [f"{key} {theirs[key]:.4g}" for key in others]
    # What a journal keeps as JSON gives the same notes.
    kept = [type(o)(o.id, o.score, o.weight, json.loads(json.dumps(dict(o.detail)))) for o in outcomes]
    assert task.notes(kept) == ((f"also: {'; '.join(others)}",) if others else ())


def test_every_outcome_is_finite_and_keeps_what_was_said(folder, model):
    task = load(folder(ROLLING), "rolling")
    for row, outcome in zip(ROWS, task.answer(model, task.ids), strict=True):
        assert outcome.weight == len(row["q"].split())
        assert math.isfinite(outcome.score)
        assert outcome.detail["responses"][0] == pytest.approx(-outcome.score * outcome.weight)


def test_examples_are_drawn_as_lm_eval_draws_them(folder):
    root = folder(WRITING, training_split="test", fewshot_split="test", num_fewshot=2)
    ours, theirs = FakeModel(), FakeModel()
    task = load(root, "writing")
    for name in reversed(task.ids):
        task.answer(ours, [name])
    by_lm_eval(root, "writing", theirs)
    assert sorted(ours.prompts) == sorted(theirs.prompts)
    assert all(prompt.count("What is") == 3 for prompt in ours.prompts)
    assert ours.decodings[0].stop == ("\n",)
    assert ours.decodings[0].tokens == 7


def test_shots_and_limit(folder):
    root = folder(WRITING, training_split="test", fewshot_split="test")
    fake = FakeModel()
    task = load(root, "writing", shots=1, limit=2)
    task.answer(fake, task.ids)
    assert [prompt.count("What is") for prompt in fake.prompts] == [2, 2]
    assert load(root, "writing", limit=3).ids == ("0", "1", "2")


def test_shots_leave_alone_a_task_that_is_fixed_at_none(folder):
    root = folder(WRITING, num_fewshot=0)
    fake = FakeModel()
    load(root, "writing", shots=2).answer(fake, ["0"])
    assert fake.prompts[0].count("What is") == 1


def test_a_model_does_not_see_the_answers_of_another(folder):
    task = load(folder(WRITING), "writing")
    right = task.answer(FakeModel(lambda prompt: str(sum(map(int, prompt[8:-1].split(" and "))))), task.ids)
    wrong = task.answer(FakeModel(lambda prompt: "no"), task.ids)
    assert ([o.score for o in right], [o.score for o in wrong]) == ([1.0] * 6, [0.0] * 6)


def test_repetitions_are_generated_once(folder):
    filters = [{"name": "most", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}]
    task = load(folder(WRITING, repeats=3, filter_list=filters), "writing")
    fake = FakeModel(lambda prompt: "3")
    assert task.answer(fake, ["0"])[0].score == 1.0
    assert len(fake.prompts) == 1


def test_the_digest_follows_what_decides_the_outcomes(folder, tmp_path):
    root = folder(WRITING, training_split="test", fewshot_split="test", num_fewshot=1)
    first = load(root, "writing").digest
    assert load(root, "writing").digest == first
    moved = tmp_path / "moved"
    root.rename(moved)
    path = moved / "writing.yaml"
    original = path.read_text().replace(str(root), str(moved))
    path.write_text(original)
    assert load(moved, "writing").digest == first
    seen = {first, load(moved, "writing", shots=2).digest, load(moved, "writing", limit=2).digest}
    for before, after in (("max_gen_toks: 7", "max_gen_toks: 8"), ("{{choices[0]}}", "{{choices[1]}}")):
        path.write_text(original.replace(before, after))
        seen.add(load(moved, "writing").digest)
    path.write_text(original)
    (moved / "data.jsonl").write_text((moved / "data.jsonl").read_text().replace("9 and 7", "9 and 8"))
    seen.add(load(moved, "writing").digest)
    assert len(seen) == 6


def test_rolling_adds_up_the_windows():
    fake = FakeModel(lose=lambda text: [TokenLoss(1.5, 2, 0), TokenLoss(2.0, 1, 0)])
    request = lm_eval.api.instance.Instance("loglikelihood_rolling", {}, ("abc",), 0)
    assert harness_model(fake).loglikelihood_rolling([request]) == [-3.5]


def test_likelihoods_are_passed_on():
    fake = FakeModel(weigh=lambda asked: Likelihood(-2.5, 3, True))
    request = lm_eval.api.instance.Instance("loglikelihood", {}, ("a", "b"), 0)
    assert harness_model(fake).loglikelihood([request]) == [(-2.5, True)]
    assert (fake.asked[0].context, fake.asked[0].text, fake.asked[0].ends) == ("a", "b", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"do_sample": True, "temperature": 0.7}, r"do_sample \(temperature 0\.7\)"),
        ({"temperature": 0.7}, r"temperature 0\.7"),
        ({"num_beams": 4}, "num_beams"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
    ],
)
def test_what_is_not_greedy_is_refused(folder, options, words):
    with pytest.raises(RefusedError, match=words):
        load(folder(WRITING, generation_kwargs={"until": ["\n"], **options}), "writing")


def test_greedy_in_other_words_is_not(folder):
    spoken = {"until": "\n", "do_sample": False, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3}
    fake = FakeModel()
    load(folder(WRITING, generation_kwargs=spoken), "writing").answer(fake, ["0"])
    assert (fake.decodings[0].tokens, fake.decodings[0].stop) == (3, ("\n",))


def test_a_metric_of_the_whole_corpus_is_passed_over_or_refused(folder, model):
    f1 = {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}
    task = load(folder(CHOICE, metric_list=[f1, *CHOICE["metric_list"][:1]]), "choice")
    assert task.metric == "acc"
    assert "mcc comes first, but has no score per question" in task.notes(task.answer(model, task.ids))
    with pytest.raises(RefusedError, match=r"its metrics \(mcc\) have no score per question"):
        load(folder(CHOICE, metric_list=[f1]), "choice")


def test_a_document_without_a_value_does_not_count(folder):
    root = folder(WRITING, process_results="function utils.score")
    (root / "utils.py").write_text(
        "def score(doc, results):\n    return {} if doc['label'] else {'exact_match': 1, 'own': [2]}\n"
    )
    task = load(root, "writing")
    outcomes = task.answer(FakeModel(), task.ids)
    assert [o.weight for o in outcomes] == [float(row["label"] == 0) for row in ROWS]
    assert average(task, outcomes) == 1.0


def test_pictures_are_refused(folder):
    with pytest.raises(RefusedError, match="pictures"):
        load(folder(WRITING, doc_to_image="q"), "writing")


UTILS = """\
import evaluate
code_eval = evaluate.load("code_eval")

def programs(resps, docs):
    return [["def f(x):\\n" + one for one in some] for some in resps]

def passes(references, predictions, k):
    return code_eval.compute(references=references, predictions=predictions, k=k)[0]
"""
CODE = WRITING | {
    "unsafe_code": True,
    "doc_to_target": "assert f(2) == 4",
    "metric_list": [
        {"metric": "function utils.passes", "k": [1], "aggregation": "mean", "higher_is_better": True}
    ],
    "filter_list": [
        {"name": "made", "filter": [{"function": "custom", "filter_fn": "function utils.programs"}]}
    ],
}


def test_generated_code_runs_in_the_sandbox_alone(folder, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    root = folder(CODE)
    (root / "utils.py").write_text(UTILS)
    with pytest.raises(RefusedError, match="allow it with --run-code"):
        load(root, "writing")
    before = evaluate.load
    task = load(root, "writing", tier=choose_tier("auto"))
    assert evaluate.load is before
    written = iter(
        ["  return 2 * x", "  return 5", "  import os; os._exit(0)", "  return (", "  print('passed')", ""]
    )
    outcomes = task.answer(FakeModel(lambda prompt: next(written)), task.ids)
    assert [o.score for o in outcomes] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert task.metric == "pass@1"
    assert task.notes(outcomes) == ()
    assert "HF_ALLOW_CODE_EVAL" not in os.environ
    # The module stays loaded in this process; another task that may not run code still does not.
    with pytest.raises(RefusedError, match="allow it with --run-code"):
        load(root, "writing")


def test_code_run_by_other_means_is_refused(folder):
    root = folder(CODE)
    (root / "utils.py").write_text(UTILS.replace('evaluate.load("code_eval")', "None"))
    with pytest.raises(RefusedError, match="by means of its own"):
        load(root, "writing", tier=choose_tier("auto"))


def test_code_eval_is_not_answered_unflagged(folder):
    root = folder(CODE, unsafe_code=False)
    (root / "utils.py").write_text(
        UTILS + 'code_eval.compute(references=["1"], predictions=[["2"]], k=[1])\n'
    )
    with pytest.raises(RefusedError, match="allow it with --run-code"):
        load(root, "writing")


def test_pass_at_k_is_the_unbiased_estimate():
    with running_code(choose_tier("auto")):
        rates, verdicts = SandboxedCodeEval().compute(
            references=["assert f() == 1"],
            predictions=[["f = lambda: 1", "f = lambda: 2", "f = lambda: 1", "f = None"]],
            k=[1, 2, 5],
        )
    assert rates["pass@1"] == pytest.approx(0.5)
    assert rates["pass@2"] == pytest.approx(1 - 1 / 6)
    assert math.isnan(rates["pass@5"])
    assert [passed for passed, _ in verdicts[0]] == [True, False, True, False]


def test_absent_data_are_one_line(folder):
    root = folder(WRITING, dataset_kwargs={"data_files": {"test": "absent.jsonl"}})
    with pytest.raises(DamagedInputError, match="lm-eval cannot get the data set") as caught:
        load(root, "writing")
    assert "\n" not in str(caught.value)
    assert "--include-path" in str(caught.value)


def test_a_missing_package_is_named(folder):
    root = folder(WRITING, process_docs="function utils.only")
    (root / "utils.py").write_text("import abacus_of_old\n")
    with pytest.raises(MissingExtraError, match="pip install abacus_of_old"):
        load(root, "writing")


def test_a_task_that_fails_is_one_line(folder):
    root = folder(WRITING, process_results="function utils.score")
    (root / "utils.py").write_text("def score(doc, results):\n    return {'exact_match': 1 / 0}\n")
    task = load(root, "writing")
    with pytest.raises(DamagedInputError, match="ZeroDivisionError"):
        task.answer(FakeModel(), ["0"])


def test_a_missing_folder_of_tasks(tmp_path):
    with pytest.raises(DamagedInputError, match="there is no such folder"):
        harness_tasks(["writing"], include_path=tmp_path / "absent")


def test_the_terminal_stays_clean_and_nothing_stays_changed(folder, capfd):
    root = folder(WRITING, training_split="test", fewshot_split="test", num_fewshot=1)
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002

    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), logging.root.manager.disable  # noqa: NPY002

    before = state()
    task = load(root, "writing")
    task.answer(FakeModel(), task.ids)
    assert state() == before
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_an_unknown_name_and_an_absent_stock_data_set(monkeypatch):
    """Both need lm-eval's whole index, which takes seconds: once is enough."""
    manager = lm_eval.tasks.TaskManager()
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: manager)
    with pytest.raises(RecipeError, match=r"lm-eval knows no task 'gsm8kk'; did you mean 'gsm8k'\?"):
        harness_tasks(["gsm8kk"])
    with pytest.raises(RefusedError, match="allow it with --run-code"):
        harness_tasks(["mbpp"])

    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DamagedInputError, match="lm-eval cannot get the data set"):
        harness_tasks(["arc_easy"])


def test_without_lm_eval_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "deltasmith\[eval\]"'):
        harness_tasks(["gsm8k"])
