"""What goes wrong in an evaluation: one line, the right exit code, and what was done is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from toys import COUNT, Opened, opens, specs, toy_model, write_files

from deltasmith.errors import DamagedInputError, RecipeError, ResourceError
from deltasmith.evaluate.request import Request, prepare
from deltasmith.evaluate.results import load_evaluation
from models import run


@pytest.fixture
def folder(tmp_path) -> Path:
    write_files(tmp_path)
    return tmp_path


@pytest.fixture
def toy(monkeypatch):
    """Open a toy model, which is returned."""
    model = toy_model()
    opens(monkeypatch, lambda: Opened(model))
    return model


def evaluate(folder: Path, *arguments: object, tasks=("items",)):
    named = [part for spec in specs(folder, *tasks) for part in ("--tasks", spec)]
    return run("evaluate", "toy", *named, "--out", folder / "r.json", "--quiet", "--batch", 1, *arguments)


def assert_one_line(result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert result.out == ""
    assert len(result.err.splitlines()) == len(result.errors) == 1, result.err
    for word in words:
        assert word in result.err


def test_a_missing_task_file(folder, toy):
    (folder / "items.jsonl").unlink()
    assert_one_line(evaluate(folder), 3, "items.jsonl")
    assert not (folder / "r.json").exists()


def test_an_unknown_kind_of_task(folder, toy):
    assert_one_line(run("evaluate", "toy", "--tasks", f"item={folder / 'items.jsonl'}"), 2, '"items"')


def test_no_task_at_all(toy):
    assert_one_line(run("evaluate", "toy", "--tasks", ","), 2, "no task is named")


def test_all_errors_of_a_request_are_said_together_before_the_model_is_loaded(folder, monkeypatch):
    def never() -> Opened:
        raise AssertionError("the model was loaded")

    opens(monkeypatch, never)
    result = run(
        *("evaluate", "toy", "--tasks", f"item=x,items={folder / 'nowhere.jsonl'},family:maths"),
        *("--tasks", f"alpaca={folder / 'none.json'}", "--out", folder, "--judge-command", "no-such-judge"),
        *("--judge-model", folder),
    )
    assert result.code == 2
    assert len(result.errors) == 1
    lines = result.err.splitlines()
    assert lines[0] == "error: 6 problems"
    said = "\n".join(lines)
    for word in ("is a folder", "both given", "kind of local task", "nowhere.jsonl", "maths", "none.json"):
        assert word in said


def test_errors_that_agree_on_the_exit_code_keep_it(folder, toy):
    result = run("evaluate", "toy", "--tasks", f"items={folder / 'a'},items={folder / 'b'}")
    assert (result.code, result.err.splitlines()[0]) == (3, "error: 2 problems")


def test_a_model_that_does_not_load(folder, monkeypatch):
    def broken() -> Opened:
        raise DamagedInputError("the header is torn", where="toy/model.safetensors", fix="fetch it again")

    opens(monkeypatch, broken)
    assert_one_line(evaluate(folder), 3, "header is torn", "model.safetensors")
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith("r.json")) == []


def test_a_model_folder_that_is_missing(folder):
    result = run("evaluate", folder / "nowhere", "--tasks", "family", "--runtime", "numpy", "--quiet")
    assert_one_line(result, 3, "nowhere")


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (lambda: ResourceError("the disk is full"), 4, "the disk is full"),
        (MemoryError, 4, "--batch"),
        (OutOfMemoryError, 4, "--batch"),
    ],
)
def test_a_task_that_fails_leaves_the_others_to_run(folder, monkeypatch, error, code, words):
    model = toy_model(crash_after=8, crash=error)
    opens(monkeypatch, lambda: Opened(model))
    failed = evaluate(folder, tasks=("items", "gsm8k"))
    assert failed.code == code
    assert len(failed.errors) == len(failed.err.splitlines()) == 2  # a line for each task
    assert all(words in line for line in failed.errors)
    result = load_evaluation(folder / "r.json")
    assert not result.complete
    assert len(result.tasks["items"].outcomes) == 8
    assert any(words in note for note in result.tasks["items"].notes)
    assert len(result.tasks["gsm8k"].outcomes) == 0  # this model stays broken, but it was asked
    assert json.loads((folder / "r.json").read_text())["complete"] is False

    healthy = toy_model()
    opens(monkeypatch, lambda: Opened(healthy))
    done = evaluate(folder, tasks=("items", "gsm8k"))
    assert (done.code, done.err) == (0, "")
    assert load_evaluation(folder / "r.json").complete
    assert healthy.questions == 2 * COUNT - 8
    assert not (folder / "r.json.journal").exists()


def test_an_incomplete_result_and_a_journal_add_up(folder, monkeypatch):
    """What a failed run has put into the result file, and what an interrupted one has noted since."""
    opens(monkeypatch, lambda: Opened(toy_model(crash_after=8, crash=MemoryError)))
    assert evaluate(folder).code == 4
    opens(monkeypatch, lambda: Opened(toy_model(crash_after=4)))
    assert evaluate(folder).code == 70  # a bug ends the run at once: nothing is written to the result
    assert len(load_evaluation(folder / "r.json").tasks["items"].outcomes) == 8
    last = toy_model()
    opens(monkeypatch, lambda: Opened(last))
    assert evaluate(folder).code == 0
    assert last.questions == COUNT - 12


def test_only_the_task_at_fault_is_incomplete(folder, monkeypatch):
    def lose(text):
        raise ResourceError("the text is too long")

    opens(monkeypatch, lambda: Opened(toy_model(lose=lose)))
    assert_one_line(evaluate(folder, tasks=("perplexity", "items")), 4, "too long")
    result = load_evaluation(folder / "r.json")
    assert {name: task.complete for name, task in result.tasks.items()} == {
        "perplexity": False,
        "items": True,
    }


def test_a_score_that_is_no_number_is_refused(folder, monkeypatch):
    from deltasmith.evaluate.language import TokenLoss

    opens(monkeypatch, lambda: Opened(toy_model(lose=lambda text: [TokenLoss(float("nan"), 5, 0)])))
    assert_one_line(evaluate(folder, tasks=("perplexity",)), 1, "no number", "perplexity")


def test_a_bug_is_reported_as_one_and_what_was_done_is_kept(folder, monkeypatch):
    opens(monkeypatch, lambda: Opened(toy_model(crash_after=8)))
    assert_one_line(evaluate(folder), 70, "CrashError")
    healthy = toy_model()
    opens(monkeypatch, lambda: Opened(healthy))
    assert evaluate(folder).code == 0
    assert healthy.questions == COUNT - 8


def judge(folder: Path, body: str) -> str:
    path = folder / "judge.py"
    head = "import json, sys\nfor number, line in enumerate(sys.stdin):\n    name = json.loads(line)['id']\n"
    path.write_text(f"{head}    {body}\n")
    return f"{sys.executable} {path}"


GOOD = "print(json.dumps({'id': name, 'preference': 1.5}), flush=True)"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("sys.exit('no credit left')", "no credit left"),
        ("print('As a judge, I cannot')", "As a judge, I cannot"),
        ("print(json.dumps({'id': name, 'preference': 7}))", "between 1 and 2"),
    ],
)
def test_a_judge_that_crashes_or_talks_nonsense(folder, toy, bad, words):
    command = judge(folder, f"({bad}) if number == 6 else {GOOD}")
    failed = evaluate(folder, "--judge-command", command, tasks=("alpaca", "items"))
    assert_one_line(failed, 3, words, "judge.py")
    result = load_evaluation(folder / "r.json")
    assert len(result.tasks["alpaca"].outcomes) == 6
    assert result.tasks["items"].complete
    assert len(json.loads((folder / "model_outputs.json").read_text())) == COUNT

    asked = toy.questions
    repaired = evaluate(folder, "--judge-command", judge(folder, GOOD), tasks=("alpaca", "items"))
    # The repaired script is another judge, so the result of the broken one is not silently replaced ...
    assert_one_line(repaired, 1, "--overwrite")
    repaired = evaluate(
        folder, "--judge-command", judge(folder, GOOD), "--overwrite", tasks=("alpaca", "items")
    )
    assert (repaired.code, repaired.err) == (0, "")
    assert toy.questions == asked  # ... but nothing is generated twice
    assert load_evaluation(folder / "r.json").tasks["alpaca"].score == 0.5


def test_other_names_are_lm_evals_and_what_it_does_not_heed_is_said(folder, toy, monkeypatch):
    from deltasmith.evaluate import harness
    from deltasmith.evaluate.local.catalogue import load_task

    given = {}

    def harness_tasks(names, **options):
        given.update(options, names=list(names))
        return [load_task(f"items={folder / 'items.jsonl'}")]

    monkeypatch.setattr(harness, "harness_tasks", harness_tasks)
    arguments = ("--tasks", "arc_easy", "--limit", 3, "--shots", 0, "--include-path", folder, "--chat")
    assert evaluate(folder, *arguments, "--tasks", "piqa", tasks=("gsm8k",)).code == 0
    assert given == {
        "names": ["arc_easy", "piqa"],
        "include_path": str(folder),
        "limit": 3,
        "shots": 0,
        "tier": None,
    }
    result = load_evaluation(folder / "r.json")
    assert list(result.tasks) == ["gsm8k", "items"]
    assert result.notes == (
        "--chat: not heeded by arc_easy, piqa (lm-eval)",
        "--chat: the model has no chat template, questions are asked as they are",
    )


def test_lm_eval_that_is_not_installed_names_the_extra(folder, toy, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name)
    )
    assert_one_line(run("evaluate", "toy", "--tasks", "arc_easy", "--quiet"), 2, "deltasmith[eval]")


def test_a_judge_that_is_not_there(folder, toy):
    assert_one_line(
        evaluate(folder, "--judge-command", "no-such-judge", tasks=("alpaca",)), 2, "no-such-judge"
    )
    assert_one_line(evaluate(folder, "--judge-model", folder / "none", tasks=("alpaca",)), 3, "config.json")
    assert toy.questions == 0


def test_a_judge_without_a_task_for_it(folder, toy):
    assert_one_line(evaluate(folder, "--judge-command", "cat"), 2, "alpaca=FILE")


def test_a_judge_without_reference_answers(folder, toy):
    examples = json.loads((folder / "alpaca.json").read_text())
    (folder / "alpaca.json").write_text(json.dumps([{"instruction": e["instruction"]} for e in examples]))
    arguments = ("--judge-command", judge(folder, GOOD))
    assert_one_line(evaluate(folder, *arguments, tasks=("alpaca",)), 3, "20 of 20", "--reference")
    (folder / "reference.json").write_text(json.dumps(examples))
    arguments = (*arguments, "--reference", folder / "reference.json")
    assert evaluate(folder, *arguments, tasks=("alpaca",)).code == 0


def test_alpaca_needs_a_place_for_its_outputs(folder, toy):
    result = run("evaluate", "toy", "--tasks", specs(folder, "alpaca")[0])
    assert_one_line(result, 2, "--out")


def test_outputs_of_another_model_are_found_before_anything_is_generated(folder, toy):
    other = [{"dataset": "", "instruction": "x", "output": "y", "generator": "another"}]
    (folder / "model_outputs.json").write_text(json.dumps(other))
    assert_one_line(evaluate(folder, tasks=("alpaca",)), 1, "another", "folder of its own")
    assert toy.questions == 0


def test_annotations_of_another_model(folder, toy):
    path = folder / "annotations.json"
    path.write_text(json.dumps([{"generator_1": "r", "generator_2": "theirs", "preference": 2}]))
    assert_one_line(run("evaluate", "ours", "--tasks", f"annotations={path}", "--quiet"), 1, "theirs")


def test_a_damaged_journal_is_named_with_its_line(folder, toy):
    assert evaluate(folder, "--journal", folder / "j").code == 0
    (folder / "r.json").unlink()
    lines = (folder / "j").read_bytes().splitlines(keepends=True)
    (folder / "j").write_bytes(b"".join([*lines[:4], lines[4].replace(b"1", b"2"), *lines[5:]]))
    assert_one_line(evaluate(folder, "--journal", folder / "j"), 3, "j:5", "delete the line")


def test_a_place_where_nothing_can_be_written(folder, toy):
    (folder / "file").write_text("")
    assert_one_line(evaluate(folder, "--out", folder / "file" / "r.json"), 2, "--out", "no folder")
    assert toy.questions == 0


@pytest.mark.parametrize(("name", "meant"), [("famly", "family"), ("gsm8kk", "gsm8k=FILE")])
def test_a_misspelt_local_task_is_guessed_where_lm_eval_is_not_there(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    with pytest.raises(RecipeError, match=f"did you mean {meant}"):
        prepare(Request("model", (name,)), lambda: False)
