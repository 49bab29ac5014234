"""MBPP and HumanEval: prompts, the programs that reach the sandbox, and that nothing runs unasked."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from fakes import TASKS, FakeModel, oracle

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.evaluate.local.catalogue import load_task
from deltasmith.evaluate.local.programs import fenced
from deltasmith.evaluate.sandbox.verdict import Limits, Program, Verdict

MBPP, HUMANEVAL = TASKS / "mbpp.jsonl", TASKS / "humaneval.jsonl"
BOTH = [f"mbpp={MBPP}", f"humaneval={HUMANEVAL}"]


class Runner:
    """Stand in for the sandbox: run our own harmless fixtures in this process, and keep what was run."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def run_many(self, programs, tier, limits):
        assert (tier, limits) == ("tier", Limits())
        self.programs += programs
        return [self.run(program) for program in programs]

    @staticmethod
    def run(program: Program) -> Verdict:
        names: dict[str, object] = {}
        try:
            for part in (program.candidate, program.setup, program.tests):
                exec(compile(part, "program", "exec"), names)
        except Exception as error:
            return Verdict(False, f"failed: {type(error).__name__}")
        return Verdict(True, "passed", "x" * 5000)


@pytest.fixture
def runner(monkeypatch):
    found = Runner()
    module = types.ModuleType("deltasmith.evaluate.sandbox")
    module.run_many, module.Limits, module.Program = found.run_many, Limits, Program
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


@pytest.mark.parametrize("spec", BOTH)
def test_without_a_tier_nothing_is_built(spec):
    with pytest.raises(RefusedError) as caught:
        load_task(spec)
    assert str(caught.value) == "running generated code is off; allow it with --run-code"
    assert caught.value.exit_code == 1


def mbpp(**options):
    return load_task(f"mbpp={MBPP}", **{"tier": "tier", **options})


def humaneval(**options):
    return load_task(f"humaneval={HUMANEVAL}", **{"tier": "tier", **options})


def rows(path: Path) -> dict[str, dict]:
    return {str(row["task_id"]): row for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.usefixtures("runner")
def test_mbpp_asks_the_test_split_after_three_examples_of_the_file():
    task = mbpp()
    assert list(task.ids) == ["11", "12", "510"]
    *examples, last = task.questions["11"].prompt.split("[DONE]\n\n")
    assert examples[0] == (
        "You are an expert Python programmer, and here is your task: Write a function to double a number. "
        "Your code should pass these tests:\n\nassert double(2) == 4\nassert double(0) == 0\n"
        "assert double(-3) == -6\n[BEGIN]\ndef double(n):\r\n  return 2 * n\n"
    )
    assert ["shortest" in examples[1], "mirrored" in examples[2], len(examples)] == [True, True, 3]
    assert last.startswith(
        "You are an expert Python programmer, and here is your task: Write a function to count"
    )
    assert last.endswith("assert vowels('') == 0\n[BEGIN]\n")
    assert list(mbpp(split="all").ids) == ["1", "2", "3", "4", "11", "12", "510", "511"]
    assert mbpp(shots=0).questions["11"].prompt == last
    with pytest.raises(DamagedInputError, match="4 examples are asked for, and it holds 3"):
        mbpp(shots=4)


def test_mbpp_runs_what_was_generated_with_setup_and_tests(runner):
    task = mbpp()
    code = {task.questions[name].prompt: rows(MBPP)[name]["code"] + "\n[DONE]\nnoise" for name in task.ids}
    model = oracle(code)
    outcomes = task.answer(model, task.ids)
    assert [o.score for o in outcomes] == [1.0, 1.0, 1.0]
    assert model.decodings[0].stop == ("[DONE]",)
    assert model.decodings[0].tokens == 256
    assert "noise" not in runner.programs[0].candidate
    assert runner.programs[2].setup.startswith("class Node")
    assert runner.programs[0].tests == "\n".join(rows(MBPP)["11"]["test_list"])
    assert (outcomes[0].detail["reason"], len(outcomes[0].detail["output"])) == ("passed", 2000)


@pytest.mark.usefixtures("runner")
def test_a_wrong_program_fails_and_is_counted():
    task = mbpp()
    outcomes = task.answer(FakeModel(write=lambda prompt: "def vowels(word):\n  return 3"), task.ids)
    assert [o.score for o in outcomes] == [0.0, 0.0, 0.0]
    assert task.notes(outcomes) == ("not passed: 3 failed",)
    assert task.notes(task.answer(FakeModel(), [])) == ()


@pytest.mark.usefixtures("runner")
def test_mbpp_refuses_odd_files(tmp_path):
    path = tmp_path / "m.jsonl"
    good = rows(MBPP)["1"]
    path.write_text(json.dumps({**good, "task_id": "one"}) + "\n")
    with pytest.raises(DamagedInputError, match=f"'task_id' is 'one', not a whole number in {path}:1"):
        load_task(f"mbpp={path}", tier="tier")
    path.write_text(json.dumps(good) + "\n")
    with pytest.raises(DamagedInputError, match="it has no test question"):
        load_task(f"mbpp={path}", tier="tier")
    path.write_text(2 * (json.dumps({**good, "task_id": 11}) + "\n"))
    with pytest.raises(DamagedInputError, match=f"the id 11 comes twice in {path}:2"):
        load_task(f"mbpp={path}", tier="tier")
    path.write_text(json.dumps({**good, "task_id": 11, "test_list": "assert"}) + "\n")
    with pytest.raises(DamagedInputError, match=f"'test_list' is not a list of strings in {path}:1"):
        load_task(f"mbpp={path}", tier="tier")


@pytest.mark.usefixtures("runner")
def test_humaneval_completes_prompts_and_calls_the_check_once():
    task = humaneval()
    assert list(task.ids) == ["Made/0", "Made/1"]
    assert task.questions["Made/0"].tests.endswith("\ncheck(triple)")
    assert task.questions["Made/1"].tests.count("check(odd_ones)") == 2  # its definition and its one call
    answers = {task.questions[name].prompt: rows(HUMANEVAL)[name]["canonical_solution"] for name in task.ids}
    model = oracle({prompt: text + "\ndef noise(:" for prompt, text in answers.items()})
    assert [o.score for o in task.answer(model, task.ids)] == [1.0, 1.0]
    assert model.prompts[0] == rows(HUMANEVAL)["Made/0"]["prompt"]
    assert model.decodings[0].stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert model.decodings[0].tokens == 1024
    assert [o.score for o in task.answer(FakeModel(write=lambda p: "    return 6\n"), task.ids)] == [0.0, 0.0]


def test_humaneval_in_a_chat_takes_the_whole_function_from_the_fence(runner):
    answer = "Sure.\n```python\ndef triple(n):\n    # three times\n    return n * 3\n```\nDone."
    model = FakeModel(write=lambda prompt: answer, template="<u>{}</u>")
    (outcome,) = humaneval(chat=True).answer(model, ["Made/0"])
    assert outcome.score == 1.0
    assert model.decodings[0].stop == ()
    assert model.prompts[0].startswith("<u>Complete this Python function.")
    assert runner.programs[0].candidate.startswith(rows(HUMANEVAL)["Made/0"]["prompt"])


@pytest.mark.usefixtures("runner")
def test_mbpp_in_a_chat_takes_the_fenced_block():
    answer = "```python\ndef vowels(word):\n  return sum(c in 'aeiou' for c in word)\n```"
    (outcome,) = mbpp(chat=True).answer(FakeModel(write=lambda prompt: answer), ["11"])
    assert outcome.score == 1.0


@pytest.mark.usefixtures("runner")
def test_programs_in_another_language_are_refused(tmp_path):
    path = tmp_path / "lua.jsonl"
    path.write_text(json.dumps({"task_id": "x", "language": "lua", "prompt": "local", "test": ""}))
    with pytest.raises(DamagedInputError, match=f"'lua', and only Python is run in {path}:1"):
        load_task(f"humaneval={path}", tier="tier")
    path.write_text(json.dumps({"task_id": "x", "prompt": "x = 1", "test": ""}))
    with pytest.raises(DamagedInputError, match="defines no function"):
        load_task(f"humaneval={path}", tier="tier")


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("load", [mbpp, humaneval])
def test_each_option_changes_the_digest_and_the_tier_does_not(load):
    variants = [{}, {"limit": 1}, {"chat": True}, {"max_tokens": 7}, {"limits": Limits(seconds=1)}]
    assert len({load(**given).digest for given in variants}) == len(variants)
    assert load(tier="another").digest == load().digest


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("a\n```py\nx = 1\ny = 2\n  ```\n```\nz\n```", "x = 1\ny = 2\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```python\n```", ""),
    ],
)
def test_fences(text, code):
    assert fenced(text) == code


@pytest.mark.parametrize(("spec", "field"), [(BOTH[0], "code"), (BOTH[1], "canonical_solution")])
def test_references_pass_in_the_real_sandbox_and_silence_does_not(spec, field):
    from deltasmith.evaluate.sandbox import choose_tier

    try:
        tier = choose_tier("auto")
    except RefusedError as refusal:
        pytest.skip(str(refusal))
    task = load_task(spec, tier=tier)
    references = rows(Path(spec.partition("=")[2]))
    model = oracle({task.questions[name].prompt: references[name][field] for name in task.ids})
    assert [o.score for o in task.answer(model, task.ids)] == [1.0] * len(task.ids)
    (silent,) = task.answer(FakeModel(), task.ids[:1])
    assert silent.score == 0.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("shots", [0, 3])
def test_lm_eval_asks_mbpp_the_same(tmp_path, shots):
    lm_eval = pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.api.task import ConfigurableTask

    class Loader(yaml.SafeLoader):
        """Read lm-eval's YAML without running the functions it names: they fetch a script from the network."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    folder = Path(lm_eval.__file__).parent / "tasks/mbpp"
    config = yaml.load((folder / "mbpp.yaml").read_text(), Loader)
    (stop,) = config["generation_kwargs"]["until"]
    examples = [{**rows(MBPP)[str(number)], "is_fewshot": True} for number in (2, 3, 4)]
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(rows(MBPP)[name]) + "\n" for name in mbpp().ids))
    config |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path)},
        "num_fewshot": shots,
        "fewshot_config": {"sampler": "first_n", "samples": examples},
        "metric_list": [{"metric": "exact_match"}],
    }
    stock = ConfigurableTask(config=config)
    stock.build_all_requests(limit=None, rank=0, world_size=1)
    task = mbpp(shots=shots)
    assert [one.args[0] for one in stock.instances] == [task.questions[name].prompt for name in task.ids]
    assert (stop,) == task.decoding.stop
    references = [stock.doc_to_target(one.doc) for one in stock.instances]
    assert references == [task.questions[name].tests for name in task.ids]
