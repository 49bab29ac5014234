"""Every method the program lists: it merges, verifies and explains itself; and inputs that are recipes or adapters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltasmith import api
from deltasmith.recipe.explain import explain, methods
from deltasmith.recipe.facts import FACTS
from models import (
    Family,
    check_refusal,
    draw,
    family,
    hashes,
    read_model,
    run,
    stored,
    write_adapter,
    write_model,
    write_recipe,
)

ROWS = [(row.kind, row.name, dialect) for row in methods() for dialect in row.dialects]
PAPER = [(kind, name) for kind, name, dialect in ROWS if dialect == "paper"]
TWO = {"nuslerp", "nuslerp_rows", "nuslerp_columns", "slerp"}
FIELDS = {
    "cabs": {"n": 1, "m": 4},
    "cabs_filled": {"n": 1, "m": 4},
    "emr": {"task": "m1"},
    "fedavg": {"examples": {"m0": 10, "m1": 20, "m2": 30}},
    "passthrough": {"model": "m1"},
    "quantise": {"codec": "magnitude_blocks"},
    "tall": {"task": "m1"},
    "twin": {"task": "m1"},
    "twin_magnitude": {"task": "m1"},
    "wudi": {"steps": 5},
}
"""Where the example that `explain` shows does not suit these models; a new method needs no line here."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    made = family(tmp_path_factory.mktemp("methods") / "models")
    rng = np.random.default_rng(9)
    for label in made.labels:
        for kind in ("fisher", "gram", "gradient"):
            write_statistics(made.root / f"{label}.{kind}", rng, kind)
    return made


def write_statistics(path, rng, kind):
    found = {}
    for name, array in draw(0).items():
        if kind == "gradient":
            found[name] = rng.normal(size=array.shape).astype(np.float32)
        elif kind == "fisher":
            found[name] = (rng.random(array.shape) + 0.1).astype(np.float32)
        elif array.ndim == 2:
            inputs = rng.normal(size=(64, array.shape[1]))
            found[f"{name}::gram"] = (inputs.T @ inputs).astype(np.float32)
    metadata = {"format": "deltasmith-stats-1", "kind": kind, "examples": "64"}
    save_file(found, f"{path}.safetensors", metadata)


def fields_of(name):
    return FIELDS.get(name) or dict(FACTS[name].example)


def entries(models, name, **extra):
    labels = models.labels[: 1 if name == "expo" else 2 if name in TWO else 3]
    found = [{"model": f"./{label}", "label": label} | extra for label in labels]
    if kind := explain(name).statistics:
        found = [e | {"statistics": f"{e['label']}.{kind}.safetensors"} for e in found]
    return found


def recipe_for(models, kind, name, dialect="paper"):
    fields = fields_of(name)
    if dialect == "mergekit" and name.startswith(("della", "magprune", "drop_by_rank")):
        fields = fields | {"epsilon": 0.1}
    if dialect == "mergekit" and name == "nuslerp":
        fields = {}
    common = {"dialect": dialect, "space": "weight" if name == "passthrough" else None}
    common |= {"base": None} if name in ("passthrough",) else {}
    if kind == "preset":
        return models.recipe(f"{name}.yaml", models=entries(models, name), preset=name, **fields, **common)
    written = {name: fields} if fields else name
    if kind == "merge":
        return models.recipe(f"{name}.yaml", models=entries(models, name), merge=written, **common)
    return models.recipe(f"{name}.yaml", models=entries(models, name, edits=[written]), **common)


@pytest.mark.parametrize(("kind", "name", "dialect"), ROWS)
def test_every_method_merges_and_verifies(models, tmp_path, kind, name, dialect):
    recipe = recipe_for(models, kind, name, dialect)
    result = run("merge", recipe, tmp_path / "out", "--quiet")
    assert result.code == 0, result.err
    assert run("verify", tmp_path / "out").code == 0
    values = read_model(tmp_path / "out")
    assert {n: a.shape for n, a in values.items()} == {n: a.shape for n, a in models.base.items()}
    base = read_model(models.root / "base")
    moved = [n for n in values if not np.array_equal(values[n], base[n])]
    assert moved, "nothing was merged"


@pytest.mark.parametrize(("kind", "name"), PAPER)
def test_every_method_explains_itself(kind, name):
    shown = run("explain", name)
    assert shown.code == 0, shown
    assert name in shown.out
    for heading in ("Formula:", "Dialects:", "Space:", "Sameness:"):
        assert heading in shown.out
    told = run("explain", name, "--json").document
    assert told["name"] == name
    assert told["formula"]
    assert told["fields"] is not None


@pytest.mark.parametrize("name", [name for kind, name in PAPER if kind == "preset"])
def test_every_expansion_gives_the_same_plan_as_its_preset(models, name):
    plan = run("plan", recipe_for(models, "preset", name), "--json").document
    expanded = write_recipe(models.root / "expanded.yaml", plan["recipe"])
    again = run("plan", expanded, "--json").document
    assert again["tensors"] == plan["tensors"]
    assert again["recipe"] == plan["recipe"]


# recipes in recipes


def test_a_recipe_inside_a_recipe(models, tmp_path):
    inner = models.recipe("inner.yaml", preset="ties", scale=0.5)
    outer = models.recipe(
        "outer.yaml", models=[{"model": "./inner.yaml", "label": "inner"}, {"model": "./m1"}]
    )
    assert any("inner is a recipe" in note for note in run("plan", outer, "--json").document["notes"])
    assert run("merge", outer, tmp_path / "out", "--quiet", "--set", "dtype=float32").code == 0
    assert run("verify", tmp_path / "out").code == 0
    assert run("merge", inner, tmp_path / "step", "--quiet", "--set", "dtype=float32").code == 0
    second = models.recipe("second.yaml", models=[{"model": str(tmp_path / "step")}, {"model": "./m1"}])
    assert run("merge", second, tmp_path / "two", "--quiet", "--set", "dtype=float32").code == 0
    for name, array in read_model(tmp_path / "out").items():
        np.testing.assert_allclose(array, read_model(tmp_path / "two")[name], atol=1e-6)


def test_an_inline_recipe_as_a_model_and_as_the_base(models, tmp_path):
    labels = [{"model": f"./{label}"} for label in models.labels]
    soup = {"models": labels, "merge": "linear"}
    recipe = models.recipe("soup.yaml", base=soup, models=labels[:1], dtype="float32", scale=2.0)
    assert run("merge", recipe, tmp_path / "out", "--quiet", "--threads", "2").code == 0
    read = [read_model(models.root / label) for label in models.labels]
    for name, array in read_model(tmp_path / "out").items():
        tunes = [values[name].astype(np.float64) for values in read]
        mean = np.mean(tunes, axis=0)
        np.testing.assert_allclose(array, mean + 2 * (tunes[0] - mean), atol=1e-6)


@pytest.mark.parametrize(
    "inner", ["ties", "della", "slerp", "emr", "breadcrumbs", "tsv", "model_stock", "sce"]
)
@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3, "tile": 1 << 16}])
def test_nested_methods_with_surveys_equal_two_steps(models, tmp_path, inner, options):
    first = recipe_for(models, "preset", inner)
    api.merge(first, tmp_path / "step", overrides=["dtype=float32"])
    outer = {"base": "./base", "preset": "magnitude", "density": 0.5, "dtype": "float32"}
    nested = models.recipe("nested.yaml", **outer, models=[{"model": f"./{first.name}", "label": "x"}])
    api.merge(nested, tmp_path / "nested", **options)
    steps = models.recipe("steps.yaml", **outer, models=[{"model": str(tmp_path / "step"), "label": "x"}])
    api.merge(steps, tmp_path / "steps")
    wanted = read_model(tmp_path / "steps")
    for name, array in read_model(tmp_path / "nested").items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-5, err_msg=name)


def test_recipes_that_lead_back_to_themselves(models):
    write_recipe(models.root / "a.yaml", {"base": "./base", "models": [{"model": "./b.yaml"}]})
    write_recipe(models.root / "b.yaml", {"base": "./base", "models": [{"model": "./a.yaml"}]})
    check_refusal(run("plan", models.root / "a.yaml"), 2, "leads back to itself")


# adapters


@pytest.fixture
def adapters(models, tmp_path):
    """Return two adapters, and the dense models they stand for; base values as stored."""
    base = {n: a.astype(np.float32) for n, a in read_model(models.root / "base").items()}
    write_model(tmp_path / "base", base, "float32")
    for number in range(2):
        dense = write_adapter(tmp_path / f"adapter{number}", base, number, rank=3, alpha=6)
        full = {n: (a.astype(np.float64) + dense.get(n, 0.0)).astype(np.float32) for n, a in base.items()}
        write_model(tmp_path / f"dense{number}", full, "float32")
    return tmp_path


@pytest.mark.parametrize(
    "fields",
    [
        {"preset": "task_arithmetic", "scale": 0.7},
        {"preset": "ties", "density": 0.3},
        {"preset": "della", "density": 0.6},
        {"preset": "emr", "task": "m0"},
        {"merge": "mean"},
        {"merge": "linear"},
    ],
    ids=str,
)
def test_adapters_equal_the_dense_models_they_stand_for(adapters, fields):
    found = []
    for kind in ("adapter", "dense"):
        sources = [{"model": f"./{kind}{i}", "label": f"m{i}", "weight": 0.5 + i} for i in range(2)]
        recipe = write_recipe(adapters / f"{kind}.yaml", {"base": "./base", "models": sources} | fields)
        result = run("merge", recipe, adapters / f"out-{kind}", "--quiet")
        assert result.code == 0, result
        found.append(read_model(adapters / f"out-{kind}"))
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], atol=2e-6, err_msg=name)


def test_an_adapter_and_a_model_together(adapters, models):
    sources = [{"model": "./adapter0"}, {"model": "./dense1"}]
    recipe = write_recipe(adapters / "r.yaml", {"base": "./base", "models": sources})
    assert run("merge", recipe, adapters / "out", "--quiet").code == 0
    base, dense = read_model(adapters / "base"), [read_model(adapters / f"dense{i}") for i in range(2)]
    for name, array in read_model(adapters / "out").items():
        wanted = sum(d[name].astype(np.float64) for d in dense) - base[name]
        np.testing.assert_allclose(array, wanted, atol=2e-6)


# overrides and weights


def test_settings_change_the_recipe(models, tmp_path):
    recipe = models.recipe("r.yaml", preset="ties")
    settings = ("--set", "scale=0.5", "--set", "models.m1.weight=2", "--set", "density=0.4", "--seed", "7")
    told = run("plan", recipe, "--json", *settings).document["recipe"]
    assert told["scale"] == 0.5
    assert told["seed"] == 7
    assert [m["weight"] for m in told["models"]] == [1.0, 2, 1.0]
    assert told["models"][0]["edits"][0]["keep_largest"]["density"] == 0.4
    assert run("merge", recipe, tmp_path / "out", "--quiet", *settings).code == 0
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (written["seed"], written["recipe"]["scale"]) == (7, 0.5)


def test_sums_of_weighted_deltas_equal_float64(models, tmp_path):
    weights = (0.25, -1.5, 3.0)
    sources = [{"model": f"./m{i}", "weight": w} for i, w in enumerate(weights)]
    recipe = models.recipe("r.yaml", models=sources, scale=0.3, dtype="float32")
    assert run("merge", recipe, tmp_path / "out", "--quiet").code == 0
    base = {n: a.astype(np.float64) for n, a in stored(models.base, "bfloat16").items()}
    tunes = [stored(t, "bfloat16") for t in models.tunes]
    for name, array in read_model(tmp_path / "out").items():
        delta = sum(
            w * (t[name].astype(np.float64) - base[name]) for w, t in zip(weights, tunes, strict=True)
        )
        np.testing.assert_allclose(array, base[name] + 0.3 * delta, atol=1e-6)


def test_schedules_over_depth_and_globs(models, tmp_path):
    scale = [
        {"where": "*norm*", "value": 0.0},
        {"where": "model.layers.*", "value": {"layers": [0.0, 1.0]}},
        {"where": "*", "value": 2.0},
    ]
    recipe = models.recipe("r.yaml", models=[{"model": "./m0"}], scale=scale, dtype="float32")
    assert run("merge", recipe, tmp_path / "out", "--quiet").code == 0
    base, tune = (read_model(models.root / label) for label in ("base", "m0"))
    for name, array in read_model(tmp_path / "out").items():
        factor = 0.0 if "norm" in name else 1.0 * ("layers.1." in name) if "layers" in name else 2.0
        one, other = base[name].astype(np.float64), tune[name].astype(np.float64)
        np.testing.assert_allclose(array, one + factor * (other - one), atol=1e-6, err_msg=name)


def test_where_leaves_the_rest_to_the_base(models, tmp_path):
    recipe = models.recipe("r.yaml", where="*.mlp.*", preset="ties")
    assert run("merge", recipe, tmp_path / "out", "--quiet").code == 0
    out, base = read_model(tmp_path / "out"), read_model(models.root / "base")
    for name, array in out.items():
        assert (array.tobytes() == base[name].tobytes()) == (".mlp." not in name)
    assert hashes(tmp_path / "out")
