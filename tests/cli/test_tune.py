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


def constant(folder: Path, **fields) -> tuple:
    """Return a search whose score is always 0.5."""
    path = family(folder / "models", experts=1).recipe(scale={"tune": [0.1, 1.0]}, **fields)
    return "tune", path, "--score-command", f'{sys.executable} -c "print(0.5)"', "--threads", 1


def test_the_best_recipe_of_another_search_is_kept(tmp_path):
    arguments = (*constant(tmp_path), "--out", tmp_path / "best.yaml")
    assert run(*arguments, "--trials", 2).code == 0
    before = (tmp_path / "best.yaml").read_text()
    other = (*arguments, "--trials", 2, "--seed", 1)
    refused = run(*other)
    check_refusal(refused, 1, "it is the result of another search")
    assert "--overwrite" in refused.err
    assert "1/2" not in refused.err  # before the first trial
    assert (tmp_path / "best.yaml").read_text() == before
    assert run(*arguments, "--trials", 3).code == 0  # the same search goes on
    assert "of 3 (" in (tmp_path / "best.yaml").read_text()
    replaced = run(*other, "--overwrite")
    assert replaced.code == 0
    first = [line for line in replaced.err.splitlines() if "a new search is begun" in line or "1/2" in line]
    assert first[0].startswith("warning: a new search is begun; 1 in")  # and not after the last trial
    assert replaced.err.count("a new search is begun") == 1
    assert "seed 1" in (tmp_path / "best.yaml").read_text()
    assert run(*other, "--seed", 2, "--out", tmp_path / "best2.yaml").code == 0


def test_a_front_of_another_search_is_kept(tmp_path):
    from deltasmith.errors import RefusedError
    from deltasmith.search.best_file import refuse_other

    out, beside = tmp_path / "best.yaml", tmp_path / "best.trial-4.yaml"
    beside.write_text("# Written by deltasmith tune: x.\n# Search: one\nbase: b\n")
    refuse_other(out, "two", front=False)
    refuse_other(out, "one", front=True)
    with pytest.raises(RefusedError, match=r"another search .* in .*best\.trial-4\.yaml"):
        refuse_other(out, "two", front=True)
    out.write_text("# Written by deltasmith tune: x.\nbase: b\n")  # of a version that noted no search
    with pytest.raises(RefusedError, match="another search"):
        refuse_other(out, "one", front=False)


def test_trials_and_marks_are_called_alike_everywhere(tmp_path):
    arguments = ("tune", recipe(tmp_path), *SCORING, *FAST, "--trials", 3)
    told = run(*arguments)
    document = run(*arguments, "--json").document
    best = document["best"]
    assert [trial["number"] for trial in document["trials"]] == [1, 2, 3]
    progress = told.err.splitlines()
    assert [line.partition(":")[0] for line in progress[:3]] == ["1/3", "2/3", "3/3"]
    (line,) = [line for line in progress if line.startswith(f"{best['number']}/3: ")]
    assert f"models.math.weight {best['values']['models.math.weight']:g}, scale " in line
    assert f": mean {100 * best['figures'][0]:.2f} %  (" in line
    head, first = told.out.splitlines()[:2]
    assert head.split() == ["trial", "mean", "math", "ins", "models.math.weight", "scale"]
    assert first.split()[:3] == [f"{best['number']}", f"{100 * best['figures'][0]:.2f}", "%"]
    assert f"best: trial {best['number']} of 3" in told.out
    assert f"trial {best['number']} of 3" in (tmp_path / "recipe.best.yaml").read_text()


def test_the_end_is_told_a_fact_a_line_with_intervals(tmp_path):
    tests = ("--test", "family:math,family:ins")
    arguments = ("tune", recipe(tmp_path), *SCORING, *tests, *FAST, "--sampler", "random", "--trials", 10)
    lines = run(*arguments).out.splitlines()
    document = run(*arguments, "--json").document  # nothing is asked again: the intervals were kept
    assert document["ran"] == 0
    for key, words in (("test", "best trial"), ("default_test", "recipe without its marks")):
        tested = document[key]
        low, high = tested["intervals"]["mean"]
        assert low < tested["figures"][0] < high
        told = f"{100 * tested['figures'][0]:.2f} % (95 % interval {100 * low:.2f} % – {100 * high:.2f} %)"
        assert f"mean, {words} on test: {told}" in lines
    score, (low, high) = document["test"]["scores"]["ins"], document["test"]["intervals"]["ins"]
    told = f"{100 * score:.2f} % (95 % interval {100 * low:.2f} % – {100 * high:.2f} %)"
    assert f"ins, best trial on test: {told}" in lines
    assert f"mean, validation minus test: {100 * document['gap'][0]:+.2f} points" in lines
    assert document["importance"]
    assert "how much each number mattered for being among the best tenth of the trials (PED-ANOVA):" in lines
    assert not any(line.startswith("importance") for line in lines)


def test_a_best_trial_worse_than_the_recipe_is_not_recommended(tmp_path):
    path = recipe(tmp_path, scale={"tune": [0.01, 0.02]})
    worse = run("tune", path, *SCORING, "--limit", 32, *FAST[2:], "--trials", 1)
    assert worse.code == 0, worse.err
    last = worse.out.splitlines()[-1]
    assert last.startswith(f"next: {path} without its marks is better on validation than the best trial")
    assert "deltasmith merge" not in last
    even = run(*constant(tmp_path / "even"), "--trials", 1)
    assert even.out.splitlines()[-1].startswith("next: deltasmith merge ")


def test_a_grid_visited_in_part_says_so(tmp_path):
    arguments = (*constant(tmp_path), "--sampler", "grid")
    told = run(*arguments, "--trials", 3)
    words = "warning: the grid has 5 points, and 3 of them are visited; for all of them: --trials 5"
    assert told.err.splitlines()[0] == words
    whole = run(*arguments, "--trials", 5)
    assert whole.code == 0
    assert "the grid has" not in whole.err


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
