"""`deltasmith tune` from the outside: on the bundled family, resumed, refused, and what it leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from deltasmith.lab import family_folder
from models import check_refusal, family, run, write_recipe

pytest.importorskip("optuna")

FAMILY = family_folder()
SCORING = ("--validation", "family:validation:math", "--validation", "family:validation:ins")
FAST = ("--limit", 8, "--runtime", "numpy", "--threads", 1)


def recipe(folder: Path, **fields) -> Path:
    models = [{"model": str(FAMILY / "small" / task), "label": task} for task in ("math", "ins")]
    models[0]["weight"] = {"tune": [0.5, 1.5]}
    given = {"base": str(FAMILY / "base"), "models": models, "merge": "sum", "scale": {"tune": [0.1, 1.0]}}
    return write_recipe(folder / "recipe.yaml", given | fields)


def test_tune_writes_a_recipe_that_merges_and_resumes(tmp_path):
    path = recipe(tmp_path)
    arguments = ("tune", path, *SCORING, "--test", "family:math,family:ins", *FAST)
    first = run(*arguments, "--trials", 3)
    assert first.code == 0, first.err
    assert "3/3: " in first.err
    assert "validation minus test" in first.out
    assert "s a trial" in first.out
    best, storage = tmp_path / "recipe.best.yaml", tmp_path / "recipe.best.db"
    assert best.read_text().startswith("# Written by deltasmith tune: mean ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.best.db", "recipe.best.yaml", "recipe.yaml"]
    second = run(*arguments, "--trials", 5, "--json", "--storage", storage)
    assert second.code == 0, second.err
    document = second.document
    assert (document["ran"], len(document["trials"])) == (2, 5)
    filled = yaml.safe_load(best.read_text())
    assert filled["scale"] == document["best"]["values"]["scale"]
    assert filled["models"][0]["weight"] == document["best"]["values"]["models.math.weight"]
    assert document["default"]["scores"].keys() == document["test"]["scores"].keys() == {"math", "ins"}
    assert run("merge", best, tmp_path / "out", "--quiet").code == 0


def test_a_front_is_written_beside_the_best(tmp_path):
    objectives = ("--sampler", "nsga2", "--objective", "math", "--objective", "ins")
    result = run("tune", recipe(tmp_path), *SCORING, *FAST, "--trials", 12, *objectives, "--json")
    assert result.code == 0, result.err
    document = result.document
    names = [Path(p).name for p in document["out"]]
    assert names[0] == "recipe.best.yaml"
    others = [n for n in document["front"] if n != document["best"]["number"]]
    assert names[1:] == [f"recipe.best.trial-{n}.yaml" for n in others]
    assert all(Path(p).exists() for p in document["out"])


def test_paths_in_the_best_recipe_count_from_where_it_lies(tmp_path):
    made = family(tmp_path / "models", experts=1)
    path = made.recipe(scale={"tune": [0.1, 1.0]})
    command = f'{sys.executable} -c "print(0.5)"'
    (tmp_path / "results").mkdir()
    out = tmp_path / "results" / "best.yaml"
    result = run("tune", path, "--score-command", command, "--trials", 2, "--out", out, "--threads", 1)
    assert result.code == 0, result.err
    filled = yaml.safe_load(out.read_text())
    assert filled["base"] == "../models/base"
    assert run("plan", out).code == 0
    assert (tmp_path / "results" / "best.db").exists()


def test_validation_must_not_be_the_test(tmp_path):
    path = recipe(tmp_path)
    same = run(
        "tune", path, "--validation", "family:math", "--test", "family:ins,family:math", *FAST, "--trials", 2
    )
    check_refusal(same, 1, "validation and test share 8 of the 8 questions of math")
    copy = tmp_path / "copy.jsonl"
    copy.write_text((FAMILY / "items" / "math.jsonl").read_text().replace("math-test", "mine"))
    again = run("tune", path, "--validation", f"items={copy}", "--test", "family:math", *FAST, "--trials", 2)
    check_refusal(again, 1, "validation and test share 8 of the 8 questions of items")
    assert not (tmp_path / "recipe.best.db").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name what scores the trials"),
        (("--validation", "family:validation", "--score-command", "true"), "--validation and its command"),
        (("--score-command", "x", "--test-command", "x"), "are the same"),
        (("--score-command", "'"), "cannot be read"),
        (("--validation", "family:validation", "--objective", "mth"), "did you mean"),
        (("--validation", "family:validation", "--trials", "0"), "--trials"),
        (
            ("--validation", "family:validation", "--objective", "mean", "--objective", "worst"),
            "use --sampler nsga2",
        ),
        (("--validation", "item=x.jsonl"), "'item' is no kind of local task"),
        (("--validation", "alpaca=x.json"), "cannot score trials"),
    ],
)
def test_wrong_usage(tmp_path, arguments, words):
    result = run("tune", recipe(tmp_path), *arguments)
    check_refusal(result, 2, words)
    assert not (tmp_path / "recipe.best.db").exists()


def test_a_file_of_the_user_s_is_not_replaced(tmp_path):
    path = recipe(tmp_path)
    result = run("tune", path, *SCORING, *FAST, "--trials", 2, "--out", path)
    check_refusal(result, 1, "there is a file that tune has not written")
    missing = run("tune", path, *SCORING, *FAST, "--trials", 2, "--out", tmp_path / "no" / "best.yaml")
    check_refusal(missing, 4, "the folder does not exist")


def test_a_missing_recipe_and_a_wrong_mark(tmp_path):
    check_refusal(run("tune", tmp_path / "gone.yaml", *SCORING), 2, "gone.yaml")
    path = recipe(tmp_path, scale={"tune": [1.0, 0.1]})
    check_refusal(run("tune", path, *SCORING), 2, "tune needs low < high")


def test_dpa_from_the_command_line(tmp_path):
    path = write_recipe(
        tmp_path / "dppa.yaml",
        {
            "preset": "dppa",
            "base": str(FAMILY / "base"),
            "factors": [1.0, 1.0],
            "models": [{"model": str(FAMILY / "small" / "ins"), "label": "ins"}],
        },
    )
    result = run("tune", path, "--validation", "family:validation:ins", *FAST, "--sampler", "dpa", "--json")
    assert result.code == 0, result.err
    document = result.document
    assert document["objectives"] == [{"name": "retention", "maximise": True}]
    assert document["dense"]["ins"] > 0
    assert len(document["best"]["values"]) == 2


def test_help_explains_marks_and_samplers():
    text = run("tune", "--help").out
    for words in (
        "{tune: [0.1, 1.5]}",
        "choices: [0.1, 0.2]",
        "DPPA",
        "retention",
        "goes on where it was",
        "Pareto front",
    ):
        assert words in text
