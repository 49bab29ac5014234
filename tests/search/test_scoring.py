"""Scorers: tasks on models merged in memory, commands on models merged into a folder, and sets kept apart."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from deltasmith.engine.columns import EditedColumns
from deltasmith.errors import RecipeError, RefusedError
from deltasmith.evaluate.models.opening import open_language_model
from deltasmith.evaluate.statistics import wilson
from deltasmith.evaluate.task import Outcome
from deltasmith.lab import family_folder
from deltasmith.search.answers import Answers, intervals_of
from deltasmith.search.scoring import CommandScorer, TaskScorer, UnfitError, shared_items
from deltasmith.search.task_scorer import refuse_shared, task_scorer
from models import family

FAMILY = family_folder()


def recipe(**fields):
    models = [{"model": str(FAMILY / "small" / task), "label": task} for task in ("math", "code")]
    return {"base": str(FAMILY / "base"), "models": models, "preset": "dare_ties", "density": 0.5} | fields


def test_a_recipe_is_scored_as_the_model_it_makes(tmp_path):
    from deltasmith import api

    api.merge(recipe(scale=0.7), tmp_path / "out")
    specs = ["family:validation:math,family:validation:code"]
    scorer = task_scorer(specs, columns=EditedColumns(1 << 30), limit=12, runtime="numpy", threads=1)
    found = scorer.score(recipe(scale=0.7))
    written = open_language_model(tmp_path / "out", runtime="numpy").model
    assert found.scores == {
        task.name.removesuffix(":validation"): sum(o.score for o in task.answer(written, task.ids)) / 12
        for task in scorer.questions
    }
    assert 0 < found.scores["math"] < found.scores["code"]
    assert found.merge_seconds > 0
    assert scorer.tasks == {"math": True, "code": True}


def test_a_trial_that_changes_only_the_scale_edits_nothing():
    columns = EditedColumns(1 << 30)
    scorer = task_scorer(["family:validation:math"], columns=columns, limit=2, runtime="numpy", threads=1)
    scorer.score(recipe(scale=0.7))
    assert columns.computed == 2
    scorer.score(recipe(scale=0.3))
    assert columns.computed == 2
    scorer.score(recipe(density={"math": 0.4, "code": 0.5}))
    assert columns.computed == 3


@dataclass(frozen=True)
class Asked:
    """A task of questions without contents."""

    name: str
    digest: str
    metric: str = "exact_match"
    average: str = "mean"
    higher_is_better: bool = True
    ids: tuple[str, ...] = ("q1", "q2", "q3")

    def answer(self, model, ids):
        return [Outcome(i, float(n), weight=float(n + 1)) for n, i in enumerate(ids)]


def test_scores_are_weighted_and_names_are_common():
    scorer = TaskScorer(
        [Asked("math:validation", "d1"), Asked("loss", "d2", average="perplexity")], lambda r: None
    )
    found = scorer.score({}).scores
    assert found["math"] == pytest.approx((0 + 2 + 6) / 6)
    assert found["loss"] == pytest.approx(3.7936678946831774)  # exp(8 / 6)
    assert scorer.digest != TaskScorer([Asked("math:validation", "d3")], lambda r: None).digest


def test_intervals_and_shares_come_from_the_answers():
    def answers(*scores, average="mean"):
        return Answers(tuple(Outcome(f"{n}", float(s)) for n, s in enumerate(scores)), average)

    right, half = answers(*[1] * 6, *[0] * 2), answers(*[1] * 4, *[0] * 4)
    found = intervals_of({"a": right, "b": half})
    assert found["a"] == wilson(6, 8)
    assert found["b"] == wilson(4, 8)
    assert found["mean"] == pytest.approx(wilson(10, 16))
    uneven = intervals_of({"a": answers(*[1] * 60, *[0] * 20), "b": half})["mean"]
    assert uneven == pytest.approx(wilson(0.625 * 4 / (1 / 80 + 1 / 8), 4 / (1 / 80 + 1 / 8)))
    assert intervals_of({}) == {}
    assert intervals_of({"a": right})["mean"] == found["a"]
    assert "mean" not in intervals_of({"a": right, "b": answers(1.5, 2.5, average="perplexity")})
    assert intervals_of({"a": answers(0.3)}) == {}  # of one question nothing can be said
    assert (right.share, answers(0.5, 1.5).share, answers(0.5, average="perplexity").share) == (
        True,
        False,
        False,
    )


def test_tasks_must_differ_and_exist():
    with pytest.raises(RecipeError, match="the task 'math' is there twice"):
        TaskScorer([Asked("math:validation", "d1"), Asked("math", "d2")], lambda r: None)
    with pytest.raises(RecipeError, match="no task to score with"):
        TaskScorer([], lambda r: None)
    with pytest.raises(RecipeError, match="cannot score trials"):
        task_scorer(["alpaca=prompts.json"])


def test_shared_questions_are_found_under_any_id(tmp_path):
    def items(name, *lines):
        path = tmp_path / name
        path.write_text(
            "".join(f'{{"id": "{i}", "task": "t", "prompt": "{p}", "answer": "a"}}\n' for i, p in lines)
        )
        return task_scorer([f"items={path}"], runtime="numpy")

    one, other = items("one.jsonl", ("1", "x"), ("2", "y")), items("other.jsonl", ("1", "z"), ("2", "w"))
    refuse_shared(one, other)  # the same ids, other questions
    third = items("third.jsonl", ("9", "y"))
    with pytest.raises(RefusedError, match=r"share 1 of the 2 questions of items \(first '2'\)"):
        refuse_shared(one, third)
    with pytest.raises(RefusedError, match="share 2 of the 2"):
        refuse_shared(one, items("copy.jsonl", ("1", "x"), ("2", "y")))
    assert shared_items(Asked("a", "same"), Asked("b", "same")) == ["q1", "q2", "q3"]
    assert shared_items(Asked("a", "one"), Asked("b", "other")) == []


def test_the_family_s_validation_and_test_are_apart():
    refuse_shared(task_scorer(["family:validation"]), task_scorer(["family"]))


COMMAND = """
import json, pathlib, sys
print("noise")
manifest = json.loads((pathlib.Path(sys.argv[1]) / "manifest.json").read_text())
print(len(manifest["tensors"]) / 100)
"""


def test_a_command_scores_the_merged_folder(tmp_path):
    made = family(tmp_path / "f", experts=1)
    given = {"base": str(made.root / "base"), "models": [{"model": str(made.root / "m0")}], "merge": "sum"}
    (tmp_path / "scratch").mkdir()
    scorer = CommandScorer([sys.executable, "-c", COMMAND], {"threads": 1}, tmp_path / "scratch")
    found = scorer.score(given)
    assert found.scores == {"command": len(made.base) / 100}
    assert found.merge_seconds > 0
    assert list(Path(tmp_path / "scratch").iterdir()) == []
    failing = CommandScorer([sys.executable, "-c", "import sys; sys.exit(3)"], {"threads": 1})
    with pytest.raises(RefusedError, match="exit code 3") as caught:
        failing.score(given)
    assert not isinstance(caught.value, UnfitError)


def test_numbers_that_overflow_make_no_model(tmp_path):
    made = family(tmp_path / "f", experts=1, dtype="float16")
    given = {"base": str(made.root / "base"), "models": [{"model": str(made.root / "m0")}], "scale": 1e8}
    with pytest.raises(UnfitError):
        CommandScorer(["true"], {"threads": 1}).score(given)
    scorer = TaskScorer(
        [Asked("a", "d")], lambda r: (_ for _ in ()).throw(RefusedError("overflow", where="w"))
    )
    with pytest.raises(UnfitError, match="overflow in w"):
        scorer.score({})
