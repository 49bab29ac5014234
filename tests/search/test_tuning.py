"""The search: it finds what a formula hides, goes on where it was killed, and never mixes two searches."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hills import Hill, KilledError, marked

from deltasmith.engine.workers import Stop
from deltasmith.errors import (
    DamagedInputError,
    InterruptedRunError,
    MissingExtraError,
    RecipeError,
    RefusedError,
    ResourceError,
)
from deltasmith.search import Scored, Settings, tune
from deltasmith.search.scoring import UnfitError
from models import environment

optuna = pytest.importorskip("optuna")
pytest.importorskip("cmaes")

from deltasmith.search.samplers import quiet  # noqa: E402 - needs optuna

SAMPLERS = ("tpe", "random", "grid", "cmaes", "nsga2")


def visited(tuned) -> list[dict[str, float]]:
    return [dict(trial.values) for trial in tuned.trials]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random", "grid", "nsga2"])
def test_every_sampler_climbs_and_repeats_itself(tmp_path, sampler):
    recipe = marked(tmp_path)
    settings = Settings(trials=40, sampler=sampler, seed=3, grid_points=6)
    first, second = (tune(recipe, Hill(), settings=settings) for _ in range(2))
    assert visited(first) == visited(second)
    assert first.best == min(first.trials, key=lambda t: (-t.figures[0], t.number))
    assert first.best.figures[0] > 0.85
    assert first.best.scores.keys() == {"low", "high"}
    assert visited(tune(recipe, Hill(), settings=replace(settings, seed=4))) != visited(first)


def test_tpe_learns(tmp_path):
    recipe = marked(tmp_path)
    best = {
        sampler: tune(recipe, Hill(), settings=Settings(60, sampler, seed=1)).best.figures[0]
        for sampler in ("tpe", "random")
    }
    assert best["tpe"] > best["random"]
    assert best["tpe"] > 0.955  # the summit is 0.96


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dies", [1, 12])
def test_a_killed_search_goes_on_as_if_nothing_had_been(tmp_path, sampler, dies):
    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    settings = Settings(trials=15, sampler=sampler, seed=5)
    whole = tune(recipe, Hill(), settings=settings)
    with pytest.raises(KilledError):
        tune(recipe, Hill(dies), settings=settings, storage=storage)
    scorer = Hill()
    resumed = tune(recipe, scorer, settings=settings, storage=storage)
    assert visited(resumed) == visited(whole)
    assert [t.number for t in resumed.trials] == list(range(1, 16))
    assert [t.figures for t in resumed.trials] == [t.figures for t in whole.trials]
    assert resumed.best.values == whole.best.values
    assert resumed.ran == 15 - (dies - 1)  # the one it died in is repeated, no other
    again = Hill()
    assert tune(recipe, again, settings=settings, storage=storage).ran == 0
    assert again.seen == []


VICTIM = """
import os, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from hills import Hill
from deltasmith.search import Settings, tune

class Victim(Hill):
    def score(self, recipe):
        if len(self.seen) == 12:
            os.kill(os.getpid(), 9)
        return super().score(recipe)

tune({recipe!r}, Victim(), settings=Settings(20, seed=5), storage=Path({storage!r}))
"""


def test_kill_nine(tmp_path):
    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    code = VICTIM.format(
        paths=[str(Path(__file__).parent), str(Path(__file__).parent.parent)],
        recipe=str(recipe),
        storage=str(storage),
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = tune(recipe, Hill(), settings=Settings(20, seed=5), storage=storage)
    assert resumed.ran == 8
    assert visited(resumed) == visited(tune(recipe, Hill(), settings=Settings(20, seed=5)))


def test_more_trials_go_on_from_those_there_are(tmp_path):
    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    tune(recipe, Hill(), settings=Settings(10), storage=storage)
    more = tune(recipe, Hill(), settings=Settings(25), storage=storage)
    assert more.ran == 15
    assert visited(more) == visited(tune(recipe, Hill(), settings=Settings(25)))


def test_an_interruption_ends_between_trials_and_resumes(tmp_path):
    recipe, storage, stop = marked(tmp_path), tmp_path / "trials.db", Stop()

    def listener(trial):
        if trial.number == 4:
            stop.ask()

    with pytest.raises(InterruptedRunError, match="stopped after 4 of 9 trials; run the same command again"):
        tune(recipe, Hill(), settings=Settings(9), storage=storage, stop=stop, listener=listener)
    assert tune(recipe, Hill(), settings=Settings(9), storage=storage).ran == 5


def changed_recipe(recipe: Path) -> dict:
    recipe.write_text(recipe.read_text().replace("2.0", "1.9"))
    return {}


def changed_model(recipe: Path) -> dict:
    path = recipe.parent / "m0" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)  # a new time is reason enough
    return {}


@pytest.mark.parametrize(
    "change",
    [
        changed_recipe,
        changed_model,
        lambda recipe: {"validation": Hill(name="other questions")},
        lambda recipe: {"settings": Settings(6, seed=1)},
        lambda recipe: {"settings": Settings(6, "random")},
        lambda recipe: {"settings": Settings(6, objectives=("worst",))},
        lambda recipe: {"overrides": ["dtype=float32"]},
    ],
)
def test_whatever_changes_begins_another_search_and_says_so(tmp_path, change):
    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    given = {"validation": Hill(), "settings": Settings(6), "storage": storage}
    first = tune(recipe, **given)
    assert not any("new search" in w for w in first.warnings)
    other = tune(recipe, **given | change(recipe))
    assert other.ran == 6
    assert [w for w in other.warnings if "a new search is begun; 1 in" in w]
    assert "trials.db" in " ".join(other.warnings)


def test_a_new_search_is_told_before_its_first_trial(tmp_path):
    recipe, storage, heard = marked(tmp_path), tmp_path / "trials.db", []
    listening = {"listener": lambda t: heard.append(t.number), "notice": heard.append, "storage": storage}
    first = tune(recipe, Hill(), settings=Settings(2), claim=heard.append, **listening)
    assert heard == [first.digest, 1, 2]
    heard.clear()
    tune(recipe, Hill(), settings=Settings(2, seed=1), **listening)
    assert [str(one).partition(";")[0] for one in heard] == ["a new search is begun", "1", "2"]


def test_a_claim_that_is_refused_leaves_nothing(tmp_path):
    scorer, storage = Hill(), tmp_path / "trials.db"

    def claim(digest):
        raise RefusedError("taken")

    with pytest.raises(RefusedError, match="taken"):
        tune(marked(tmp_path), scorer, settings=Settings(2), storage=storage, claim=claim)
    assert (scorer.seen, storage.exists()) == ([], False)


def test_the_first_search_is_still_there_afterwards(tmp_path):
    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    tune(recipe, Hill(), settings=Settings(6), storage=storage)
    tune(recipe, Hill(), settings=Settings(6, seed=1), storage=storage)
    assert tune(recipe, Hill(), settings=Settings(6), storage=storage).ran == 0


def test_a_grid_is_all_its_points_once(tmp_path):
    recipe = marked(tmp_path, scale={"tune": {"choices": [0.3, 0.1, 0.9]}})
    tuned = tune(recipe, Hill(), settings=Settings(100, "grid", grid_points=3))
    points = {(t.values["models.a.weight"], t.values["scale"]) for t in tuned.trials}
    assert points == {(w, s) for w in (0.1, 1.05, 2.0) for s in (0.1, 0.3, 0.9)}
    assert len(tuned.trials) == 9
    part = tune(recipe, Hill(), settings=Settings(4, "grid", grid_points=3))
    assert visited(part) == visited(tuned)[:4]
    assert len({t.values["scale"] for t in part.trials}) > 1  # a part is spread, not a corner


def test_a_grid_too_large_is_refused(tmp_path):
    recipe = marked(tmp_path)
    with pytest.raises(RecipeError, match="the grid has 250,000 points"):
        tune(recipe, Hill(), settings=Settings(5, "grid", grid_points=500))


def test_lower_may_be_better(tmp_path):
    recipe = marked(tmp_path)
    tuned = tune(recipe, Hill(better=False), settings=Settings(40, objectives=("low",)))
    assert tuned.best.figures[0] == min(t.figures[0] for t in tuned.trials)
    assert tuned.best.values["scale"] == pytest.approx(0.3, abs=0.15)
    with pytest.raises(RecipeError, match="retention cannot be taken: lower scores are better for low, high"):
        tune(recipe, Hill(better=False), settings=Settings(2, objectives=("retention",)))


def test_worst_and_single_tasks(tmp_path):
    recipe = marked(tmp_path)
    for objective, scale in (("worst", 0.5), ("low", 0.3), ("high", 0.7)):
        tuned = tune(recipe, Hill(), settings=Settings(60, objectives=(objective,), seed=2))
        assert tuned.best.values["scale"] == pytest.approx(scale, abs=0.1)
    with pytest.raises(RecipeError, match="unknown objective 'lo'"):
        tune(recipe, Hill(), settings=Settings(2, objectives=("lo",)))


def test_two_objectives_give_a_front(tmp_path):
    recipe = marked(tmp_path)
    tuned = tune(recipe, Hill(), settings=Settings(60, "nsga2", ("low", "high"), seed=1))
    figures = [t.figures for t in tuned.front]
    assert len(figures) > 3
    ordered = sorted(figures)
    assert [high for _, high in ordered] == sorted((high for _, high in ordered), reverse=True)
    beaten = [t for t in tuned.trials if t.number not in {f.number for f in tuned.front}]
    assert all(any(f[0] >= t.figures[0] and f[1] >= t.figures[1] for f in figures) for t in beaten)
    assert tuned.best in tuned.front
    assert min(f[0] for f in figures) < tuned.best.figures[0] < max(f[0] for f in figures)
    with pytest.raises(RecipeError, match="tpe climbs one objective, not 2; use --sampler nsga2"):
        Settings(objectives=("low", "high"))


def test_retention_is_measured_against_the_best_model_of_each_task(tmp_path):
    recipe = marked(tmp_path)

    def formula(mapping):
        labels = [m.get("label") for m in mapping["models"]]
        return {
            "low": {"a": 0.8, "b": 0.2}.get(labels[0], 0) if len(labels) == 1 else 0.4,
            "high": {"a": 0.1, "b": 0.9}.get(labels[0], 0) if len(labels) == 1 else 0.9,
        }

    scorer = Hill(formula=formula)
    tuned = tune(recipe, scorer, settings=Settings(2, objectives=("retention",)))
    assert tuned.dense == {"low": 0.8, "high": 0.9}
    assert tuned.best.figures == (pytest.approx(0.5**0.5),)
    alone = scorer.seen[0]
    assert (alone["merge"], alone["base"]) == ("sum", str(tmp_path / "base"))
    with pytest.raises(RefusedError, match="the dense score of low is 0"):
        tune(
            recipe,
            Hill(formula=lambda m: {"low": 0.0, "high": 1.0}),
            settings=Settings(2, objectives=("retention",)),
        )


def test_the_test_set_is_asked_once_for_best_and_default(tmp_path):
    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    test = Hill(name="test", formula=lambda m: {"low": m.get("scale", 1.0) / 2, "high": 0.0})
    tuned = tune(recipe, Hill(), test=test, settings=Settings(8), storage=storage)
    assert [m.get("scale") for m in test.seen] == [tuned.best.values["scale"], None]
    assert tuned.default == Hill().score({"models": [{}]}).scores
    assert tuned.test == {"low": tuned.best.values["scale"] / 2, "high": 0.0}
    assert tuned.default_test == {"low": 0.5, "high": 0.0}
    assert tuned.gaps == [pytest.approx(tuned.best.figures[0] - tuned.best.values["scale"] / 4)]
    asked = Hill(name="test")
    again = tune(recipe, Hill(), test=asked, settings=Settings(8), storage=storage)
    assert (asked.seen, again.test) == ([], tuned.test)
    assert not any("single look" in w for w in again.warnings)
    more = tune(recipe, Hill(), test=test, settings=Settings(60), storage=storage)
    assert more.best != tuned.best
    assert any("the test set has scored 2 bests" in w for w in more.warnings)


def test_values_that_make_no_model_are_passed_over(tmp_path):
    class Picky(Hill):
        def score(self, recipe):
            if recipe.get("scale", 1.0) > 0.5:
                raise UnfitError("a value is infinite", where="lm_head.weight", fix="lower the scale")
            return super().score(recipe)

    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    tuned = tune(recipe, Picky(), settings=Settings(15), storage=storage)
    bad = [t for t in tuned.trials if t.values["scale"] > 0.5]
    assert bad
    assert all(t.figures == () and "a value is infinite" in t.refused for t in bad)
    assert tuned.best.values["scale"] <= 0.5
    assert tuned.default is None
    assert any(w.startswith("without the marks the recipe makes no model: a value") for w in tuned.warnings)
    assert any(
        f"{len(bad)} of 15 trials made no model; trial {bad[0].number}: a value" in w for w in tuned.warnings
    )
    assert tune(recipe, Picky(), settings=Settings(15), storage=storage).ran == 0

    class Hopeless(Hill):
        def score(self, recipe):
            raise UnfitError("a value is infinite")

    with pytest.raises(RefusedError, match="no model could be made in 3 trials"):
        tune(recipe, Hopeless(name="other"), settings=Settings(3))


def test_a_score_that_is_no_number_counts_as_none(tmp_path):
    recipe = marked(tmp_path)
    scorer = Hill(formula=lambda m: {"low": float("nan") if m.get("scale", 0) > 0.5 else 0.5, "high": 0.5})
    tuned = tune(recipe, scorer, settings=Settings(12))
    assert {t.refused for t in tuned.trials if t.values["scale"] > 0.5} == {"its score is nan"}


def test_any_other_error_ends_the_search_and_the_trial_is_repeated(tmp_path):
    class Broken(Hill):
        def score(self, recipe):
            if len(self.seen) == 4:
                raise RefusedError("the score command ended with exit code 1")
            return super().score(recipe)

    recipe, storage = marked(tmp_path), tmp_path / "trials.db"
    with pytest.raises(RefusedError, match="exit code 1"):
        tune(recipe, Broken(), settings=Settings(8), storage=storage)
    resumed = tune(recipe, Hill(), settings=Settings(8), storage=storage)
    assert resumed.ran == 4
    assert visited(resumed) == visited(tune(recipe, Hill(), settings=Settings(8)))


def test_an_optimum_at_the_edge_is_flagged(tmp_path):
    recipe = marked(tmp_path, scale={"tune": [0.05, 0.2]})
    tuned = tune(recipe, Hill(), settings=Settings(30, "grid"))
    assert [
        w for w in tuned.warnings if w.startswith("scale = 0.2 lies at the upper edge of [0.05, 0.2]; widen")
    ]
    assert not [w for w in tuned.warnings if w.startswith("models.a.weight")]


def test_a_default_that_no_trial_has_reached_is_told(tmp_path):
    recipe = marked(tmp_path, scale={"tune": [0.01, 0.02]})
    better = {"low": 0.0, "high": 0.0}
    scorer = Hill(formula=lambda m: {k: m.get("scale", 1.0) for k in better})
    (warning,) = [w for w in tune(recipe, scorer, settings=Settings(4)).warnings if "without its marks" in w]
    assert warning.startswith(
        "without its marks the recipe has a better mean on validation (1) than the best trial (0.0"
    )
    worse = Hill(formula=lambda m: {k: -m.get("scale", 1.0) for k in better})
    assert not [w for w in tune(recipe, worse, settings=Settings(4)).warnings if "without its marks" in w]


@pytest.mark.parametrize(
    ("better", "sign", "overtaken"), [(True, 1, True), (True, -1, False), (True, 0, False), (False, -1, True)]
)
def test_overtaken_is_strictly_better_in_the_objective_s_direction(tmp_path, better, sign, overtaken):
    recipe = marked(tmp_path, scale={"tune": [0.01, 0.02]})
    scorer = Hill(better=better, formula=lambda m: dict.fromkeys(("low", "high"), sign * m.get("scale", 1.0)))
    tuned = tune(recipe, scorer, settings=Settings(2))
    assert (tuned.overtaken, tuned.as_json()["overtaken"]) == (overtaken, overtaken)


def test_importance_tells_the_number_that_matters(tmp_path):
    recipe = marked(tmp_path)
    scorer = Hill(formula=lambda m: {"low": -abs(m.get("scale", 1.0) - 0.5), "high": 0.0})
    tuned = tune(recipe, scorer, settings=Settings(40, "random"))
    assert tuned.importance["scale"] > 0.6
    assert sum(tuned.importance.values()) == pytest.approx(1.0)
    assert tune(recipe, Hill(), settings=Settings(5)).importance == {}


def test_files_that_are_no_storage_are_refused(tmp_path):
    recipe = marked(tmp_path)
    (tmp_path / "trials.db").write_text("these are no trials, and long enough to be read as a header" * 5)
    with pytest.raises(DamagedInputError, match="no storage of trials"):
        tune(recipe, Hill(), settings=Settings(2), storage=tmp_path / "trials.db")
    with pytest.raises(ResourceError):
        tune(recipe, Hill(), settings=Settings(2), storage=tmp_path / "nowhere" / "trials.db")
    assert not [p for p in tmp_path.iterdir() if "lock" in p.name]


def test_odd_names_of_the_storage(tmp_path):
    recipe, storage = marked(tmp_path), tmp_path / "a b?c%20{x}#é.db"
    tune(recipe, Hill(), settings=Settings(2), storage=storage)
    assert storage.exists()
    assert tune(recipe, Hill(), settings=Settings(3), storage=storage).ran == 1


def test_two_processes_do_not_share_a_storage(tmp_path):
    recipe, storage = marked(tmp_path), tmp_path / "trials.db"

    def listener(trial):
        with pytest.raises(RefusedError, match=r"another process .* is writing"):
            tune(recipe, Hill(), settings=Settings(2), storage=storage)

    tune(recipe, Hill(), settings=Settings(1), storage=storage, listener=listener)


class Record(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_optuna_stays_silent_and_as_it_was(tmp_path):
    before, handler = optuna.logging.get_verbosity(), Record()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    logging.getLogger("optuna").addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for sampler in SAMPLERS:
                recipe = marked(tmp_path / sampler)
                tune(recipe, Hill(), settings=Settings(12, sampler), storage=tmp_path / "t.db")
            with quiet():
                warnings.warn("an experimental argument", optuna.exceptions.ExperimentalWarning, stacklevel=1)
        assert [str(w.message) for w in caught] == []
        assert handler.lines == []
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        logging.getLogger("optuna").removeHandler(handler)
        optuna.logging.set_verbosity(before)


def test_what_cannot_work_is_said_before_the_first_trial(tmp_path):
    recipe, scorer = marked(tmp_path), Hill()
    with pytest.raises(RecipeError, match="CMA-ES needs at least two marks"):
        tune(recipe, scorer, settings=Settings(2, "cmaes"), overrides=["scale=1.0"])
    with pytest.raises(RecipeError, match="no marks"):
        tune(recipe, scorer, settings=Settings(2), overrides=["scale=1.0", "models.a.weight=1.0"])
    with pytest.raises(DamagedInputError, match="nothing lies at"):
        tune(recipe, scorer, settings=Settings(2), overrides=["models.b.model=./gone"])
    with pytest.raises(RecipeError, match="trials must be at least 1"):
        Settings(0)
    with pytest.raises(RecipeError, match="unknown sampler 'annealing'"):
        Settings(sampler="annealing")
    assert scorer.seen == []


@pytest.mark.parametrize("package", ["optuna", "cmaes"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(MissingExtraError, match=rf"tune needs {package}; pip install .deltasmith\[search\]"):
        tune(marked(tmp_path), Hill(), settings=Settings(2, "cmaes"))


def test_the_result_as_plain_data(tmp_path):
    tuned = tune(marked(tmp_path), Hill(), test=Hill(name="test"), settings=Settings(3))
    document = json.loads(json.dumps(tuned.as_json(), allow_nan=False))
    assert document["recipe"]["scale"] == document["best"]["values"]["scale"]
    assert document["gap"] == [0.0]
    assert document["best"]["merge_seconds"] == 0.0
    assert len(document["trials"]) == 3
    assert Scored({"a": 1.0}).merge_seconds == 0.0
