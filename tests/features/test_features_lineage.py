"""Who descends from whom: manifests, recipes, packed deltas, a file, options; and what cannot be told is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltasmith import api
from deltasmith.errors import RecipeError, RefusedError
from deltasmith.features.lineage import lineage_of, resolve


def write_model(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    save_file({"w.weight": rng.normal(size=(4, 6)).astype(np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    return folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("base", "lua", "stories")):
        write_model(tmp_path / name, seed)
    return tmp_path


def merged(models: Path, *, base: bool = True, names: tuple[str, ...] = ("lua", "stories")) -> Path:
    recipe = {
        "models": [{"model": str(models / name), "label": f"of_{name}"} for name in names],
        "merge": "sum" if base else "linear",
        **({"base": str(models / "base")} if base else {}),
    }
    api.merge(recipe, models / "merged")
    return models / "merged"


def words(models: Path, *labels: str) -> list[str]:
    return [f"{label}={models / label}" for label in labels]


def descent(found: object) -> dict[str, tuple[tuple[str, ...], str | None]]:
    return {node.label: (node.parents, node.base) for node in found.nodes}  # type: ignore[attr-defined]


def test_a_merge_tells_its_parents_and_their_base(models: Path) -> None:
    merged(models)
    found = lineage_of(words(models, "merged", "stories", "base", "lua"))
    assert descent(found.graph) == {
        "base": ((), None),
        "stories": (("base",), None),
        "lua": (("base",), None),
        "merged": (("lua", "stories"), "base"),
    }
    assert [node.label for node in found.graph.nodes] == ["base", "stories", "lua", "merged"]
    assert found.graph.by_label["merged"].method == "sum"
    assert found.notes == (
        "lua is taken to descend from base, over which merged was merged from it",
        "stories is taken to descend from base, over which merged was merged from it",
    )


def test_the_hash_decides_and_not_the_label_or_the_folder(models: Path) -> None:
    merged(models)
    (models / "lua").rename(models / "elsewhere")
    found = resolve(
        [
            f"a={models / 'base'}",
            f"b={models / 'stories'}",
            f"c={models / 'elsewhere'}",
            *words(models, "merged"),
        ]
    )
    assert descent(found)["merged"] == (("c", "b"), "a")
    assert found.by_label["c"].shown == "elsewhere"


def test_a_changed_model_of_the_same_size_is_not_the_parent(models: Path) -> None:
    merged(models)
    (models / "lua" / "model.safetensors").unlink()
    (models / "lua").joinpath("config.json").unlink()
    (models / "lua").rmdir()
    write_model(models / "lua", 99)
    with pytest.raises(RecipeError) as caught:
        resolve(words(models, "base", "lua", "stories", "merged"))
    assert str(caught.value) == (
        "nothing tells where lua comes from in lineage; name the parent of each, for example --parent lua=base"
    )


def test_a_merge_without_a_base_joins_its_parents(models: Path) -> None:
    merged(models, base=False)
    found = resolve(words(models, "lua", "stories", "merged"))
    assert descent(found) == {"lua": ((), None), "stories": ((), None), "merged": (("lua", "stories"), None)}


def test_models_that_nothing_joins_are_refused_with_the_options_to_add(models: Path) -> None:
    merged(models, base=False)
    with pytest.raises(RecipeError) as caught:
        resolve(words(models, "base", "lua", "stories", "merged"))
    assert str(caught.value) == (
        "nothing tells where lua, stories come from in lineage; "
        "name the parent of each, for example --parent lua=base --parent stories=base"
    )
    found = resolve(words(models, "base", "lua", "stories", "merged"), ["lua=base", "stories=base"])
    assert [(edge.parent, edge.child, edge.kind) for edge in found.edges] == [
        ("base", "lua", "parent"),
        ("base", "stories", "parent"),
        ("base", "merged", "base"),
        ("lua", "merged", "parent"),
        ("stories", "merged", "parent"),
    ]


def test_what_is_given_by_hand_goes_before_the_manifest(models: Path) -> None:
    merged(models)
    found = lineage_of(
        words(models, "base", "lua", "stories", "merged"), ["merged=stories", "lua=base", "stories=base"]
    )
    assert descent(found.graph)["merged"] == (("stories",), None)
    assert found.notes == (
        "merged: by its own record it descends from lua, stories over base; what was given by hand is used",
    )


def test_an_option_names_several_parents_and_a_base(models: Path) -> None:
    hand = ["merged=lua,stories@base", "lua=base", "stories=base"]
    write_model(models / "merged", 7)
    found = lineage_of(words(models, "base", "lua", "stories", "merged"), hand)
    assert descent(found.graph)["merged"] == (("lua", "stories"), "base")
    assert not found.notes


def test_a_merge_of_models_that_are_not_given_is_followed_from_its_base(models: Path) -> None:
    merged(models)
    found = lineage_of(words(models, "base", "merged"))
    assert descent(found.graph)["merged"] == (("base",), None)
    assert found.notes == (
        "merged: none of the models it was made of is given; it is followed from its base base",
    )


def test_a_parent_that_is_missing_is_noted(models: Path) -> None:
    merged(models)
    found = lineage_of(words(models, "base", "lua", "merged"))
    assert descent(found.graph)["merged"] == (("lua",), "base")
    assert "merged: it was made of of_stories too, which is not among the models given" in found.notes


def test_a_recipe_descends_from_the_models_it_names(models: Path) -> None:
    (models / "mix.yaml").write_text(
        "base: ./base\nmodels:\n  - {model: ./lua, label: x}\n  - {model: ./stories, label: y}\nmerge: sum\n"
    )
    (models / "copy").mkdir()
    for path in (models / "lua").iterdir():
        (models / "copy" / path.name).write_bytes(path.read_bytes())
    given = [*words(models, "base", "stories"), f"lua={models / 'copy'}", f"mix={models / 'mix.yaml'}"]
    found = resolve(given)
    assert descent(found)["mix"] == (("lua", "stories"), "base")
    assert found.by_label["mix"].shown == "mix.yaml"


def test_a_packed_delta_descends_from_its_base(models: Path) -> None:
    from deltasmith.packing import pack

    pack(str(models / "base"), str(models / "lua"), models / "packed")
    found = resolve([*words(models, "stories", "base"), f"small={models / 'packed'}"], ["stories=base"])
    assert descent(found)["small"] == (("base",), None)


def test_a_file_names_models_and_their_descent(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(models / "merged", 7)
    (models / "lineage.yaml").write_text(
        "base: {model: ./base}\n"
        "lua: {model: ./lua, from: base}\n"
        "stories: {model: ./stories, from: [base]}\n"
        "merged: {model: ./merged, from: [lua, stories], base: base}\n"
    )
    found = resolve([str(models / "lineage.yaml")])
    assert descent(found)["merged"] == (("lua", "stories"), "base")
    assert found.by_label["lua"].source == str(models / "lua")


def test_every_problem_of_the_file_is_told_with_its_place(models: Path) -> None:
    file = models / "lineage.yaml"
    file.write_text("base: {model: ./base}\nlua: {form: base}\nb: {model: ./b, from: lau}\n")
    with pytest.raises(RecipeError) as caught:
        resolve([str(file)])
    assert str(caught.value).splitlines() == [
        "3 problems in the recipe",
        f"{file}:2:1: lua needs a model; write {{model: SOURCE}}",
        f"{file}:2:7: unknown key 'form'; did you mean \"from\"?",
        f'{file}:3:23: "lau" is no model of this file; did you mean "lua"?',
    ]


@pytest.mark.parametrize(
    ("hand", "message"),
    [
        ("lua", "--parent 'lua' cannot be read; write --parent CHILD=PARENT, or CHILD=PARENT,PARENT@BASE for a merge"),
        ("lua=bass", "--parent 'lua=bass' names 'bass', which is no model; did you mean \"base\"?"),
        ("lua=lua", "'lua' cannot descend from itself in lineage; write --parent CHILD=PARENT, or "
         "CHILD=PARENT,PARENT@BASE for a merge"),
        ("lua=base,base", "a parent of 'lua' is named twice in lineage; name it once"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(models: Path, hand: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(words(models, "base", "lua"), [hand])
    assert str(caught.value) == message


def test_circles_are_refused(models: Path) -> None:
    with pytest.raises(RecipeError, match="descends from"):
        resolve(words(models, "base", "lua"), ["lua=base", "base=lua"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["base=./base"], "one model is given; give at least two, a parent and a child, as LABEL=SOURCE"),
        ([], "no models are given; give at least two, a parent and a child, as LABEL=SOURCE"),
    ],
)
def test_one_model_is_no_lineage(given: list[str], message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        resolve(given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["./base", "b=x"], "'./base' is no model; write LABEL=SOURCE, as in base=./base"),
        (
            ["a~b=./base", "b=x"],
            "'a~b' cannot be a label; a label is 1 to 60 letters, digits, and _ . + - (not first)",
        ),
        (["A=./base", "a=x"], "two models are called 'a'; give them labels that differ in more than case"),
        (["a=./base", "a=x"], "two models are called 'a'; give them labels that differ in more than case"),
    ],
)
def test_labels_can_name_files(given: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(given)
    assert str(caught.value) == message


def test_a_manifest_of_another_tool_is_noted_and_not_used(models: Path) -> None:
    (models / "lua" / "manifest.json").write_text('{"files": []}')
    found = lineage_of(words(models, "base", "lua"), ["lua=base"])
    assert not found.notes  # given by hand: what the manifest says does not matter
    with pytest.raises(RecipeError, match="nothing tells where lua comes from"):
        lineage_of(words(models, "base", "lua"))
