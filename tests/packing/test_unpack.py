"""Unpacking, and packed deltas in recipes: what they give is what their unpacked models give."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import deltasmith
from containers import EVERY, changed, packed, words
from deltasmith.api import compute, diff, merge, plan
from deltasmith.engine.progress import Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, InterruptedRunError, RefusedError
from deltasmith.packing import unpack
from models import Family, family, neighbours, read_model, run, tree, write_model, write_recipe

MIB = 1 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    """A base, two fine-tunes, each packed by every codec (`p0`, `p1`) and exactly (`x0`, `x1`), `p` unpacked (`u`)."""
    made = family(tmp_path_factory.mktemp("unpack") / "models", experts=2)
    for i in (0, 1):
        packed(made.root, f"m{i}", f"p{i}", rules=EVERY)
        packed(made.root, f"m{i}", f"x{i}", codec="lossless", where="*")
        unpack(made.root / f"p{i}", made.root / f"u{i}")
    return made


# The folder.


def test_the_unpacked_folder(models, tmp_path):
    result = unpack(models.root / "x0", tmp_path / "out")
    assert words(tmp_path / "out") == words(models.root / "m0")
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (models.root / "m0" / name).read_bytes()
    assert not (tmp_path / "out" / "delta.safetensors").exists()
    assert result.tensors == len(models.base)
    assert run("verify", tmp_path / "out").code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recipe"] == {"unpack": "x0"}
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_it_is_what_the_packed_model_reads_as(models):
    for i in (0, 1):
        assert words(models.root / f"u{i}") == words(models.root / f"p{i}")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("memory", [220 * MIB, 1024 * MIB])
def test_threads_memory_and_shards_change_no_tensor(models, tmp_path, threads, memory):
    unpack(models.root / "p0", tmp_path / "out", threads=threads, memory=memory)
    assert tree(tmp_path / "out") == tree(models.root / "u0")
    unpack(models.root / "p0", tmp_path / "shards", threads=threads, shard_size=3000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert words(tmp_path / "shards") == words(models.root / "p0")


def test_interrupted_and_resumed(models, tmp_path):
    class Interrupter(Silent):
        def __init__(self, stop):
            self.stop, self.done = stop, 0

        def advance(self, nbytes):
            self.done += nbytes
            if self.done > 6000:
                self.stop.ask()

    stop = Stop()
    with pytest.raises(InterruptedRunError):
        unpack(models.root / "p0", tmp_path / "out", threads=1, stop=stop, progress=Interrupter(stop))
    assert not (tmp_path / "out").exists()
    unpack(models.root / "p0", tmp_path / "out", threads=1)
    assert tree(tmp_path / "out") == tree(models.root / "u0")
    assert neighbours(tmp_path / "out") == []


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("which", ["base", "p0"])
def test_an_input_that_changes_meanwhile(models, tmp_path, which, given):
    root = tmp_path / "models"
    shutil.copytree(models.root / "base", root / "base")
    shutil.copytree(models.root / "p0", root / "p0")

    class Meddler(Silent):
        def advance(self, nbytes):
            os.utime(next((root / which).glob("*.safetensors")))

    base = root / "base" if given else None
    with pytest.raises(DamagedInputError, match="changed while it was"):
        unpack(root / "p0", tmp_path / "out", base=base, progress=Meddler())
    assert not (tmp_path / "out").exists()
    assert neighbours(tmp_path / "out") == []


def test_one_label_of_several(models, tmp_path):
    shutil.copytree(models.root / "x0", tmp_path / "both")
    shutil.copytree(models.root / "base", tmp_path / "base")
    changed(tmp_path / "both", lambda p: p.document["deltas"].update(other=p.document["deltas"]["m0"]))
    with pytest.raises(RefusedError, match="add #LABEL: m0, other"):
        unpack(tmp_path / "both", tmp_path / "out")
    unpack(f"{tmp_path / 'both'}#other", tmp_path / "out")
    assert words(tmp_path / "out") == words(models.root / "m0")


def test_what_is_no_packed_delta(models, tmp_path):
    with pytest.raises(RefusedError, match=r"not a packed delta in .*m0"):
        unpack(models.root / "m0", tmp_path / "out")
    with pytest.raises(DamagedInputError, match="nothing lies at"):
        unpack(tmp_path / "nothing", tmp_path / "out")


# Recipes.

BOTH = {"base": "./base", "models": ["0", "1"]}


def recipe(models, name, kind, **fields) -> Path:
    """Write a recipe over both fine-tunes as `kind`: m, u (unpacked), p, x."""
    entries = [{"model": f"./{kind}{i}", "label": f"m{i}"} for i in (0, 1)]
    given = {"base": "./base", "models": entries} | fields
    return write_recipe(models.root / f"{name}-{kind}.yaml", given)


def merged(path: Path, out: Path) -> Path:
    merge(path, out)
    return out


RECIPES = {
    "sum": {"merge": "sum", "scale": 0.7},
    "ties": {"preset": "ties", "density": 0.5},
    "dare": {"preset": "dare", "density": 0.5, "seed": 3},
    "slerp of deltas": {"merge": {"slerp": {"t": 0.4}}, "space": "delta"},
    "slerp of weights over a base": {"merge": {"slerp": {"t": 0.4}}},
    "slerp without a base": {"base": None, "merge": {"slerp": {"t": 0.4}}},
    "linear without a base": {"base": None, "merge": "linear"},
    "karcher": {"base": None, "merge": "karcher"},
}


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
def test_exactly_packed_models_merge_to_the_same_bytes(models, tmp_path, fields):
    one = merged(recipe(models, "r", "m", **fields), tmp_path / "m")
    two = merged(recipe(models, "r", "x", **fields), tmp_path / "x")
    assert words(one) == words(two)
    assert (two / "config.json").read_bytes() == (one / "config.json").read_bytes()
    assert (two / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
    assert run("verify", two).code == 0


@pytest.mark.parametrize(
    "name", ["sum", "slerp of weights over a base", "slerp without a base", "linear without a base"]
)
def test_packed_models_merge_like_unpacked_ones(models, tmp_path, name):
    """Up to the rounding of the unpacked files: two steps of bfloat16 of the largest value involved."""
    one = read_model(merged(recipe(models, "r", "u", **RECIPES[name]), tmp_path / "u"))
    two = read_model(merged(recipe(models, "r", "p", **RECIPES[name]), tmp_path / "p"))
    assert one.keys() == two.keys()
    different = 0
    for tensor, array in one.items():
        left, right = array.astype(np.float64), two[tensor].astype(np.float64)
        assert np.abs(left - right).max() <= 2**-7 * max(np.abs(left).max(), 0.1)
        different += int((left != right).sum())
    assert different < 0.5 * sum(a.size for a in one.values())


def test_packed_and_plain_models_in_one_merge(models, tmp_path):
    entries = [{"model": "./x0", "label": "m0"}, {"model": "./m1", "label": "m1"}]
    mixed = write_recipe(models.root / "mixed.yaml", {"base": "./base", "models": entries, "merge": "sum"})
    expected = merged(recipe(models, "r", "m", merge="sum"), tmp_path / "m")
    assert words(merged(mixed, tmp_path / "mixed")) == words(expected)


def test_another_base_in_the_recipe_is_refused(models, tmp_path):
    fields = {"base": "./m1", "merge": "sum"}
    path = recipe(models, "wrong", "p", **fields)
    result = run("merge", path, tmp_path / "out", "--quiet")
    assert (result.code, result.errors) == (3, result.err.splitlines())
    assert "not the base it was packed against" in result.err
    assert run("plan", path).err == result.err
    assert not (tmp_path / "out").exists()


def test_a_recipe_as_base_is_not_taken_for_the_base_it_reads(models, tmp_path):
    inner = {"base": "./base", "models": [{"model": "./m1"}], "merge": "sum", "scale": 0.5}
    result = run("merge", recipe(models, "nested", "p", base=inner, merge="sum"), tmp_path / "out", "--quiet")
    assert result.code == 3
    assert "not the base it was packed against" in result.err


def test_a_recipe_of_packed_models_within_another(models, tmp_path):
    outer = []
    for kind in "mx":
        inner = {
            "base": "./base",
            "models": [{"model": f"./{kind}{i}", "label": f"m{i}"} for i in (0, 1)],
            "merge": "sum",
        }
        entries = [{"model": inner, "label": "both"}, {"model": f"./{kind}0", "label": "m0"}]
        path = write_recipe(
            models.root / f"outer-{kind}.yaml", {"base": "./base", "models": entries, "merge": "mean"}
        )
        outer.append(words(merged(path, tmp_path / kind)))
    assert outer[0] == outer[1]


def test_plan_diff_and_compute(models):
    assert (
        plan(recipe(models, "r", "x", merge="sum")).bytes_written
        == plan(recipe(models, "r", "m", merge="sum")).bytes_written
    )
    reports = [diff(str(models.root / "base"), [str(models.root / f"{k}0")]).as_json() for k in "mx"]
    for report in reports:
        report.pop("models", None)
    text = [json.dumps(r).replace("x0", "m0") for r in reports]
    assert text[0] == text[1]
    values = [compute(recipe(models, "r", k, merge="sum")).arrays() for k in "mx"]
    assert all(np.array_equal(values[0][n], values[1][n]) for n in values[0])


def test_the_manifest_of_a_merge_knows_its_inputs(models, tmp_path):
    merged(recipe(models, "r", "x", merge="sum"), tmp_path / "with")
    inputs = json.loads((tmp_path / "with" / "manifest.json").read_text())["inputs"]
    assert [(i["label"], sorted(i["files"])) for i in inputs] == [
        ("base", ["model.safetensors"]),
        ("m0", ["delta.safetensors"]),
        ("m1", ["delta.safetensors"]),
    ]
    merged(recipe(models, "r", "x", base=None, merge="linear"), tmp_path / "without")
    inputs = json.loads((tmp_path / "without" / "manifest.json").read_text())["inputs"]
    assert sorted(inputs[0]["files"]) == ["delta.safetensors", "model.safetensors"]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled base and its arithmetic expert, packed exactly."""
    root = tmp_path_factory.mktemp("bundled")
    source = Path(deltasmith.__file__).parent / "family"
    shutil.copytree(source / "base", root / "base")
    packed(root, str(source / "small" / "math"), "math", codec="lossless", where="*")
    return source, root


def test_evaluated_it_is_the_model(bundled, tmp_path):
    """Through the numpy runtime, on the bundled family."""
    source, root = bundled
    scores = []
    for path in (source / "small" / "math", root / "math"):
        result = run(
            "evaluate",
            path,
            "--tasks",
            "family:math",
            "--limit",
            "3",
            "--out",
            tmp_path / "scores.json",
            "--quiet",
        )
        assert result.code == 0, result
        scores.append(json.loads((tmp_path / "scores.json").read_text())["tasks"])
        (tmp_path / "scores.json").unlink()
    assert json.dumps(scores[0], sort_keys=True) == json.dumps(scores[1], sort_keys=True)


def test_a_base_that_is_not_there_is_said_before_anything_is_written(models, tmp_path):
    shutil.copytree(models.root / "p0", tmp_path / "deep" / "down" / "p0")
    path = write_recipe(tmp_path / "r.yaml", {"models": [{"model": "./deep/down/p0"}] * 2, "merge": "linear"})
    result = run("plan", path)
    assert result.code == 1
    assert "a packed delta needs its base 'base'" in result.err


def test_models_and_packed_deltas_of_different_vocabularies(models, tmp_path):
    from models import tokenizer

    shutil.copytree(models.root / "base", tmp_path / "base")
    write_model(tmp_path / "m0", models.tunes[0], tokens=tokenizer(shift=1))
    packed(tmp_path, codec="lossless", where="*")
    path = write_recipe(
        tmp_path / "r.yaml", {"base": "./base", "models": [{"model": "./packed"}], "merge": "sum"}
    )
    assert run("plan", path).code == 1
