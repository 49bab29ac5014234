"""A delta followed beyond its end: the numbers count from there, and the recipe says what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith.analysis.lines import follow
from deltasmith.errors import RecipeError
from deltasmith.lab import family_folder
from deltasmith.recipe.checks import load
from models import write_recipe

FAMILY = family_folder()
FEW = {"data": FAMILY / "items" / "validation_math.jsonl", "limit": 8, "batch": 2}


def test_ranges_that_make_no_sense():
    for low, high in ((0.5, 1.0), (-1.0, -0.5), (0.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(RecipeError, match="give a range with 0 in it"):
            follow("r.yaml", low, high, **FEW)
    with pytest.raises(RecipeError, match="evaluations is 2; give 3 or more"):
        follow("r.yaml", **FEW, evaluations=2)
    with pytest.raises(RecipeError, match="evaluations is 1001; give 1000 or fewer"):
        follow("r.yaml", **FEW, evaluations=1001)


def test_alpha_counts_from_the_model_and_the_recipe_makes_it(tmp_path: Path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from deltasmith.analysis.run import loss

    entry = {"model": str(FAMILY / "small" / "math"), "edits": [{"drop": {"density": 0.5}}]}
    recipe = write_recipe(tmp_path / "r.yaml", {"base": str(FAMILY / "base"), "models": [entry]})
    found = follow(recipe, -1.0, 1.0, **FEW, evaluations=4)
    assert (found.start, found.end) == ("base", "math")
    assert any("the recipe's edits, weight and scale are left out" in note for note in found.notes)
    first = found.search.evaluations[0]
    assert first.alpha == 0.0
    halves = (first.search_loss, first.held_out_loss)
    assert found.recipe["preset"] == "expo"
    again = loss(found.recipe | {"alpha": 1.0}, **FEW, steps=1, rules=("left",))
    assert min(halves) <= again.start_loss.value <= max(halves)  # α = 0 is the model, the mean of both halves
    (far,) = [e for e in found.search.evaluations if abs(e.alpha) == 1.0]
    if far.alpha == 1.0:
        ends = sorted((far.search_loss, far.held_out_loss))
        assert ends[0] - 1e-3 <= again.end_loss.value <= ends[1] + 1e-3
    document = found.as_json()
    assert document["format"] == "deltasmith-line-search-1"
    assert document["search"]["alpha"] == found.search.alpha


def test_a_merge_is_followed_and_its_file_used(tmp_path: Path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    models = [{"model": str(FAMILY / "small" / name)} for name in ("math", "code")]
    recipe = write_recipe(tmp_path / "m.yaml", {"base": str(FAMILY / "base"), "models": models})
    found = follow(recipe, -1.0, 1.0, **FEW, evaluations=3)
    assert found.recipe["base"] == str(FAMILY / "base")
    assert found.recipe["models"] == [{"model": str(recipe)}]
    assert load(write_recipe(tmp_path / "use.yaml", found.recipe)).models[0].model.merge is not None
    assert follow(recipe, -1.0, 1.0, **FEW, evaluations=3, overrides=("scale=0.5",)).recipe is None


def test_a_model_from_another_is_followed_too():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, base = str(FAMILY / "small" / "math"), str(FAMILY / "base")
    found = follow(model, -0.5, 0.5, start=base, **FEW, evaluations=3)
    assert found.recipe["base"] == base
    assert found.recipe["models"] == [{"model": model}]
    assert found.recipe["alpha"] == round(found.search.alpha, 4)
