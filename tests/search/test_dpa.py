"""DPPA's search as a sampler: the visits of `plan.dppa_search`, on whichever factors the recipe has."""

from __future__ import annotations

import pytest
from hills import Hill, KilledError, marked

from deltasmith.errors import RecipeError
from deltasmith.planning.dppa_search import best_of, search, search_as_released
from deltasmith.search import Settings, tune
from deltasmith.search.dpa import climb_of
from deltasmith.search.marked import load_marked

FIELDS = {"merge": None, "preset": "dppa", "scale": None, "models": [{"model": "./m0", "label": "a"}]}


def dppa(root, **fields):
    return marked(root, **FIELDS | {"factors": [1.2, 0.0]} | fields)


def factors_of(mapping) -> tuple[float, ...]:
    return tuple(mapping["factors"]) if "factors" in mapping else (0.0, 0.0)


def peak(factors, at=(1.4, 0.2)) -> float:
    return 0.9 - sum((f - a) ** 2 for f, a in zip(factors, at, strict=True)) / 4


class Expert(Hill):
    """The dense expert scores 0.5; a pruned one by its factors."""

    def __init__(self, **fields):
        super().__init__(
            formula=lambda m: dict.fromkeys(("low", "high"), peak(factors_of(m)) if "factors" in m else 0.5),
            **fields,
        )


def test_factors_become_marks_where_they_stand(tmp_path):
    climb = climb_of(load_marked(dppa(tmp_path)))
    assert [(d.name, d.mark.line) for d in climb.marked.dimensions] == [("factors.0", 7), ("factors.1", 8)]
    assert (climb.start, climb.released) == ((1.2, 0.0), False)
    per_label = dppa(
        tmp_path / "more",
        models=[{"model": "./m0", "label": "a"}, {"model": "./m1", "label": "b"}],
        factors={"a": [1.0, 2.0], "b": [0.5, 0.6]},
        dialect="authors",
    )
    climb = climb_of(load_marked(per_label))
    assert [d.name for d in climb.marked.dimensions] == [
        "factors.a.0",
        "factors.a.1",
        "factors.b.0",
        "factors.b.1",
    ]
    assert (climb.start, climb.released) == ((1.0, 2.0, 0.5, 0.6), True)


def test_an_edit_written_out_is_climbed_too(tmp_path):
    edits = [{"amplify_partitions": {"factors": [1.0, 1.1], "densities": [0.1, 0.2]}}]
    path = marked(tmp_path, scale=None, models=[{"model": "./m0", "label": "a", "edits": edits}])
    names = [d.name for d in climb_of(load_marked(path)).marked.dimensions]
    assert names == [f"models.a.edits.0.amplify_partitions.factors.{i}" for i in (0, 1)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": {"tune": [0.1, 1.0]}}, "climbs the factors from the numbers they have"),
        ({"preset": "ties", "factors": None}, "needs a recipe with factors"),
        ({"factors": ["a", 1]}, "factors"),
    ],
)
def test_recipes_it_cannot_climb(tmp_path, fields, words):
    with pytest.raises(RecipeError, match=words):
        climb_of(load_marked(dppa(tmp_path, **fields)))


def test_the_search_visits_what_the_paper_s_search_visits(tmp_path):
    pytest.importorskip("optuna")
    tuned = tune(dppa(tmp_path), Expert(), settings=Settings(100, "dpa"))
    visits = list(search(peak, (1.2, 0.0)))
    assert [tuple(t.values.values()) for t in tuned.trials] == [v.factors for v in visits]
    assert tuple(tuned.best.values.values()) == best_of(visits).factors == (1.4, 0.2)
    assert tuned.objectives[0].name == "retention"
    assert tuned.dense == {"low": 0.5, "high": 0.5}
    assert tuned.best.figures[0] == pytest.approx(0.9 / 0.5)
    assert tuned.default["low"] == pytest.approx(peak((1.2, 0.0)))  # the recipe as it was given
    assert tuned.recipe["factors"] == [1.4, 0.2]


def test_the_released_search_ends_where_it_ends(tmp_path):
    pytest.importorskip("optuna")
    recipe = dppa(tmp_path, dialect="authors")
    tuned = tune(recipe, Expert(), settings=Settings(100, "dpa"))
    visits = list(search_as_released(lambda f: peak(tuple(float(f"{x:.1f}") for x in f)), (1.2, 0.0)))
    scored = dict.fromkeys(tuple(float(f"{x:.1f}") for x in v.factors) for v in visits if v.score is not None)
    assert [tuple(t.values.values()) for t in tuned.trials] == list(scored)
    assert (
        tuple(tuned.best.values.values())
        == tuple(float(f"{x:.1f}") for x in visits[-1].factors)
        == (1.4, 1.0)
    )
    assert not [w for w in tuned.warnings if "edge" in w]  # there are no ends to lie at
    assert tuned.best.figures[0] < max(t.figures[0] for t in tuned.trials)  # (1.4, 0.0) was better


@pytest.mark.parametrize("dies", [2, 6])
@pytest.mark.parametrize("dialect", ["paper", "authors"])
def test_a_killed_climb_goes_on(tmp_path, dialect, dies):
    pytest.importorskip("optuna")
    recipe, storage = dppa(tmp_path, dialect=dialect), tmp_path / "trials.db"
    whole = tune(recipe, Expert(), settings=Settings(100, "dpa"))
    with pytest.raises(KilledError):
        tune(recipe, Expert(dies=dies), settings=Settings(100, "dpa"), storage=storage)
    resumed = tune(recipe, Expert(), settings=Settings(100, "dpa"), storage=storage)
    assert [t.values for t in resumed.trials] == [t.values for t in whole.trials]
    assert resumed.best.values == whole.best.values
    assert resumed.ran == len(whole.trials) - (dies - 2)  # the first call measured the dense expert


def test_a_climb_cut_short_says_so(tmp_path):
    pytest.importorskip("optuna")
    tuned = tune(dppa(tmp_path), Expert(), settings=Settings(3, "dpa"))
    assert len(tuned.trials) == 3
    assert any("had not ended after 3 trials; raise --trials" in w for w in tuned.warnings)


def test_lower_scores_cannot_be_climbed(tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(RecipeError, match="lower scores are better for mean"):
        tune(dppa(tmp_path), Hill(better=False), settings=Settings(3, "dpa", ("mean",)))
