"""Faults 1 to 16 of a recipe: exit code 2, one line each, with place and suggestion."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from recipe_cases import FAULTS, ONE, TWO

from deltasmith.edits.drop import Drop, DropMatchL1
from deltasmith.edits.drop_by_rank import DropByRank
from deltasmith.edits.keep_largest import KeepLargest
from deltasmith.errors import RecipeError
from deltasmith.merges.elect import Elect
from deltasmith.merges.linear import Linear
from deltasmith.merges.regmean import RegMean
from deltasmith.merges.sum import Sum
from deltasmith.operation.schedule import Curve, PerTensor
from deltasmith.recipe.checks import from_dict, load, loads
from deltasmith.recipe.model import EditEntry, ModelEntry, Recipe
from deltasmith.recipe.problems import RecipeProblems


def problems(text: str, settings=()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, settings=settings, name="r.yaml")
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, RecipeProblems)
    return [str(problem) for problem in caught.value.problems]


def test_the_recipe_of_the_design_page():
    text = """
base: ./base
models:
  - {model: ./math, weight: 0.5, edits: [{drop_by_rank: {density: 0.7, window: 0.14}}]}
  - {model: ./code, label: code, weight: 0.5, edits: [{keep_largest: {density: 0.2}, where: "*.mlp.*"}]}
merge: elect
scale: 1.1
"""
    rank = EditEntry(DropByRank(density=0.7, window=0.14))
    keep = EditEntry(KeepLargest(density=0.2), "*.mlp.*")
    folder = Path("here")
    assert loads(text, "here") == Recipe(
        models=(
            ModelEntry("./math", "m0", 0.5, (rank,), relative_to=folder),
            ModelEntry("./code", "code", 0.5, (keep,), relative_to=folder),
        ),
        merge=Elect(),
        base="./base",
        scale=1.1,
        relative_to=folder,
    )


def test_defaults():
    recipe = loads(ONE)
    assert recipe.merge == Sum()
    assert (recipe.space, recipe.scale, recipe.where, recipe.tokenizer) == ("delta", 1.0, "*", "base")
    assert (recipe.dtype, recipe.seed, recipe.nonfinite, recipe.dialect) == ("base", 0, "refuse", "paper")
    assert recipe.labels == ("m0",)


def test_every_key_arrives():
    recipe = loads(
        TWO + "merge: linear\nspace: delta\nscale: 2\nwhere: '*.mlp.*'\nrules: []\ntokenizer: code\n"
        "dtype: bfloat16\nseed: 18446744073709551615\ndialect: mergekit\nnonfinite: zero\n"
    )
    assert recipe.merge == Linear()
    assert (recipe.space, recipe.scale, recipe.where, recipe.tokenizer) == ("delta", 2.0, "*.mlp.*", "code")
    assert (recipe.dtype, recipe.seed, recipe.nonfinite) == ("bfloat16", 2**64 - 1, "zero")
    assert recipe.dialect == "mergekit"


def test_without_a_base_the_first_model_lends_the_tokenizer():
    assert loads("models: [{model: a}, {model: b}]\nmerge: linear").tokenizer == "m0"


@pytest.mark.parametrize(("text", "expected"), FAULTS)
def test_one_fault_is_one_line(text, expected):
    if "occurs twice" in expected:
        with pytest.raises(RecipeError) as caught:
            loads(text, name="r.yaml")
        assert str(caught.value) == expected
    else:
        assert problems(text) == [expected]


def test_all_problems_of_a_recipe_are_reported_at_once_in_order():
    text = """base: b
scal: 2
models:
  - {model: m, weight: .nan, edits: [{drop: {density: 7}}, {dropp: {density: 1}}]}
  - {model: n, label: 5}
merge: {elect: {zero: nil, one: 1}}
seed: x
"""
    expected = """8 problems in the recipe
r.yaml:2:1: unknown key "scal"; did you mean "scale"?
r.yaml:4:24: weight must be a finite number, not .nan
r.yaml:4:55: density must be above 0 and at most 1, not 7
r.yaml:4:61: unknown edit "dropp"; did you mean "drop"?
r.yaml:5:23: label must be text, not 5; write label: "5"
r.yaml:6:23: zero must be majority, positive or none, not "nil"
r.yaml:6:28: unknown key "one"; elect takes: zero
r.yaml:7:7: seed must be a whole number from 0 to 2^64 - 1, not "x"\
"""
    with pytest.raises(RecipeError) as caught:
        loads(text, name="r.yaml")
    assert str(caught.value) == expected
    assert caught.value.exit_code == 2
    assert str(pickle.loads(pickle.dumps(caught.value))) == expected


def test_hostile_text_does_not_reach_the_terminal():
    for text, name in (('"\\e[2J\\u202e": 1\n', "r.yaml"), ("x: 1\n", "\x1b[2J\u202e.yaml")):
        with pytest.raises(RecipeError) as caught:
            loads(ONE + text, name=name)
        assert "unknown key" in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert "\u202e" not in str(caught.value)


def test_schedules_and_their_shapes():
    model = "base: b\nmodels: [{{model: m, weight: {}}}]"
    assert loads(model.format("{layers: [0, 1e-3]}")).models[0].weight == Curve(layers=(0.0, 0.001))
    per_tensor = loads(model.format("[{where: '*.a', value: 2}, {where: '*', value: {layers: [1]}}]"))
    assert isinstance(per_tensor.models[0].weight, PerTensor)
    assert problems(model.format("{layer: [1]}")) == [
        'r.yaml:2:30: weight: unknown key "layer"; did you mean "layers"?'
    ]
    assert problems(model.format("{layers: []}")) == [
        "r.yaml:2:38: weight: layers must be a list of numbers, not a list"
    ]
    assert problems(model.format("{layers: [1, x, .nan]}")) == [
        'r.yaml:2:42: weight must be a number, not "x"',
        "r.yaml:2:45: weight must be a finite number, not .nan",
    ]
    assert problems(model.format("[{where: '*'}]")) == [
        "r.yaml:2:30: weight: an entry needs both where and value"
    ]
    assert problems("base: b\nmodels: [{model: m, edits: [{drop: {density: {layers: [0.5, 7]}}}]}]") == [
        "r.yaml:2:61: density must be above 0 and at most 1, not 7"
    ]


def test_numbers_such_as_1e_3_are_numbers():
    assert loads("base: b\nmodels: [{model: m, weight: 1e-3}]\nscale: 1E+0").models[0].weight == 0.001


def test_dialects_choose_records():
    edit = "base: b\nmodels: [{model: m, edits: [{drop: {density: 0.5%s}}]}]\n"
    assert loads(edit % "" + "dialect: mergekit").models[0].edits[0].record == DropMatchL1(density=0.5)
    assert loads(edit % ", dialect: paper" + "dialect: mergekit").models[0].edits[0].record == Drop(
        density=0.5
    )
    assert loads(ONE + "merge: {elect: {dialect: mergekit}}").merge == Elect(zero="positive")
    assert loads(ONE + "merge: {elect: {dialect: mergekit, zero: none}}").merge == Elect(zero="none")


def test_the_same_folder_may_appear_twice():
    recipe = loads("base: b\nmodels: [{model: b}, {model: b}]")
    assert recipe.labels == ("m0", "m1")


def test_statistics_stand_beside_their_models():
    models = "models: [{model: a, label: x, statistics: x.st}, {model: b, label: y, statistics: y.st}]\n"
    text = models + "merge: regmean"
    recipe = loads(text)
    assert recipe.merge == RegMean(statistics={"x": "x.st", "y": "y.st"})
    assert [entry.statistics for entry in recipe.models] == ["x.st", "y.st"]
    models = "models: [{model: a, label: x}, {model: b, label: y}]\n"
    same = models + "merge: {regmean: {statistics: {x: x.st, y: y.st}}}"
    assert loads(same) == recipe
    assert problems(text.replace(", statistics: y.st", "")) == [
        'r.yaml:2:8: regmean needs a statistics file for the model "y"; '
        "write statistics: FILE beside the model"
    ]
    assert problems(same.replace("{x: x.st,", "{z: x.st,")) == [
        'r.yaml:2:8: regmean needs a statistics file for the model "x"; '
        "write statistics: FILE beside the model",
        'r.yaml:2:31: regmean: no model has the label "z"; the labels are: x, y',
    ]


def test_recipes_nest_inline_and_by_path(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "avg.yaml").write_text("models: [{model: ./a}, {model: ./b}]\nmerge: linear\n")
    outer = tmp_path / "outer.yaml"
    outer.write_text(
        "base: {models: [{model: ./p}, {model: ./q}], merge: linear}\n"
        "models: [{model: inner/avg.yaml, label: avg}]\n"
    )
    recipe = load(outer)
    assert isinstance(recipe.base, Recipe)
    assert recipe.base.models[0].relative_to == tmp_path
    nested = recipe.models[0].model
    assert isinstance(nested, Recipe)
    assert nested.models[0] == ModelEntry("./a", "m0", relative_to=inner)


def test_problems_of_nested_recipes_name_their_own_file(tmp_path):
    (tmp_path / "inner.yaml").write_text("models: [{model: a}]\nmerge: linaer\n")
    outer = tmp_path / "outer.yaml"
    outer.write_text("base: b\nmodels: [{model: inner.yaml}, {model: missing.yml, weight: x}]\n")
    with pytest.raises(RecipeProblems) as caught:
        load(outer)
    lines = [str(problem) for problem in caught.value.problems]
    assert lines[0] == f'{tmp_path}/inner.yaml:2:8: unknown merge "linaer"; did you mean "linear"?'
    assert lines[1].startswith(f"{outer}:2:39: cannot read the recipe {tmp_path}/missing.yml: No such file")
    assert lines[2] == f'{outer}:2:60: weight must be a number, not "x"'


def test_a_broken_recipe_that_is_named_twice_is_reported_once_and_is_no_cycle(tmp_path):
    (tmp_path / "inner.yaml").write_text("models: [\n")
    outer = tmp_path / "outer.yaml"
    outer.write_text("base: b\nmodels: [{model: inner.yaml}, {model: inner.yaml}]\n")
    with pytest.raises(RecipeProblems) as caught:
        load(outer)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{tmp_path}/inner.yaml:2:1: not valid YAML")


def test_one_recipe_may_be_named_twice(tmp_path):
    (tmp_path / "inner.yaml").write_text("models: [{model: a}]\nmerge: linear\n")
    outer = tmp_path / "outer.yaml"
    outer.write_text("base: b\nmodels: [{model: inner.yaml}, {model: inner.yaml}]\n")
    assert load(outer).models[0].model == load(outer).models[1].model


def test_cycles_are_refused(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"base: b\nmodels: [{{model: {other}.yaml}}]\n")
    with pytest.raises(
        RecipeProblems, match=r'the recipe "a.yaml" leads back to itself; break the cycle'
    ) as caught:
        load(tmp_path / "a.yaml")
    assert len(caught.value.problems) == 1


def test_recipes_that_multiply_are_refused(tmp_path):
    for i in range(12):
        inner = f"r{i + 1}.yaml" if i < 11 else "./end"
        models = ", ".join([f"{{model: {inner}}}"] * 3)
        (tmp_path / f"r{i}.yaml").write_text(f"models: [{models}]\nmerge: linear\n")
    with pytest.raises(RecipeError, match="more than 200 recipes inside one another"):
        load(tmp_path / "r0.yaml")


def test_a_dict_has_paths_instead_of_lines():
    with pytest.raises(RecipeProblems) as caught:
        from_dict({"base": "b", "models": [{"model": Path("m"), "weight": float("nan")}], "sed": 1})
    assert [str(p) for p in caught.value.problems] == [
        'recipe: sed: unknown key "sed"; did you mean "seed"?',
        "recipe: models.0.weight: weight must be a finite number, not nan",
    ]
    with pytest.raises(RecipeError, match="recipe: models: set is not a kind of value a recipe can hold"):
        from_dict({"models": {1}})
    with pytest.raises(RecipeError, match="keys must be text, not 1"):
        from_dict({1: 2})
    loop: dict[str, object] = {}
    loop["models"] = loop
    with pytest.raises(RecipeError, match="nested more than 50 levels deep"):
        from_dict(loop)
