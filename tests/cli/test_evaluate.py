"""`deltasmith evaluate` from the command line: the bundled family, recipes, judges, interruption, what it prints."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from deltasmith.cli.evaluate import _print
from deltasmith.cli.main import _COMMANDS
from deltasmith.evaluate.local.catalogue import KINDS
from deltasmith.evaluate.results import Evaluation, load_evaluation
from deltasmith.lab import family_folder
from models import run, start

MATH = family_folder() / "small" / "math"
NUMPY = ("--runtime", "numpy")


def evaluate(*arguments: object, model: object = MATH):
    return run("evaluate", model, *NUMPY, *arguments)


def test_the_new_commands_are_listed():
    assert {"evaluate", "compare", "tune", "lab"} <= set(_COMMANDS)
    said = run("--help").out
    assert re.search(r"evaluate +score a model or a recipe on tasks", said)
    assert run("evaluate", "--help").code == 0


def test_the_table_and_the_file_say_the_same(tmp_path):
    result = evaluate("--tasks", "family:math,family:ins", "--limit", 10, "--out", tmp_path / "r.json")
    assert result.code == 0
    lines = [re.split(r"  +", line.strip()) for line in result.out.splitlines()]
    assert lines[0] == ["math (numpy)"]
    assert lines[1] == ["task", "metric", "score", "95 % interval", "n"]
    read = load_evaluation(tmp_path / "r.json")
    for line, (name, task) in zip(lines[2:4], read.tasks.items(), strict=True):
        low, high = task.interval
        interval = f"{100 * low:.2f} % – {100 * high:.2f} %"
        assert line == [name, "exact_match", f"{100 * task.score:.2f} %", interval, "10"]
    assert "math: 10 to do" in result.err
    assert "math: 10 / 10" in result.err


def test_json_is_one_document_and_quiet_is_silent(tmp_path):
    result = evaluate("--tasks", "family:code", "--limit", 3, "--json")
    assert list(result.document["tasks"]) == ["code"]
    assert result.err == ""
    assert result.document["complete"] is True
    quiet = evaluate("--tasks", "family:code", "--limit", 3, "--quiet", "--out", tmp_path / "r.json")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert load_evaluation(tmp_path / "r.json").as_json() == result.document


def test_a_recipe_is_merged_evaluated_and_forgotten(tmp_path):
    recipe = tmp_path / "try.yaml"
    family = family_folder()
    recipe.write_text(
        f"base: {family}/base\nmodels:\n  - {{model: {family}/small/math, label: math}}\nmerge: sum\nscale: 0.5\n"
    )
    tasks = ("--tasks", "family:math", "--limit", 8, "--out", tmp_path / "r.json")
    assert evaluate(*tasks, "--set", "scale=1.0", "--quiet", model=recipe).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "try.yaml"]
    whole = load_evaluation(tmp_path / "r.json")
    assert whole.tasks["math"].score == load(evaluate("--tasks", "family:math", "--limit", 8, "--json"))
    refused = evaluate(*tasks, "--quiet", model=recipe)  # λ = 0.5 is another model
    assert (refused.code, "another model" in refused.err) == (1, True)


def load(result) -> float:
    return result.document["tasks"]["math"]["score"]


def alpaca(folder: Path, count: int) -> Path:
    path = folder / "prompts.json"
    entries = [
        {"instruction": f"Ada has {n + 20} cups and gives away 11. How many now?\n", "output": "9"}
        for n in range(count)
    ]
    path.write_text(json.dumps(entries))
    return path


def test_alpaca_without_a_judge_writes_outputs_and_claims_nothing(tmp_path):
    arguments = ("--tasks", f"alpaca={alpaca(tmp_path, 4)}", "--max-tokens", 12)
    result = evaluate(*arguments, "--out", tmp_path / "r.json")
    assert result.code == 0
    assert "win_rate" not in result.out
    assert "there is no win rate" in result.out
    entries = json.loads((tmp_path / "model_outputs.json").read_text())
    assert {entry["generator"] for entry in entries} == {"math"}
    assert json.loads((tmp_path / "r.json").read_text())["tasks"]["alpaca"]["score"] is None


def test_a_judge_model_gives_a_win_rate(tmp_path):
    arguments = ("--tasks", f"alpaca={alpaca(tmp_path, 2)}", "--max-tokens", 12, "--out", tmp_path / "r.json")
    result = evaluate(*arguments, "--judge-model", family_folder() / "base")
    assert result.code == 0
    assert re.search(r"alpaca +win_rate +\d", result.out)
    assert "judged by base" in result.out
    assert 0 < load_evaluation(tmp_path / "r.json").tasks["alpaca"].score < 1


def test_ctrl_c_ends_with_5_and_the_same_command_goes_on(tmp_path):
    judge = tmp_path / "judge.py"
    verdict = "print(json.dumps({'id': json.loads(line)['id'], 'preference': 2}), flush=True)"
    judge.write_text(
        f"import json, sys, time\nfor n, line in enumerate(sys.stdin):\n"
        f"    time.sleep(600 if n == 3 and {str(tmp_path)!r} + '/slow' in sys.argv else 0)\n    {verdict}\n"
    )
    slow, out = tmp_path / "slow", tmp_path / "r.json"
    slow.write_text("")
    arguments = (
        *("--tasks", f"alpaca={alpaca(tmp_path, 6)}", "--max-tokens", 12, "--out", out),
        *("--judge-command", f"{sys.executable} {judge} {slow}"),
    )
    process = start("evaluate", MATH, *NUMPY, *arguments)
    journal = tmp_path / "r.json.journal"
    while not (journal.exists() and journal.read_bytes().count(b"\n") == 9):  # 6 answers, 3 verdicts
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said) == (5, "")
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [
        "error: interrupted; run the same command again to resume"
    ]
    assert not out.exists()
    # The three verdicts that are left are asked of the same judge, which sleeps before its fourth.
    assert evaluate(*arguments, "--quiet").code == 0
    assert load_evaluation(out).complete
    assert not journal.exists()


def test_stored_annotations_need_no_model(tmp_path):
    path = tmp_path / "annotations.json"
    entry = {"generator_1": "rival", "generator_2": "ours", "annotator": "someone"}
    path.write_text(json.dumps([entry | {"preference": p} for p in (2, 2, 1, 0)]))
    result = run("evaluate", "ours", "--tasks", f"annotations={path}", "--json")
    assert result.document["tasks"]["alpaca_annotations"]["score"] == 0.625


def test_hub_results(tmp_path):
    hub = ("--hub-results", tmp_path / ".eval_results")
    known = ("--hub-dataset", "code=some/family#code")
    result = evaluate("--tasks", "family:code", *hub, *known)
    assert result.code == 0
    assert (
        "dataset:\n    id: some/family\n    task_id: code\n"
        in (tmp_path / ".eval_results/code.yaml").read_text()
    )
    for arguments in (hub, known, (*hub, *known, "--limit", 3), (*hub, "--hub-dataset", "code=family")):
        assert evaluate("--tasks", "family:code", *arguments, "--quiet").code == 2


@pytest.mark.parametrize(
    "arguments", [(), ("--tasks", "family", "--limit", 0), ("--tasks", "family", "--device", "x")]
)
def test_usage_errors_are_one_line(arguments):
    result = evaluate(*arguments)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1


def test_code_is_not_run_unless_asked(tmp_path):
    line = {"task_id": 11, "text": "Add.", "code": "x", "test_list": ["assert add(1, 2) == 3"] * 3}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(line) + "\n")
    result = evaluate("--tasks", f"mbpp={tmp_path / 'mbpp.jsonl'}", "--shots", 0)
    assert (result.code, "--run-code" in result.err) == (1, True)
    result = evaluate("--tasks", "family:code", "--unsafe-exec-i-know")
    assert (result.code, "without --run-code" in result.err) == (2, True)


def test_the_help_names_every_kind():
    told = " ".join(run("evaluate", "--help").out.split())
    listed = re.search(r"KIND=FILE \(([^)]*)\)", told)
    assert set(re.split(r"[, ]+", listed[1])) == {*KINDS, "alpaca", "annotations"}


def test_the_sandbox_is_named(capsys):
    _print(Evaluation("m", "f", "numpy", {}, sandbox="bubblewrap 0.9: no network"))
    assert capsys.readouterr().out.splitlines()[-1] == "sandbox: bubblewrap 0.9: no network"
    _print(Evaluation("m", "f", "numpy", {}))
    assert "sandbox" not in capsys.readouterr().out


def test_a_missing_recipe_is_a_missing_model(tmp_path):
    for name in ("no.yaml", "no"):
        result = evaluate("--tasks", "family:math", "--quiet", model=tmp_path / name)
        assert (result.code, name in result.err) == (3, True)
