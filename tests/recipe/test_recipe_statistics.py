"""Statistics that an edit reads: how a model's gradient gets from its file to every tile, and which are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deltasmith import api
from deltasmith.edits.drop_biased import BiasByGradient
from deltasmith.engine.columns import EditedColumns
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, InterruptedRunError, RecipeError, RefusedError
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.opening import open_model
from deltasmith.operation.reference import edit_table
from deltasmith.recipe.build import build
from deltasmith.recipe.checks import from_dict, load
from deltasmith.recipe.model import to_mapping
from models import family, read_model, write_adapter

MADE = {"format": "deltasmith-stats-1", "kind": "gradient", "examples": "8"}
EDIT = {"bias_by_gradient": {"density": 0.5, "k": 0.3}}
BIAS = BiasByGradient(density=0.5, k=0.3)


def gradient_of(arrays, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in arrays.items()}


def file_of(models, label):
    return models.root / f"{label}.grad.safetensors"


@pytest.fixture
def models(tmp_path):
    """Write a family of two models and a gradient for each."""
    made = family(tmp_path / "models", experts=2, dtype="float32", vocab=4200)
    for seed, label in enumerate(made.labels):
        save_file(gradient_of(made.base, seed), file_of(made, label), MADE)
    return made


def entry(label, *more, **fields):
    given = {"model": f"./{label}", "label": label, "statistics": f"{label}.grad.safetensors"}
    return given | {"edits": [EDIT, *more]} | fields


def deltas(models, label, names=None):
    base, tune = (read_model(models.root / name) for name in ("base", label))
    return {n: tune[n] - base[n] for n in names or base}


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3, "tile": 1 << 16}])
def test_every_tile_of_every_model_sees_its_own_gradient(models, tmp_path, options):
    recipe = models.recipe(models=[entry(label) for label in models.labels])
    api.merge(recipe, tmp_path / "out", **options)
    base, out = read_model(models.root / "base"), read_model(tmp_path / "out")
    sides = [
        edit_table(BIAS, deltas(models, label), statistics=load_file(file_of(models, label)))
        for label in models.labels
    ]
    assert max(a.size for a in base.values()) > 1 << 16
    for name, values in base.items():
        np.testing.assert_array_equal(out[name], values + (sides[0][name] + sides[1][name]), err_msg=name)


@pytest.mark.parametrize("other", [{"low_rank": {"rank": 2}}, {"keep_largest": {"density": 0.3}}])
def test_edits_of_another_reach_and_surveys_stand_beside_it(models, tmp_path, other):
    """Rows of reach tensor hold whole tensors; a survey of a later edit sees what this one made."""
    models_ = [entry("m0", other)]
    api.merge(models.recipe(models=models_), tmp_path / "out", threads=2)
    found = load(models.root / "recipe.yaml").models[0].edits[1].record
    edited = edit_table(BIAS, deltas(models, "m0"), statistics=load_file(file_of(models, "m0")))
    wanted, base = edit_table(found, edited), read_model(models.root / "base")
    for name, values in read_model(tmp_path / "out").items():
        np.testing.assert_allclose(values, base[name] + wanted[name], atol=1e-6, err_msg=name)


def test_only_touched_tensors_need_a_gradient(models):
    gradient = load_file(file_of(models, "m0"))
    save_file({n: a for n, a in gradient.items() if ".mlp." in n}, file_of(models, "m0"), MADE)
    edits = [{**EDIT, "where": "*.mlp.*"}]
    api.compute(models.recipe(models=[entry("m0", edits=edits)]))
    with pytest.raises(RefusedError) as caught:
        api.plan(models.recipe(models=[entry("m0", edits=[{**EDIT, "where": "*.self_attn.q*"}])]))
    assert str(caught.value) == (
        "the statistics of m0 do not fit the model: model.layers.0.self_attn.q_proj.weight is missing, "
        "model.layers.1.self_attn.q_proj.weight is missing; collect them on this very model"
    )


def test_a_gradient_of_another_shape_is_refused_by_name(models):
    gradient = load_file(file_of(models, "m0"))
    gradient["lm_head.weight"] = gradient["lm_head.weight"][:-1].copy()
    save_file(gradient, file_of(models, "m0"), MADE)
    with pytest.raises(RefusedError, match=r"lm_head.weight is \[4199, 16\] and not \[4200, 16\]; collect"):
        api.plan(models.recipe(models=[entry("m0")]))


@pytest.mark.parametrize(
    ("metadata", "error", "said"),
    [
        (
            MADE | {"kind": "fisher"},
            RefusedError,
            "m0: the statistics are of kind 'fisher', and bias_by_grad",
        ),
        (
            MADE | {"kind": "gram"},
            RefusedError,
            "m0: the statistics are of kind 'gram', and bias_by_gradient",
        ),
        ({"format": "pt"}, DamagedInputError, "m0: not a statistics file in m0.grad.safetensors; bias_by_g"),
        (None, DamagedInputError, "m0: not a statistics file"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(models, metadata, error, said):
    save_file(load_file(file_of(models, "m0")), file_of(models, "m0"), metadata)
    with pytest.raises(error, match=said):
        api.plan(models.recipe(models=[entry("m0")]))


def test_a_file_that_is_not_there_and_a_folder_of_a_model(models):
    with pytest.raises(DamagedInputError, match=r"^m0: .*nowhere"):
        api.plan(models.recipe(models=[entry("m0", statistics="nowhere.safetensors")]))
    with pytest.raises(DamagedInputError, match="not a statistics file"):
        api.plan(models.recipe(models=[entry("m0", statistics="./m1")]))


def test_a_recipe_made_in_python_is_refused_too(models):
    recipe = load(models.recipe(models=[entry("m0")]))
    bare = replace(recipe, models=(replace(recipe.models[0], statistics=None),))
    with pytest.raises(RecipeError, match="bias_by_gradient needs a statistics file of this model in m0"):
        build(bare)


def test_the_file_stays_beside_its_model(models):
    recipe = load(models.recipe(models=[entry("m0"), {"model": "./m1"}]))
    assert [e.statistics for e in recipe.models] == ["m0.grad.safetensors", None]
    mapping = to_mapping(recipe)
    assert mapping["models"][0]["statistics"] == "m0.grad.safetensors"
    assert mapping["merge"] == "sum"
    assert from_dict(mapping, models.root) == recipe


def test_a_merge_that_reads_statistics_may_merge_recipes_whose_edits_do(models):
    save_file(
        {n: np.ones_like(a) for n, a in models.base.items()}, models.root / "f", MADE | {"kind": "fisher"}
    )
    (models.root / "f").rename(models.root / "ones.safetensors")
    inner = {"base": "./base", "models": [entry("m0")]}
    outer = {
        "base": None,
        "models": [
            {"model": inner, "statistics": "ones.safetensors"},
            {"model": "./m1", "statistics": "ones.safetensors"},
        ],
        "merge": {"fisher": {"norm": "none"}},
    }
    merged = api.compute(models.recipe(**outer)).arrays()
    alone = api.compute(models.recipe(**inner)).arrays()
    other = read_model(models.root / "m1")
    for name, values in merged.items():
        np.testing.assert_allclose(values, (alone[name] + other[name]) / 2, atol=1e-6)


def test_columns_in_memory_are_computed_anew_for_another_gradient(models):
    columns = EditedColumns(1 << 30)
    recipe = models.recipe(models=[entry("m0")])
    first = api.compute(recipe, columns=columns).arrays()
    for name, values in api.compute(recipe).arrays().items():
        np.testing.assert_array_equal(first[name], values)
    save_file(gradient_of(models.base, 77), file_of(models, "m0"), MADE)
    again = api.compute(recipe, columns=columns).arrays()
    assert columns.computed == 2
    for name, values in api.compute(recipe).arrays().items():
        np.testing.assert_array_equal(again[name], values)
    assert any((again[name] != first[name]).any() for name in first)


def test_an_adapter_has_a_gradient_like_any_model(models):
    write_adapter(models.root / "adapter", models.base, 3)
    merged = api.compute(models.recipe(models=[entry("adapter", statistics="m0.grad.safetensors")])).arrays()
    plain = api.compute(models.recipe(models=[{"model": "./adapter"}])).arrays()
    base = read_model(models.root / "base")
    delta = {n: a - base[n] for n, a in plain.items()}
    wanted = edit_table(BIAS, delta, statistics=load_file(file_of(models, "m0")))
    for name, values in merged.items():
        np.testing.assert_allclose(values, base[name] + wanted[name], atol=1e-6)


def test_changed_statistics_change_the_plan_and_stand_in_the_manifest(models, tmp_path):
    recipe = models.recipe(models=[entry("m0")])
    before = api.plan(recipe).hash
    api.merge(recipe, tmp_path / "out")
    inputs = json.loads((tmp_path / "out/manifest.json").read_text())["inputs"]
    assert [record["label"] for record in inputs] == ["base", "m0", "m0/statistics"]
    assert inputs[2]["files"]["m0.grad.safetensors"]["sha256"]
    gradient = load_file(file_of(models, "m0"))
    save_file({name: -array for name, array in gradient.items()}, file_of(models, "m0"), MADE)
    assert api.plan(recipe).hash != before


# whose they are


def taken_of(models, label):
    """Write into the files of both models that they were taken of one of them."""
    found = {
        "model": label,
        "model_fingerprint": fingerprint(open_model(str(models.root / label)).checkpoint),
    }
    for each in models.labels:
        save_file(load_file(file_of(models, each)), file_of(models, each), MADE | found)


def check_nothing_is_written(models, recipe, tmp_path, said):
    folder = tmp_path / "made"
    folder.mkdir()
    api.plan(recipe)  # which reads headers alone
    with pytest.raises(RefusedError, match=said):
        api.compute(recipe)
    with pytest.raises(RefusedError, match=said) as caught:
        api.merge(recipe, folder / "out")
    assert list(folder.iterdir()) == []
    return str(caught.value)


def test_a_file_that_was_taken_of_another_model_is_refused(models, tmp_path):
    taken_of(models, "m0")
    api.compute(models.recipe(models=[entry("m0")]))
    recipe = models.recipe(models=[entry("m0"), entry("m1")])
    said = check_nothing_is_written(models, recipe, tmp_path, "of m1 were taken of another model")
    place = models.root / "m1"
    assert said == (
        "the statistics of m1 were taken of another model (m0) in m1.grad.safetensors; take its own: "
        f"deltasmith loss {place} --from {place} --data FILE --save-gradient FILE.safetensors"
    )


def test_a_recipe_within_a_recipe_is_looked_at_too(models, tmp_path):
    taken_of(models, "m0")
    inner = {"base": "./base", "models": [entry("m1")]}
    recipe = models.recipe(models=[{"model": inner, "label": "inner"}])
    check_nothing_is_written(models, recipe, tmp_path, "^the statistics of inner/m1 were taken of another")
    inner = {"base": inner, "models": [{"model": "./m0"}]}
    recipe = models.recipe(base=inner, models=[{"model": "./m1"}])
    with pytest.raises(RefusedError, match=r"^the statistics of base/base/m1 were taken of another"):
        api.compute(recipe)


def test_the_same_model_elsewhere_is_the_same_model(models):
    taken_of(models, "m0")
    before = api.compute(models.recipe(models=[entry("m0")])).arrays()
    (models.root / "m0").rename(models.root / "moved")
    moved = {"model": "./moved", "label": "m0", "statistics": "m0.grad.safetensors", "edits": [EDIT]}
    after = api.compute(models.recipe(models=[moved])).arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_of_what_does_not_lie_whole_on_disk_nothing_is_known(models):
    taken_of(models, "m1")
    write_adapter(models.root / "adapter", models.base, 3)
    recipe = models.recipe(models=[entry("adapter", statistics="m0.grad.safetensors")])
    assert api.compute(recipe).tensors
    inner = {"base": "./base", "models": [{"model": "./m0"}]}
    assert api.compute(models.recipe(models=[entry("m0", model=inner)])).tensors


def test_reading_a_model_for_its_fingerprint_can_be_stopped(models, monkeypatch, tmp_path):
    taken_of(models, "m0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError):
        api.merge(models.recipe(models=[entry("m0")]), tmp_path / "out", stop=stop)
