"""Columns kept in memory: the same bytes as reading the files, and nothing read twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltasmith import api
from deltasmith.engine.columns import EditedColumns
from deltasmith.recipe.presets import PRESETS
from models import draw, tuned, write_model

LIMIT = 1 << 28
LABELS = ("math", "code", "ins")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("family")
    base = draw(0)
    write_model(folder / "base", base)
    for n, label in enumerate(LABELS):
        write_model(folder / label, tuned(base, n))
    return {
        "base": str(folder / "base"),
        "models": [{"model": str(folder / label), "label": label} for label in LABELS],
    }


def held(recipe: dict[str, Any], columns: EditedColumns) -> dict[str, bytes]:
    return {n: bytes(s.data) for n, s in api.compute(recipe, columns=columns).tensors.items()}


def written(recipe: dict[str, Any], out: Path) -> dict[str, bytes]:
    api.merge(recipe, out)
    checkpoint = api.open_model(str(out)).checkpoint
    assert checkpoint is not None
    return {n: bytes(checkpoint.raw(n, 0, s.size)) for n, s in checkpoint.specs.items()}


FIELDS: dict[str, dict[str, Any]] = {
    **{name: {"density": 0.4} for name in ("breadcrumbs", "breadcrumbs_ties", "dare", "dare_ties", "della")},
    **{name: {"density": 0.4} for name in ("della_linear", "magnitude", "magprune")},
    "dppa": {"factors": [1.8, 1.0]},
    "fedavg": {"examples": {"math": 3, "code": 2, "ins": 1}},
    "k_dare": {"density": 0.4, "k": 0.5},
    "passthrough": {"model": "math"},
    **{name: {"task": "math"} for name in ("emr", "tall", "twin")},
}
NOT_FOR_THREE = {"cabs", "expo", "fisher", "nuslerp", "regmean", "slerp"}
"""Presets for one or two models, or for models with statistics."""


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - NOT_FOR_THREE))
def test_every_preset_gives_the_bytes_a_merge_writes(
    preset: str, family: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**family, "preset": preset, **FIELDS.get(preset, {})}
    columns = EditedColumns(LIMIT)
    expected = written(recipe, tmp_path / "out")
    assert held(recipe, columns) == expected
    assert held(recipe, columns) == expected
    assert columns.computed == len(LABELS)


@pytest.mark.parametrize("space", ["delta", "weight"])
def test_edits_in_either_space(space: str, family: dict[str, Any], tmp_path: Path) -> None:
    models = [{**m, "edits": [{"drop": {"density": 0.5}}]} for m in family["models"]]
    recipe = {**family, "models": models, "merge": "linear" if space == "weight" else "sum", "space": space}
    assert held(recipe, EditedColumns(LIMIT)) == written(recipe, tmp_path / "out")


def test_new_weights_and_scales_compute_no_column(family: dict[str, Any], tmp_path: Path) -> None:
    columns = EditedColumns(LIMIT)
    recipe = {**family, "preset": "dare", "density": 0.3}
    first = held(recipe, columns)
    for scale in (0.3, 0.9):
        changed = {**recipe, "scale": scale}
        assert held(changed, columns) == written(changed, tmp_path / f"scale{scale}")
    weighted = {**recipe, "models": [{**recipe["models"][0], "weight": 0.4}, *recipe["models"][1:]]}
    assert held(weighted, columns) == written(weighted, tmp_path / "weighted") != first
    assert columns.computed == len(LABELS)


def test_one_models_density_computes_one_column(family: dict[str, Any], tmp_path: Path) -> None:
    columns = EditedColumns(LIMIT)
    held({**family, "preset": "ties", "density": 0.3}, columns)
    changed = {**family, "preset": "ties", "density": {"math": 0.6, "code": 0.3, "ins": 0.3}}
    assert held(changed, columns) == written(changed, tmp_path / "out")
    assert columns.computed == len(LABELS) + 1


def test_another_seed_or_label_is_another_column(family: dict[str, Any], tmp_path: Path) -> None:
    columns = EditedColumns(LIMIT)
    recipe = {**family, "preset": "dare", "density": 0.5}
    first = held(recipe, columns)
    assert held({**recipe, "seed": 1}, columns) == written({**recipe, "seed": 1}, tmp_path / "a") != first
    renamed = {**recipe, "models": [{**recipe["models"][0], "label": "other"}, *recipe["models"][1:]]}
    assert held(renamed, columns) == written(renamed, tmp_path / "b") != first


def test_too_little_room_reads_the_files(family: dict[str, Any], tmp_path: Path) -> None:
    columns = EditedColumns(1000)
    recipe = {**family, "preset": "ties", "density": 0.3}
    assert held(recipe, columns) == written(recipe, tmp_path / "out")
    assert columns.computed == 0


def test_what_was_used_least_recently_goes_first(family: dict[str, Any]) -> None:
    size = sum(s.spec.size * 4 for s in api.compute({**family, "merge": "sum"}).tensors.values())
    columns = EditedColumns(7 * size)
    recipes = [{**family, "preset": "ties", "density": d} for d in (0.2, 0.4, 0.6)]
    held(recipes[0], columns), held(recipes[1], columns), held(recipes[2], columns)
    assert columns.computed == 9
    held(recipes[2], columns)
    assert columns.computed == 9
    held(recipes[0], columns)
    assert columns.computed == 12


def test_a_recipe_inside_a_recipe_is_computed_as_ever(family: dict[str, Any], tmp_path: Path) -> None:
    inner = {**family, "preset": "ties", "density": 0.4}
    recipe = {**family, "models": [family["models"][0], {"model": inner, "label": "inner"}], "merge": "sum"}
    assert held(recipe, EditedColumns(LIMIT)) == written(recipe, tmp_path / "out")


def test_the_small_files_come_too(family: dict[str, Any]) -> None:
    computed = api.compute({**family, "merge": "sum"})
    assert "config.json" in computed.files
    assert computed.arrays()["model.norm.weight"].shape == (16,)
