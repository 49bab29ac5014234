"""`deltasmith diff`: measured changes, against numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models import Family, check_refusal, family, read_model, run, write_adapter


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    return family(tmp_path_factory.mktemp("diff") / "models")


@pytest.fixture(scope="module")
def deltas(models):
    base = {n: a.astype(np.float32) for n, a in read_model(models.root / "base").items()}
    read = [read_model(models.root / label) for label in models.labels]
    return base, [
        {n: (a.astype(np.float32) - base[n]).astype(np.float64) for n, a in r.items()} for r in read
    ]


def folders(models):
    return [models.root / "base", *(models.root / label for label in models.labels)]


def test_every_tensor_is_measured(models, deltas):
    base, changes = deltas
    told = run("diff", *folders(models), "--json").document
    assert set(told) == {"model", "layer", "projection", "tensor"}
    assert {t["name"] for t in told["tensor"]} == set(models.base)
    for row in told["tensor"]:
        name = row["name"]
        for label, change in zip(models.labels, changes, strict=True):
            figures, delta = row["models"][label], change[name]
            assert figures["elements"] == delta.size
            np.testing.assert_allclose(figures["mean_abs"], np.abs(delta).mean(), rtol=1e-6)
            np.testing.assert_allclose(figures["max_abs"], np.abs(delta).max(), rtol=1e-6)
            norm = np.linalg.norm(delta) / np.linalg.norm(base[name].astype(np.float64))
            np.testing.assert_allclose(figures["relative_norm"], norm, rtol=1e-6)
            np.testing.assert_allclose(figures["zero_fraction"], np.mean(delta == 0), rtol=1e-6)


def test_pairs_are_compared(models, deltas):
    _, changes = deltas
    whole = run("diff", *folders(models), "--json").document["model"][0]
    flat = [np.concatenate([c[n].reshape(-1) for n in sorted(c)]) for c in changes]
    assert len(whole["pairs"]) == 3
    for pair in whole["pairs"]:
        one, other = (flat[int(label[1:])] for label in pair["models"])
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        np.testing.assert_allclose(pair["cosine"], cosine, atol=1e-6)
        both = (one != 0) & (other != 0)
        conflict = np.mean(np.sign(one[both]) != np.sign(other[both]))
        np.testing.assert_allclose(pair["sign_conflict"], conflict, atol=1e-6)


@pytest.mark.parametrize("group", ["projection", "layer", "tensor", "model"])
def test_tables(models, group):
    result = run("diff", *folders(models), "--by", group, "--threads", "2")
    assert (result.code, result.err) == (0, "")
    assert "cosine" in result.out
    assert "m2" in result.out


def test_threads_do_not_matter(models):
    documents = [run("diff", *folders(models), "--json", "--threads", str(n)).out for n in (1, 2, 7)]
    assert documents[0] == documents[1] == documents[2]


def test_one_model_has_no_pairs(models):
    told = run("diff", models.root / "base", models.root / "m0", "--json").document
    assert told["model"][0]["pairs"] == []


def test_equal_names_are_numbered(models, tmp_path):
    other = family(tmp_path / "other", experts=1)
    told = run("diff", models.root / "base", models.root / "m0", other.root / "m0", "--json").document
    assert list(told["model"][0]["models"]) == ["m0-0", "m0-1"]


def test_a_model_compared_with_itself(models):
    told = run("diff", models.root / "base", models.root / "base", models.root / "m0", "--json")
    assert told.code == 0, told
    figures = told.document["model"][0]["models"]["base-0"]
    assert (figures["mean_abs"], figures["zero_fraction"]) == (0.0, 1.0)


def test_adapters_are_measured_as_the_deltas_they_are(models, tmp_path):
    dense = write_adapter(tmp_path / "adapter", models.base, 3)
    told = run("diff", models.root / "base", tmp_path / "adapter", "--json")
    assert told.code == 0, told
    rows = {t["name"]: t["models"]["adapter"] for t in told.document["tensor"]}
    for name, figures in rows.items():
        delta = dense.get(name, np.zeros(1))
        np.testing.assert_allclose(figures["mean_abs"], np.abs(delta).mean(), rtol=1e-5, atol=1e-12)


def test_misfits_are_refused(models, tmp_path):
    other = family(tmp_path / "other", experts=1, hidden=20)
    check_refusal(run("diff", models.root / "base", other.root / "m0"), 1, "m0", "[40, 16]", "[40, 20]")
    check_refusal(run("diff", models.root / "base"), 2, "MODELS")
    check_refusal(run("diff", models.root / "none", models.root / "m0"), 3, "none")


@pytest.mark.parametrize("merge", ["slerp", "elect"])
def test_a_recipe_is_measured_as_what_it_would_write(models, tmp_path, merge):
    """Both merges must look at a tensor, or at all, before they can compute any of it."""
    edits = [] if merge == "slerp" else [{"keep_largest": {"density": 0.5}}]
    base, *experts = folders(models)
    entries = [{"model": str(expert), "edits": edits} for expert in experts[:2]]
    recipe = {"base": str(base), "models": entries, "merge": merge, "dtype": "float32"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    merged = run("merge", tmp_path / "r.yaml", tmp_path / "merged")
    assert merged.code == 0, merged.err
    written = run("diff", base, tmp_path / "merged", "--json").document["model"][0]
    computed = run("diff", base, tmp_path / "r.yaml", "--json").document["model"][0]
    ((_, there),), ((_, here),) = written["models"].items(), computed["models"].items()
    assert here["relative_norm"] == pytest.approx(there["relative_norm"], rel=1e-6)
