"""`deltasmith plan`: every tensor, from headers alone, and nothing written."""

from __future__ import annotations

import pytest

from models import Family, family, run, tree


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    return family(tmp_path_factory.mktemp("plan") / "models", shards=2)


def test_the_text_names_every_kind_of_tensor(models):
    result = run("plan", models.recipe(preset="ties"))
    assert (result.code, result.err) == (0, "")
    assert "model.layers.*.self_attn.q_proj.weight" in result.out
    assert "keep_largest(density=0.2) → elect(zero=majority)" in result.out
    assert "21 tensors; reads " in result.out
    assert " in 1 file(s)" in result.out


def test_nothing_is_written(models):
    before = tree(models.root.parent)
    recipe = models.recipe(preset="della", density=0.5)
    after = {k: v for k, v in tree(models.root.parent).items() if "recipe" not in k}
    assert run("plan", recipe).code == 0
    assert {k: v for k, v in tree(models.root.parent).items() if "recipe" not in k} == after
    assert {k: v for k, v in before.items() if "recipe" not in k} == after


def test_the_document_holds_all(models):
    told = run("plan", models.recipe(preset="ties", where="*.mlp.*"), "--json", "--shard-size", "4K").document
    assert set(told) == {
        "recipe",
        "tensors",
        "bytes_read",
        "bytes_written",
        "files",
        "memory",
        "threads",
        "notes",
        "warnings",
    }
    rows = {t["name"]: t for t in told["tensors"]}
    assert set(rows) == set(models.base)
    assert rows["model.norm.weight"]["from"] == "base"
    assert rows["model.layers.1.mlp.up_proj.weight"]["from"] == "merged"
    assert "keep_largest(density=0.2)" in rows["model.layers.1.mlp.up_proj.weight"]["what"]
    assert len(told["files"]) > 2
    assert any("outside `where`" in note for note in told["notes"])


def test_the_plan_is_what_the_merge_does(models, tmp_path):
    recipe = models.recipe(preset="ties", where="*.mlp.*")
    told = run("plan", recipe, "--json").document
    merged = run("merge", recipe, tmp_path / "out", "--json").document
    assert merged["bytes_written"] == told["bytes_written"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == sorted(told["files"])
    assert merged["bytes_read"] == told["bytes_read"]


def test_schedules_show_resolved(models):
    recipe = models.recipe(models=[{"model": "./m0", "weight": {"layers": [0.25, 0.75]}}])
    rows = {t["name"]: t["what"] for t in run("plan", recipe, "--json").document["tensors"]}
    assert "0.25" in rows["model.layers.0.mlp.up_proj.weight"]
    assert "0.75" in rows["model.layers.1.mlp.up_proj.weight"]


def test_quiet_says_nothing(models):
    result = run("plan", models.recipe(), "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize("columns", ["20", "300"])
def test_the_text_fits_any_terminal(models, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    result = run("plan", models.recipe(preset="ties"))
    assert result.code == 0
    assert "\x1b" not in result.out
