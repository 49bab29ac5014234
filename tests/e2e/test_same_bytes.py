"""The bytes of a merge depend on recipe and inputs alone: not on threads, tiles, memory, shards or surroundings."""

from __future__ import annotations

import os

import numpy as np
import pytest

from deltasmith import api
from models import Family, family, hashes, read_model, run, spawn, tree

RECIPES = {
    "linear": {"models": [{"model": f"./m{i}", "label": f"m{i}", "weight": 0.3 + i} for i in range(3)]},
    "task_arithmetic": {"scale": 0.4},
    "ties": {},
    "dare": {"density": 0.3},
    "dare_ties": {"density": 0.3},
    "della": {"density": 0.6},
    "magprune": {"density": 0.6},
    "dppa": {"factors": [1.8, 1.0]},
    "slerp": {"t": 0.3, "models": [{"model": "./m0"}, {"model": "./m1"}]},
    "emr": {"task": "m1"},
    "breadcrumbs": {"density": 0.4, "gamma": 0.05},
    "sce": {},
    "pcb": {"ratio": 0.2},
    "model_stock": {},
    "nuslerp": {"models": [{"model": "./m0"}, {"model": "./m1"}]},
    "cabs": {"n": 64, "m": 256},
}
OPTIONS = (
    {"threads": 1},
    {"threads": 2},
    {"threads": 16},
    {"threads": 2, "memory": 240 << 20},
    {"threads": 2, "memory": 4 << 30},
    {"threads": 2, "tile": 1 << 16},
    {"threads": 1, "tile": 1 << 20},
    {"threads": 3, "shard_size": 300_000},
    {"threads": 2, "shard_size": 1, "tile": 1 << 16},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    """Return a family with tensors of several tiles and blocks, and with rows that are odd."""
    return family(tmp_path_factory.mktemp("same") / "models", hidden=225, inter=301, vocab=900)


@pytest.mark.parametrize("preset", RECIPES)
def test_fault_64_threads_tiles_memory_and_shards_do_not_matter(models, preset, tmp_path):
    recipe = models.recipe(f"{preset}.yaml", preset=preset, dtype="float32", **RECIPES[preset])
    found = []
    for number, options in enumerate(OPTIONS):
        out = tmp_path / f"{number}"
        api.merge(recipe, out, **options)
        found.append(hashes(out))
    assert all(found[0] == other for other in found[1:])
    assert len(set(found[0].values())) == len(found[0])


def test_fault_64_the_files_are_the_same_too(models, tmp_path):
    recipe = models.recipe(preset="della", density=0.6)
    trees = []
    for number, options in enumerate(OPTIONS[:7]):
        api.merge(recipe, tmp_path / str(number) / "out", **options)
        trees.append(tree(tmp_path / str(number) / "out"))
    assert all(trees[0] == other for other in trees[1:])


@pytest.mark.parametrize("preset", ["dare", "della"])
def test_the_seed_and_the_label_choose_the_mask_and_nothing_else_does(models, preset, tmp_path):
    def merged(name, *settings, **fields):
        recipe = models.recipe("r.yaml", preset=preset, density=0.5, **fields)
        result = run("merge", recipe, tmp_path / name, "--quiet", *settings)
        assert result.code == 0, result
        return hashes(tmp_path / name)

    one = {"models": [{"model": "./m1", "label": "a"}]}
    first = merged("first", **one)
    assert merged("again", **one) == first
    assert merged("seeded", "--seed", "0", **one) == first
    assert (
        merged("in a list", models=[{"model": "./m0", "label": "z", "weight": 0.0}, *one["models"]]) == first
    )
    differs = merged("seed", "--seed", "1", **one)
    labelled = merged("label", models=[{"model": "./m1", "label": "b"}])
    for other in (differs, labelled):
        assert [name for name in first if first[name] == other[name]] == []


SURROUNDINGS = (
    {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"},
    {"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Apia"},
    {
        "PYTHONHASHSEED": "random",
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "COLUMNS": "20",
    },
)


def test_fault_63_surroundings_do_not_matter(tmp_path):
    models = family(tmp_path / "Ilıman İyi")
    recipe = models.recipe(preset="della", density=0.6)
    trees = []
    for number, env in enumerate(SURROUNDINGS):
        out = tmp_path / str(number) / "out"
        result = spawn("merge", recipe, out, cwd=tmp_path if number else None, **env)
        assert result.code == 0, result
        trees.append(tree(out))
    assert trees[0] == trees[1] == trees[2]


def test_where_the_models_lie_does_not_matter(tmp_path, monkeypatch):
    trees = []
    for name in ("here", "there/deeper"):
        models = family(tmp_path / name)
        recipe = models.recipe(preset="ties")
        for path in models.root.rglob("*"):
            os.utime(path, (0, 0) if name == "here" else (9, 9))
        monkeypatch.chdir(models.root)
        assert run("merge", recipe.name, "../out", "--quiet").code == 0
        trees.append(tree(models.root.parent / "out"))
        assert all(
            str(tmp_path).encode() not in p.read_bytes() for p in (models.root.parent / "out").iterdir()
        )
    assert trees[0] == trees[1]


def test_shards_of_the_inputs_do_not_matter(tmp_path):
    whole, cut = family(tmp_path / "whole"), family(tmp_path / "cut", shards=3)
    found = []
    for models in (whole, cut):
        out = models.root / "out"
        assert run("merge", models.recipe(preset="della", density=0.6), out, "--quiet").code == 0
        found.append(hashes(out))
    assert found[0] == found[1]


def test_shard_sizes_are_kept_and_hold_all(models, tmp_path):
    recipe = models.recipe(preset="ties")
    for size in (1, 300_000, 10**9):
        out = tmp_path / str(size)
        assert run("merge", recipe, out, "--quiet", "--shard-size", str(size)).code == 0
        values = read_model(out)
        assert set(values) == set(models.base)
        files = list(out.glob("*.safetensors"))
        largest = max(a.nbytes for a in values.values())
        assert all(f.stat().st_size <= max(size, largest) + 4096 for f in files)
        assert (out / "model.safetensors.index.json").exists() == (len(files) > 1)
        assert run("verify", out).code == 0
    assert len(list((tmp_path / "1").glob("*.safetensors"))) == len(models.base)


def test_a_preset_and_its_expansion_give_the_same_bytes(models, tmp_path):
    preset = models.recipe("preset.yaml", preset="della", density=0.6)
    expanded = run("plan", preset, "--json").document["recipe"]
    assert "preset" not in expanded
    written = models.recipe("expanded.yaml", **expanded)
    for path in (preset, written):
        assert run("merge", path, tmp_path / path.stem, "--quiet").code == 0
    assert hashes(tmp_path / "preset") == hashes(tmp_path / "expanded")
    assert np.isfinite(read_model(tmp_path / "preset")["model.norm.weight"].astype(np.float32)).all()
