from __future__ import annotations

import pytest

from deltasmith.edits.drop import Drop
from deltasmith.errors import RecipeError
from deltasmith.merges.elect import Elect
from deltasmith.recipe.checks import from_dict, loads

TEXT = """
base: b
models:
  - {model: x, label: math, edits: [{drop: {density: 0.5}, where: "*.mlp.*"}, {amplify: {factor: 2}}]}
  - {model: y}
merge: elect
"""


def changed(*settings):
    return loads(TEXT, settings=settings, name="r.yaml")


@pytest.mark.parametrize("path", ["models.0.weight", "models.math.weight"])
def test_a_weight_by_position_or_label(path):
    assert changed(f"{path}=0.25").models[0].weight == 0.25


def test_default_labels_name_their_models():
    assert changed("models.m1.weight=1e-3").models[1].weight == 0.001


@pytest.mark.parametrize("path", ["models.0.edits.0.drop.density", "models.math.edits.drop.density"])
def test_a_field_of_an_edit(path):
    entry = changed(f"{path}=0.3").models[0].edits[0]
    assert (entry.record, entry.where) == (Drop(density=0.3), "*.mlp.*")


def test_new_keys_and_fields_of_an_operation_written_as_a_name():
    assert changed("scale=1.1", "seed=7").scale == 1.1
    assert changed("merge.elect.zero=majority").merge == Elect(zero="majority")
    assert changed("merge={elect: {zero: positive}}").merge == Elect(zero="positive")
    assert changed("models.1.edits=[{drop: {density: 0.5}}]").models[1].edits[0].record == Drop(density=0.5)


def test_later_settings_win_and_the_text_is_not_changed():
    assert changed("scale=1", "scale=2").scale == 2.0
    assert changed().scale == 1.0


def test_preset_fields():
    recipe = loads("base: b\nmodels: [{model: m}]\npreset: dare\ndensity: 0.5", settings=["density=0.25"])
    assert recipe.models[0].edits[0].record == Drop(density=0.25)
    assert from_dict({"models": [{"model": "m"}], "base": "b"}, settings=["preset=ties"]).merge == Elect(
        zero="majority"
    )


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("scal=2", '--set scal=2: unknown key "scal"; did you mean "scale"?'),
        ("scale=x", '--set scale=x: scale must be a number, not "x"'),
        (
            "models.mth.weight=1",
            '--set models.mth.weight=1: the recipe has no "mth" there; did you mean "math"?',
        ),
        ("models.7.weight=1", '--set models.7.weight=1: the recipe has no "7" there; there is: m1, math'),
        (
            "modles.0.weight=1",
            '--set modles.0.weight=1: the recipe has no "modles" there; did you mean "models"?',
        ),
        ("models.0.wieght=1", '--set models.0.wieght=1: unknown key "wieght"; did you mean "weight"?'),
        ("base.x=1", '--set base.x=1: there is nothing inside "b" to set "x" in'),
        (
            "models.0.edits.drop.density=9",
            "--set models.0.edits.drop.density=9: density must be above 0 and at most 1, not 9",
        ),
        (
            "models.0.edits.dropp.density=1",
            '--set models.0.edits.dropp.density=1: the recipe has no "dropp" there; did you mean "drop"?',
        ),
        ("scale", "--set scale is not of the form key=value; write --set models.0.weight=0.5"),
        ("=2", "--set =2 is not of the form key=value; write --set models.0.weight=0.5"),
        ("a..b=2", "--set a..b=2 is not of the form key=value; write --set models.0.weight=0.5"),
        ("scale={", "--set scale={: the value is not valid YAML; quote it"),
        ("scale=", "--set scale=: scale must be a number, not nothing"),
    ],
)
def test_problems_name_the_option(setting, expected):
    with pytest.raises(RecipeError) as caught:
        changed(setting)
    assert str(caught.value) == expected
    assert caught.value.exit_code == 2


def test_an_operation_that_occurs_twice_needs_its_position():
    text = "base: b\nmodels: [{model: m, edits: [{amplify: {factor: 2}}, {amplify: {factor: 3}}]}]"
    with pytest.raises(RecipeError, match=r'"amplify" is there 2 times; give its position'):
        loads(text, settings=["models.0.edits.amplify.factor=4"])
    assert loads(text, settings=["models.0.edits.1.amplify.factor=4"]).models[0].edits[1].record.factor == 4
