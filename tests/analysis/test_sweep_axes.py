"""The grammar of `--sweep`, what its names mean in a recipe, and what is refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.analysis.sweep_axes import MOST_POINTS, Axis, read_axes, read_plane
from deltasmith.errors import RecipeError
from deltasmith.recipe.problems import Problems


def axes(text: str) -> tuple[Axis, ...]:
    problems = Problems()
    found = read_axes(text, problems)
    problems.raise_any()
    return found


def assert_refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        axes(text)
    return str(caught.value)


def model(label: str, *edits: Any, **more: Any) -> dict[str, Any]:
    return {"model": label, "label": label, **({"edits": list(edits)} if edits else {}), **more}


def recipe(*models: Any, **keys: Any) -> dict[str, Any]:
    return {"base": "b", "models": list(models) or [model("a", {"drop": {"density": 0.5}})], **keys}


def problem(mapping: dict[str, Any], text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_plane(mapping, text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1:0.9:0.2", (0.1, 0.3, 0.5, 0.7, 0.9)),
        ("-1:1:0.25", (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)),
        ("0:1:0.3", (0.0, 0.3, 0.6, 0.9)),
        ("1:0:-0.5", (1.0, 0.5, 0.0)),
        ("0:1:0.333333333", (0.0, 0.333333333, 0.666666666, 1.0)),
        ("0:1:0.3333333334", (0.0, 0.3333333334, 0.6666666668, 1.0)),
        ("8:32:8", (8, 16, 24, 32)),
        ("1e-3:3e-3:1e-3", (0.001, 0.002, 0.003)),
        (" .5 : 1. : .25 ", (0.5, 0.75, 1.0)),
    ],
)
def test_a_range_includes_both_ends_and_is_exact(text: str, values: tuple[float, ...]) -> None:
    (axis,) = axes(f"x={text}")
    assert axis.values == values
    assert [type(v) for v in axis.values] == [type(v) for v in values]


def test_a_list_holds_numbers_words_and_truth_values() -> None:
    found = axes("zero=majority|none, codec=claq:bits=2|bitdelta, rank=8|16, on=true|false,k=0|0.5")
    assert [axis.values for axis in found] == [
        ("majority", "none"),
        ("claq:bits=2", "bitdelta"),
        (8, 16),
        (True, False),
        (0, 0.5),
    ]
    assert [axis.numeric for axis in found] == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k", "--sweep k: this is no axis; write NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE"),
        ("=1:2:1", "--sweep =1:2:1: this is no axis; write NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE"),
        (
            "k=0:1:-0.1",
            "--sweep k=0:1:-0.1: step -0.1 never leads from 0 to 1; it takes a positive step",
        ),
        ("k=1:0:0.1", "--sweep k=1:0:0.1: step 0.1 never leads from 1 to 0; it takes a negative step"),
        ("k=0:1:0", "--sweep k=0:1:0: step 0 never leads from 0 to 1; it takes a positive step"),
        ("k=1:1:1", "--sweep k=1:1:1: step 1 never leads from 1 to 1; the ends are equal"),
        (
            "k=0.5",
            '--sweep k=0.5: "0.5" is neither a range nor a list; '
            "write NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE, or --set for a single value",
        ),
        (
            "k=0:nan:1",
            '--sweep k=0:nan:1: "0:nan:1" is neither a range nor a list; '
            "write NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE",
        ),
        ("k=1|1", '--sweep k=1|1: "1" is there twice; remove one'),
        ("k=1||2", '--sweep k=1||2: "" is no value; write NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE'),
        ("k=.inf|1", '--sweep k=.inf|1: ".inf" is no value; write NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE'),
        (
            "k=0:1:1e-99",
            "--sweep k=0:1:1e-99: a number is beyond all measure; use one between 1e-30 and 1e30",
        ),
        (
            "k=0:1:1e-6",
            "--sweep k=0:1:1e-6: step 1e-6 makes 1,000,001 points, and the most are 10,000; take larger steps",
        ),
        ("k=1|2,k=3|4", '--sweep k=3|4: "k" is swept twice; give it one axis'),
    ],
)
def test_what_is_no_axis_is_refused(text: str, message: str) -> None:
    assert assert_refused(text) == message


def test_all_problems_come_at_once_and_the_product_counts() -> None:
    assert assert_refused("k=0:1:-1, p=0.5, q").splitlines()[0] == "3 problems in the recipe"
    assert assert_refused("a=1:200:1, b=1:100:1") == (
        "--sweep: the sweep has 20,000 points, and the most are 10,000; take larger steps, or fewer axes"
    )


@given(st.integers(-1000, 1000), st.integers(1, 50), st.integers(1, 400), st.integers(0, 4))
def test_a_range_reaches_its_end_exactly_as_it_would_be_written(
    low: int, step: int, count: int, digits: int
) -> None:
    numbers = [f"{n / 10**digits:.{digits}f}" for n in (low, low + count * step, step)]
    (axis,) = axes(f"x={':'.join(numbers)}")
    assert len(axis.values) == count + 1
    assert str(axis.values[0]) == str(float(numbers[0]) if digits else int(numbers[0]))
    assert axis.values[-1] == float(numbers[1])
    assert all(float(v) == float(f"{float(v):.{digits}f}") for v in axis.values)


def densities(mapping: dict[str, Any], text: str, settings: tuple[str, ...] = ()) -> list[list[float]]:
    plane = read_plane(mapping, text, settings)
    return [
        [e.record.density for m in plane.recipe(point).models for e in m.edits]  # type: ignore[attr-defined]
        for point in plane.points()
    ]


def test_a_field_is_set_in_all_models_at_once() -> None:
    mapping = recipe(*(model(label, {"drop": {"density": 0.5}, "where": "*.mlp.*"}) for label in "xyz"))
    assert densities(mapping, "density=0.25|0.75") == [[0.25] * 3, [0.75] * 3]
    assert densities(mapping, "p=0.1:0.9:0.4") == [[0.9] * 3, [0.5] * 3, [0.1] * 3]
    assert densities(mapping, "rate=0.3|0.4") == [[0.7] * 3, [0.6] * 3]
    globs = {e.where for m in read_plane(mapping, "p=0.1|0.2").recipe({"p": 0.1}).models for e in m.edits}
    assert globs == {"*.mlp.*"}


def test_a_field_of_several_operations_is_set_in_all_or_in_the_named_one() -> None:
    mapping = recipe(model("x", {"keep_largest": {"density": 0.5}}, {"drop": {"density": 0.5}}))
    assert densities(mapping, "density=0.2|0.4") == [[0.2, 0.2], [0.4, 0.4]]
    assert read_plane(mapping, "density=0.2|0.4").notes == (
        "density is swept in keep_largest and drop at once; keep_largest.density would mean one of them",
    )
    assert densities(mapping, "drop.density=0.2|0.4") == [[0.5, 0.2], [0.5, 0.4]]
    assert densities(mapping, "drop.p=0.2|0.4") == [[0.5, 0.8], [0.5, 0.6]]
    assert read_plane(mapping, "drop.p=0.2|0.4").notes == ()


def test_a_field_that_the_recipe_leaves_to_its_default_can_be_swept() -> None:
    mapping = recipe(model("x", {"drop_by_rank": {"density": 0.5}}), model("y"), merge="elect")
    plane = read_plane(mapping, "window=0.1|0.2, zero=majority|none")
    last = plane.recipe({"window": 0.2, "zero": "none"})
    assert last.models[0].edits[0].record.window == 0.2  # type: ignore[attr-defined]
    assert last.merge.zero == "none"  # type: ignore[attr-defined]


def test_keys_weights_paths_and_the_set_before() -> None:
    plane = read_plane(recipe(model("x"), model("y", weight=2.0)), "scale=1:2:0.5, weight=1|3", ["seed=7"])
    assert len(plane) == 6
    points = list(plane.points())
    assert points[1] == {"scale": 1.0, "weight": 3}
    found = plane.recipe(points[-1])
    assert (found.scale, [m.weight for m in found.models], found.seed) == (2.0, [3, 3], 7)
    by_path = read_plane(recipe(model("x"), model("y")), "models.y.weight=0.5|1.5")
    assert [m.weight for m in by_path.recipe({"models.y.weight": 0.5}).models] == [1.0, 0.5]


def test_a_preset_takes_its_own_fields() -> None:
    dare = {
        "preset": "dare",
        "base": "b",
        "models": [model("x"), model("y")],
        "density": {"x": 0.5, "y": 0.6},
    }
    assert densities(dare, "p=0.9|0.8") == [[0.1, 0.1], [0.2, 0.2]]
    assert densities(dare, "drop.density=0.9|0.8") == [[0.9, 0.9], [0.8, 0.8]]
    expo = {"preset": "expo", "base": "b", "models": [model("x")]}
    plane = read_plane(expo, "alpha=-0.5:0.5:0.5")
    assert [plane.recipe(point).scale for point in plane.points()] == [0.5, 1.0, 1.5]


def test_a_recipe_may_need_the_swept_field() -> None:
    assert densities(recipe(model("x", "drop")), "p=0.5|0.75") == [[0.5], [0.25]]


def test_unknown_names_are_refused_with_what_there_is() -> None:
    message = problem(recipe(), "densty=0.1|0.2, q=1|2, models.z.weight=1|2")
    assert message.splitlines() == [
        "3 problems in the recipe",
        '--sweep densty: the recipe has no "densty" to sweep; did you mean "density"?',
        '--sweep q: the recipe has no "q" to sweep; what can be swept: density, p, scale, seed and weight',
        '--sweep models.z.weight: the recipe has no "z" there; there is: a',
    ]


def test_the_first_refused_value_of_each_axis_is_named() -> None:
    message = problem(recipe(model("x", {"drop_by_rank": {"density": 0.5}})), "p=0:1.5:0.5, window=0|-1|-2")
    assert message.splitlines()[1:] == [
        "--sweep p=1.0: density must be above 0 and at most 1, not 0; use weight: 0 to leave the model out",
        "--sweep window=-1: window must be at least 0 and below 1, not -1",
    ]
    assert problem(recipe(), "models.a.edits.0.drop.density=0.5|2") == (
        "--sweep models.a.edits.0.drop.density=2: density must be above 0 and at most 1, not 2"
    )


def test_names_and_values_are_reported_together_and_what_follows_from_them_is_not() -> None:
    message = problem(recipe(model("x", "drop_by_rank")), "densty=0.1|0.2, window=0.5|1, k=3:1:1")
    assert message.splitlines() == [
        "3 problems in the recipe",
        "--sweep k=3:1:1: step 1 never leads from 3 to 1; it takes a negative step",
        '--sweep densty: the recipe has no "densty" to sweep; did you mean "density"?',
        "--sweep window=1: window must be at least 0 and below 1, not 1",
    ]


def test_values_that_do_not_go_together_name_their_point() -> None:
    mapping = recipe(model("x", {"drop_by_rank": {"density": 0.9, "window": 0.1}}))
    message = problem(mapping, "density=0.9|0.5|0.95, window=0.1|0.4")
    assert message == (
        "recipe: models.0.edits.0.drop_by_rank: drop_by_rank: keep probabilities would range from 0.7 to 1.1 "
        "(density 0.9 with half a width of 0.2); they must lie in (0, 1] (at density=0.9, window=0.4)"
    )


def test_a_wrong_recipe_is_reported_as_it_is() -> None:
    message = problem(recipe(model("x", {"drop": {"density": 0.5, "colour": 3}}), scal=3), "p=0.1|0.2")
    assert "at p" not in message
    assert 'unknown key "colour"' in message
    assert 'unknown key "scal"' in message


def test_two_axes_cannot_mean_the_same_number() -> None:
    for text in (
        "p=0.1|0.2, density=0.1|0.2",
        "density=0.1|0.2, drop.density=0.1|0.2",
        "p=0.1|0.2, rate=0.1|0.2",
    ):
        second = text.split(", ")[1].split("=")[0]
        first = text.split("=")[0]
        assert problem(recipe(), text) == (
            f'--sweep {second}: it sets the same number as "{first}"; leave one of the axes out'
        )


def test_a_complement_takes_numbers_only() -> None:
    assert problem(recipe(), "p=low|high") == (
        "--sweep p: p is 1 - density, and not all of its values are numbers"
    )


def test_points_stay_within_the_limit() -> None:
    assert len(read_plane(recipe(), "seed=1:100:1")) == 100 <= MOST_POINTS
