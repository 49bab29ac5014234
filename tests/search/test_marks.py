"""Marks: what they range over, what is wrong with them and where, and what takes their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith.errors import RecipeError
from deltasmith.search.edges import edge_warnings
from deltasmith.search.marked import load_marked
from deltasmith.search.marks import Ladder, Range
from models import check_refusal, run

RECIPE = """\
preset: della
base: ./base
models:
  - {{model: ./m0, label: math, weight: {weight}}}
  - {{model: ./m1}}
density: {density}
scale: {scale}
"""


def written(folder: Path, weight="1.0", density="0.5", scale="1.0") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(weight=weight, density=density, scale=scale))
    return path


def spans(path: Path) -> dict[str, Range | Ladder]:
    return {d.name: d.span for d in load_marked(path).dimensions}


def test_every_form_of_a_mark(tmp_path):
    path = written(
        tmp_path,
        weight="{tune: [0.1, 1.5]}",
        density="{math: {tune: {choices: [0.5, 0.1]}}, m1: {tune: [0.1, 0.4], step: 0.1}}",
        scale="{layers: [{tune: [0.1, 2.0], log: true}, 1.0, {tune: [2, 16], integer: true}]}",
    )
    assert spans(path) == {
        "models.math.weight": Range(0.1, 1.5),
        "density.math": Ladder((0.1, 0.5)),
        "density.m1": Ladder((0.1, 0.2, 0.3, 0.4)),
        "scale.layers.0": Range(0.1, 2.0, log=True),
        "scale.layers.2": Range(2, 16, integer=True),
    }


def test_a_schedule_by_names_and_a_mark_from_set(tmp_path):
    path = written(tmp_path, scale='[{where: "*.mlp.*", value: {tune: [0, 1]}}, {where: "*", value: 1.0}]')
    found = load_marked(path, ["models.1.weight={tune: [1, 2], integer: true}"])
    assert [d.name for d in found.dimensions] == ["models.m1.weight", "scale.0.value"]


@pytest.mark.parametrize(
    ("mark", "place", "words"),
    [
        ("{tune: [1.0, 0.5]}", "7:15", "low < high, not [1.0, 0.5]"),
        ("{tune: [1.0, 1.0]}", "7:15", "low < high"),
        ("{tune: [1.0]}", "7:15", "two ends, not 1 values"),
        ("{tune: [0, .inf]}", "7:19", "finite"),
        ("{tune: [.nan, 1]}", "7:16", "finite"),
        ("{tune: [a, 1]}", "7:16", 'must be a number, not "a"'),
        ("{tune: [true, 2]}", "7:16", "must be a number, not true"),
        ("{tune: [0, 1], log: true}", "7:16", "log needs a low end above 0"),
        ("{tune: [0, 1], log: 1}", "7:28", "log must be true or false, not 1"),
        ("{tune: [0.5, 2], integer: true}", "7:15", "integer needs whole ends"),
        ("{tune: [0, 4], integer: true, step: 0.5}", "7:15", "a whole step"),
        ("{tune: [0, 1], step: 0}", "7:29", "step must be above 0"),
        ("{tune: [0, 1], step: 2}", "7:15", "makes 1 value of"),
        ("{tune: [0, 1], step: 1e-9}", "7:15", "choose one that makes 2 to 10,000"),
        ("{tune: [1, 2], step: 0.1, log: true}", "7:15", "exclude each other"),
        ("{tune: {choices: []}}", "7:25", "not empty"),
        ("{tune: {choices: [0.1, 0.1]}}", "7:25", "occurs twice"),
        ("{tune: {choices: [0.1, b]}}", "7:31", 'not "b"'),
        ("{tune: {choice: [0.1]}}", "7:15", 'did you mean "choices"?'),
        ("{tune: {choices: [0.1]}, log: true}", "7:33", "log cannot stand beside choices"),
        ("{tune: 0.5}", "7:8", "no mark that tune can read"),
        ("{tune: [0, 1], lgo: true}", "7:8", "no mark that tune can read"),
    ],
)
def test_what_is_wrong_with_a_mark_and_where(tmp_path, mark, place, words):
    with pytest.raises(RecipeError) as caught:
        load_marked(written(tmp_path, scale=mark))
    assert f"recipe.yaml:{place}: " in str(caught.value)
    assert words in str(caught.value)


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    with pytest.raises(RecipeError, match="2 problems") as caught:
        load_marked(written(tmp_path, weight="{tune: [2, 1]}", scale="{tune: []}"))
    assert [
        line.split(" ")[0].rpartition("recipe.yaml")[2] for line in str(caught.value).splitlines()[1:]
    ] == [
        ":4:47:",
        ":7:15:",
    ]


def test_errors_of_the_recipe_keep_their_lines(tmp_path):
    path = written(tmp_path, density="{tune: [0.1, 0.9]}")
    path.write_text(path.read_text() + "windo: 0.1\n")
    with pytest.raises(RecipeError, match=r'recipe.yaml:8:1: unknown key "windo"; did you mean "window"'):
        load_marked(path).check_ends()


def test_a_range_beyond_what_the_recipe_allows_is_refused_at_the_mark(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe.yaml:6:10: density must be .*not 1.5; narrow the range"):
        load_marked(written(tmp_path, density="{tune: [0.1, 1.5]}")).check_ends()
    with pytest.raises(RecipeError, match=r"recipe.yaml:6:10: "):
        load_marked(written(tmp_path, density="{tune: {choices: [0, 0.5]}}")).check_ends()


def test_a_text_cannot_be_searched_for(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text() + "dtype: {tune: [1, 2]}\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:8:8: dtype must be base, float32"):
        load_marked(path).check_ends()


def test_without_marks(tmp_path):
    with pytest.raises(RecipeError, match="the recipe has no marks"):
        load_marked(written(tmp_path)).check_ends()


def test_fields_that_must_ascend_are_left_to_the_trials(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "preset: dppa\nbase: b\nmodels: [{model: m}]\nfactors: [1, 1]\n"
        "densities: [{tune: [0.1, 0.6]}, {tune: [0.3, 0.9]}]\n"
    )
    found = load_marked(path)
    found.check_ends()
    assert not found.accepts({"densities.0": 0.5, "densities.1": 0.4})


@pytest.mark.parametrize("command", ["plan", "merge"])
def test_plan_and_merge_point_to_tune(tmp_path, command):
    path = written(tmp_path, weight="{tune: [2, 1]}", scale="{tune: {choices: [1.0]}}")
    result = run(command, path, *[tmp_path / "out"] * (command == "merge"))
    check_refusal(result, 2, "recipe.yaml:4:40: {tune: …} stands where a number is needed", "deltasmith tune")


def test_marks_in_a_recipe_named_by_its_file_are_refused(tmp_path):
    written(tmp_path, scale="{tune: [0.1, 1]}")
    outer = tmp_path / "outer.yaml"
    outer.write_text(
        "models:\n  - {model: ./recipe.yaml}\n  - {model: ./m1, weight: {tune: [0, 1]}}\nmerge: linear\n"
    )
    with pytest.raises(RecipeError, match=r"recipe.yaml:7:8: \{tune: …\} stands where a number is needed"):
        load_marked(outer).check_ends()


def test_a_model_may_be_labelled_tune(tmp_path):
    path = written(tmp_path, density="{tune: 0.5, m1: 0.3}")
    path.write_text(path.read_text().replace("label: math", "label: tune"))
    assert load_marked(path).dimensions == ()
    assert load_marked(path).accepts({})


def test_numbers_take_the_place_of_marks(tmp_path):
    path = written(
        tmp_path, weight="{tune: [0.1, 1.5]}", scale="{layers: [{tune: [1, 3], integer: true}, 1.0]}"
    )
    (tmp_path / "m0").mkdir()
    mapping = load_marked(path).mapping({"models.math.weight": 0.25, "scale.layers.0": 2})
    assert mapping["models"][0] == {"model": str(tmp_path / "m0"), "label": "math", "weight": 0.25}
    assert mapping["scale"] == {"layers": [2, 1.0]}
    assert mapping["models"][1] == {"model": "./m1"}  # nothing lies there: left as it is


def test_paths_follow_the_recipe_to_another_folder(tmp_path):
    path = written(tmp_path, scale="{tune: [0, 1]}")
    for name in ("base", "m0", "m1", "elsewhere"):
        (tmp_path / name).mkdir()
    path.write_text(path.read_text().replace("./m0", str(tmp_path / "m0")))
    moved = load_marked(path).mapping({"scale": 0.5}, tmp_path / "elsewhere")
    assert moved["base"] == "../base"
    assert [m["model"] for m in moved["models"]] == [str(tmp_path / "m0"), "../m1"]
    assert load_marked(path).mapping({"scale": 0.5}, tmp_path)["base"] == "./base"


@pytest.mark.parametrize(
    ("fields", "default"),
    [
        ({"scale": "{tune: [0, 1]}"}, {"density": 0.5}),
        ({"scale": "{layers: [{tune: [0, 1]}, 1.0]}"}, {"density": 0.5}),
        ({"scale": '[{where: "*", value: {tune: [0, 1]}}]'}, {"density": 0.5}),
        ({"density": "{tune: [0.1, 1]}"}, None),  # della has no density of its own
    ],
)
def test_the_recipe_without_its_marks(tmp_path, fields, default):
    found = load_marked(written(tmp_path, **fields)).default()
    assert (found is None) == (default is None)
    if default is not None:
        mapping = found.mapping({})
        assert "scale" not in mapping
        assert mapping["density"] == default["density"]


def test_values_of_ranges():
    assert Range(0.1, 1.5).value(0.123456789) == 0.1235
    assert Range(0.1, 0.99995).value(0.99995) == 0.99995  # rounding does not leave the range
    assert Range(2, 16, integer=True).value(7.0) == 7
    assert type(Range(2, 16, integer=True).value(7.0)) is int
    assert Range(0.01, 1.0, log=True).points(3) == (0.01, 0.1, 1.0)
    assert Range(1, 3, integer=True).points(5) == (1, 2, 3)
    assert Ladder((0.1, 0.2, 0.5)).value(2) == 0.5
    assert Ladder((0.1, 0.2, 0.5)).points(2) == (0.1, 0.2, 0.5)


@pytest.mark.parametrize(
    ("span", "value", "edge"),
    [
        (Range(0.0, 1.0), 0.02, "lower"),
        (Range(0.0, 1.0), 0.021, None),
        (Range(0.0, 1.0), 0.98, "upper"),
        (Range(0.0, 1.0), 0.5, None),
        (Range(0.01, 100.0, log=True), 0.011, "lower"),
        (Range(0.01, 100.0, log=True), 1.0, None),
        (Range(0.01, 100.0, log=True), 50.0, None),
        (Range(2, 16, integer=True), 16, "upper"),
        (Range(2, 16, integer=True), 15, None),
        (Ladder((0.1, 0.2, 0.5)), 0.1, "lower"),
        (Ladder((0.1, 0.2, 0.5)), 0.5, "upper"),
        (Ladder((0.1, 0.2, 0.5)), 0.2, None),
        (Ladder((0.1,)), 0.1, None),
    ],
)
def test_what_lies_at_an_edge(span, value, edge):
    assert span.edge(value) == edge


def test_edges_that_the_recipe_could_not_pass_are_told_apart(tmp_path):
    path = written(tmp_path, density="{tune: [0.1, 1.0]}", scale="{tune: [0.1, 1.0]}")
    (density, scale) = edge_warnings(load_marked(path), {"density": 1.0, "scale": 1.0})
    assert density == "density = 1 lies at the upper edge of [0.1, 1]; the recipe allows nothing beyond"
    assert scale == "scale = 1 lies at the upper edge of [0.1, 1]; widen the range and search again"
    assert list(edge_warnings(load_marked(path), {"density": 0.5, "scale": 0.5})) == []
    path = written(tmp_path, density="{tune: {choices: [0.2, 0.8]}}")
    (warning,) = edge_warnings(load_marked(path), {"density": 0.8})
    assert warning.endswith("upper edge of [0.2, 0.8]; widen the range and search again")
