"""`deltasmith merge`: what lies in the folder, and what the command says."""

from __future__ import annotations

import json
from importlib.metadata import version

import ml_dtypes
import numpy as np
import pytest
import yaml

from models import Family, family, neighbours, read_model, run, spawn, tree, write_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    return family(tmp_path_factory.mktemp("merge") / "models")


@pytest.fixture(scope="module")
def recipe(models):
    return models.recipe(preset="ties")


def test_the_folder_is_a_complete_model(models, recipe, tmp_path):
    before = tree(models.root)
    result = run("merge", recipe, tmp_path / "out")
    assert result.code == 0, result
    assert sorted(tree(tmp_path / "out")) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (models.root / "base" / name).read_bytes()
    assert tree(models.root) == before
    assert neighbours(tmp_path / "out") == []
    assert "21 tensors" in result.out
    assert f"next: deltasmith verify {tmp_path / 'out'}" in result.out


def test_the_tokenizer_may_come_from_a_model(models, tmp_path):
    (models.root / "m1" / "chat_template.jinja").write_text("{{ messages }}")
    recipe = models.recipe("t.yaml", tokenizer="m1")
    assert run("merge", recipe, tmp_path / "out", "--quiet").code == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    (models.root / "base" / "chat_template.jinja").write_text("{{ other }}")
    result = run("merge", recipe, tmp_path / "second")
    assert "warning: the chat templates of base and m1 differ" in result.err
    for label in ("m1", "base"):
        (models.root / label / "chat_template.jinja").unlink()


def test_the_manifest_says_what_was_merged(models, recipe, tmp_path):
    assert run("merge", recipe, tmp_path / "out", "--quiet").code == 0
    text = (tmp_path / "out" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["format"] == 1
    assert manifest["deltasmith"] == version("deltasmith")
    assert manifest["lineage"] == {"base": "base", "parents": ["m0", "m1", "m2"], "merge": "elect"}
    assert [i["label"] for i in manifest["inputs"]] == ["base", "m0", "m1", "m2"]
    assert set(manifest["tensors"]) == set(models.base)
    entry = manifest["tensors"]["model.norm.weight"]
    assert (entry["dtype"], entry["shape"], entry["from"]) == ("bfloat16", [16], "merged")
    assert "preset" not in manifest["recipe"]
    assert str(models.root) not in text


def test_the_manifest_s_recipe_can_be_run_again(models, recipe, tmp_path):
    assert run("merge", recipe, tmp_path / "a" / "out", "--quiet").code == 0
    again = json.loads((tmp_path / "a" / "out" / "manifest.json").read_text())["recipe"]
    path = write_recipe(models.root / "again.yaml", again)
    assert run("merge", path, tmp_path / "b" / "out", "--quiet").code == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_card_names_its_parents(recipe, tmp_path):
    assert run("merge", recipe, tmp_path / "out", "--quiet").code == 0
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert "base_model" not in front  # folders on this machine are no ids that others could follow
    assert "keep_largest" in text
    assert all(f"| {label} |" in text for label in ("base", "m0", "m1", "m2"))


def test_readers_of_safetensors_agree_about_the_values(models, tmp_path):
    recipe = models.recipe("sum.yaml", scale=0.5, dtype="float32")
    assert run("merge", recipe, tmp_path / "out", "--quiet", "--shard-size", "2K").code == 0
    base = {n: a.astype(ml_dtypes.bfloat16).astype(np.float64) for n, a in models.base.items()}
    tunes = [{n: a.astype(ml_dtypes.bfloat16).astype(np.float64) for n, a in t.items()} for t in models.tunes]
    for name, array in read_model(tmp_path / "out").items():
        wanted = base[name] + 0.5 * sum(t[name] - base[name] for t in tunes)
        np.testing.assert_allclose(array, wanted, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_of_the_output(models, tmp_path, dtype):
    recipe = models.recipe("typed.yaml", dtype=dtype, where="*.mlp.*")
    assert run("merge", recipe, tmp_path / "out", "--quiet").code == 0
    assert {a.dtype.name for a in read_model(tmp_path / "out").values()} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_rounding_is_to_nearest_even_once(models, tmp_path):
    for dtype in ("float32", "bfloat16"):
        recipe = models.recipe(f"{dtype}.yaml", preset="della", density=0.6, dtype=dtype)
        assert run("merge", recipe, tmp_path / dtype, "--quiet").code == 0
    exact, rounded = read_model(tmp_path / "float32"), read_model(tmp_path / "bfloat16")
    for name, array in exact.items():
        assert array.astype(ml_dtypes.bfloat16).tobytes() == rounded[name].tobytes()


def test_quiet_says_nothing_and_json_says_one_document(recipe, tmp_path):
    result = run("merge", recipe, tmp_path / "quiet", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    result = run("merge", recipe, tmp_path / "json", "--json")
    assert (result.code, result.err) == (0, "")
    told = result.document
    assert told["tensors"] == 21
    assert told["bytes_written"] == (tmp_path / "json" / "model.safetensors").stat().st_size
    assert told["warnings"] == ["no input states a licence, so the card states none"]


def test_a_command_needs_no_home_and_no_writable_working_folder(recipe, tmp_path):
    result = spawn(
        "merge", recipe, tmp_path / "out", "--quiet", HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent"
    )
    assert (result.code, result.err) == (0, "")


def test_relative_paths_count_from_the_recipe_and_the_working_folder(models, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("merge", recipe, "deep/er/out", "--quiet").code == 0
    assert (tmp_path / "deep" / "er" / "out" / "manifest.json").exists()
    monkeypatch.chdir(models.root)
    assert run("merge", recipe.name, tmp_path / "second", "--quiet").code == 0
