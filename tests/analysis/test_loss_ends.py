"""Where paths begin and end. Nothing is loaded here, so nothing but headers is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith.analysis.ends import read_recipe, resolve, resolve_delta
from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.merges.sum import Sum
from deltasmith.recipe.model import Recipe
from models import Family, family, write_adapter, write_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    made = family(tmp_path_factory.mktemp("ends") / "models", experts=2)
    write_adapter(made.root / "lora", made.base, 7)
    return made


def one(models: Family, name: str = "one.yaml", model: str = "./m0", **fields) -> Path:
    return write_recipe(
        models.root / name,
        {"base": "./base", "models": [{"model": model, "label": "math"}]} | fields,
    )


def ends(source, start=None, overrides=()):
    return resolve(source, read_recipe(source, overrides), start)


def test_an_edit_of_one_model_starts_from_it(models):
    found = ends(one(models))
    assert (found.start.name, found.end.name, found.base.name) == ("math", "one", "base")
    assert Path(found.start.source).samefile(models.root / "m0")
    assert Path(found.base.source).samefile(models.root / "base")
    assert found.end.source is found.recipe


def test_a_merge_starts_from_its_base_and_its_margin_knows_no_gain(models):
    found = ends(models.recipe())
    assert (found.start.name, found.end.name, found.base) == ("base", "recipe", None)


def test_the_start_can_be_named(models):
    by_label = ends(models.recipe(), "m1")
    assert Path(by_label.start.source).samefile(models.root / "m1")
    assert by_label.base.name == "base"
    assert ends(one(models), "base").start.name == "base"
    other = ends(one(models), str(models.root / "m1"))
    assert (other.start.name, other.base) == ("m1", None)


def test_an_automatic_label_gives_way_to_the_models_own_name(models):
    path = write_recipe(models.root / "auto.yaml", {"base": "./base", "models": [{"model": "./m1"}]})
    assert ends(path).start.name == "m1"


def test_a_label_wins_over_a_path(models, monkeypatch):
    (models.root / "math").mkdir(exist_ok=True)
    monkeypatch.chdir(models.root)
    assert Path(ends(one(models), "math").start.source).samefile(models.root / "m0")


def test_a_folders_name_will_do_where_it_is_the_only_one(models, monkeypatch):
    path = write_recipe(models.root / "names.yaml", {"base": "./base", "models": [{"model": "./m1"}]})
    found = ends(
        write_recipe(models.root / "two.yaml", {"base": "./base", "models": [{"model": "./lora"}]}), "lora"
    )
    assert found.base.name == "base"
    assert found.start.name == "lora"
    with pytest.raises(
        RecipeError, match="no model 'mm' in the recipe to start from; use --from base or m1,"
    ):
        ends(path, "mm")
    other = models.root / "elsewhere" / "m1"
    (other / "m1").mkdir(parents=True)
    monkeypatch.chdir(other)
    with pytest.raises(
        RecipeError, match=r"more than one model is called 'm1'; use --from m0 \(./m1\) or ./m1"
    ):
        ends(path, "m1")
    twins = {"base": "./base", "models": [{"model": "./m1", "label": "a"}, {"model": "./m1", "label": "b"}]}
    twins = write_recipe(models.root / "twins.yaml", twins)
    monkeypatch.chdir(models.root)
    with pytest.raises(RecipeError, match=r"use --from a \(./m1\) or b \(./m1\)"):
        ends(twins, "m1")
    assert ends(twins, "b").start.name == "b"
    assert ends(path, "m1").start.name == "m1"  # the model itself lies here


def test_an_adapter_starts_as_itself_over_the_base_without_its_edits(models):
    edits = [{"drop": {"density": 0.5}}]
    path = write_recipe(
        models.root / "lora.yaml",
        {
            "base": "./base",
            "models": [{"model": "./lora", "label": "l", "edits": edits, "weight": 0.5}],
            "scale": 2.0,
        },
    )
    start = ends(path).start.source
    assert isinstance(start, Recipe)
    (entry,) = start.models
    assert (entry.model, entry.edits, entry.weight, start.scale) == ("./lora", (), 1.0, 1.0)
    assert isinstance(start.merge, Sum)
    assert start.base == "./base"
    assert start.relative_to == models.root


def test_a_model_needs_a_start(models):
    model = str(models.root / "m0")
    with pytest.raises(RecipeError, match="says nothing of where the path starts; give --from MODEL"):
        ends(model)
    with pytest.raises(RecipeError, match="has no recipe that names its base; give the base's folder"):
        ends(model, "base")
    found = ends(model, str(models.root / "base"))
    assert (found.start.name, found.end.name, found.recipe, found.base) == ("base", "m0", None, None)
    with pytest.raises(RecipeError, match="is no recipe"):
        ends(model, str(models.root / "base"), ("scale=2",))


def test_starts_that_are_not_there(models):
    with pytest.raises(
        RecipeError, match="no model 'mth' in the recipe to start from; use --from base or math"
    ):
        ends(one(models), "mth")
    with pytest.raises(DamagedInputError, match="nothing lies at"):
        ends(one(models), "./mth")
    bare = write_recipe(
        models.root / "bare.yaml", {"models": [{"model": "./m0"}, {"model": "./m1"}], "merge": "linear"}
    )
    with pytest.raises(RecipeError, match="has no base for the path to start from; give --from m0 or m1"):
        ends(bare)


def test_changes_and_seeds_reach_the_recipe(models):
    assert read_recipe(one(models), ("scale=3",), seed=9).scale == 3
    assert read_recipe(one(models), (), seed=9).seed == 9
    assert read_recipe(one(models, seed=4)).seed == 4


def test_a_delta_to_follow_leads_from_the_base_to_the_model_as_it_is(models):
    path = one(models, "expo.yaml", preset="expo", alpha=0.5)
    recipe = read_recipe(path)
    found = resolve_delta(path, recipe, None)
    assert (found.start.name, found.end.name) == ("base", "math")
    assert Path(found.end.source).samefile(models.root / "m0")
    several = models.recipe()
    assert resolve_delta(several, read_recipe(several), None).end.name == "recipe"
    assert resolve_delta(path, recipe, "math").end.name == "expo"
