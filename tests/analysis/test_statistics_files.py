"""Statistics files of the bundled family: what they hold, who reads them, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith import api
from deltasmith.analysis.statistics_files import save, stored_names
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.opening import open_model
from deltasmith.lab import family_folder

FAMILY = family_folder()
SUFFIX = {"gradient": "", "fisher": "", "gram": "::gram"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file of data for each of two tasks, and of each kind of statistics for their models."""
    place = tmp_path_factory.mktemp("statistics")
    for task in ("math", "code"):
        items = (FAMILY / "items" / f"validation_{task}.jsonl").read_text().splitlines()[:12]
        kept = [{key: json.loads(line)[key] for key in ("prompt", "answer")} for line in items]
        (place / f"{task}.jsonl").write_text("\n".join(map(json.dumps, kept)))
        for kind in SUFFIX:
            made(kind, place, task)
    return place


def made(kind, place, task="math", name="", **options):
    out = place / f"{name or task}-{kind}.safetensors"
    model = options.pop("model", FAMILY / "small" / task)
    return save(kind, model, data=place / f"{task}.jsonl", out=out, **options)


def read(path):
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("kind", SUFFIX)
def test_a_file_holds_the_checkpoints_tensors_in_float32(kind, folder):
    metadata, tensors = read(folder / f"math-{kind}.safetensors")
    checkpoint = open_model(str(FAMILY / "small" / "math")).checkpoint
    whose = {"model": "math", "model_fingerprint": fingerprint(checkpoint)}
    assert metadata == {"format": "deltasmith-stats-1", "kind": kind, "examples": "12", **whose}
    specs = checkpoint.specs
    linears = [n for n in specs if n.endswith("_proj.weight") or n == "lm_head.weight"]
    wanted = (
        {f"{n}::gram": (specs[n].shape[1],) * 2 for n in linears}
        if kind == "gram"
        else {n: spec.shape for n, spec in specs.items()}
    )
    assert {name: values.shape for name, values in tensors.items()} == wanted
    assert {values.dtype.name for values in tensors.values()} == {"float32"}
    if kind == "gradient":
        assert all(values.any() for values in tensors.values())
    else:
        assert all(
            (values.diagonal() if kind == "gram" else values).min() >= 0 for values in tensors.values()
        )


@pytest.mark.parametrize("kind", SUFFIX)
def test_the_same_run_gives_the_same_bytes_and_the_memory_none(kind, folder):
    saved = made(kind, folder, name="again", memory=1 << 20)
    assert (folder / f"again-{kind}.safetensors").read_bytes() == (
        folder / f"math-{kind}.safetensors"
    ).read_bytes()
    assert (saved.examples, saved.tensors) == (12, len(read(saved.file)[1]))


def test_the_batch_changes_the_rounding_alone(folder):
    for kind in ("gradient", "gram"):
        made(kind, folder, name="single", batch=1)
        ours, theirs = (read(folder / f"{name}-{kind}.safetensors")[1] for name in ("single", "math"))
        for name, values in ours.items():
            np.testing.assert_allclose(values, theirs[name], rtol=1e-3, atol=1e-4 * np.abs(values).max())


def merged(folder, kind, merge):
    models = [
        {
            "model": str(FAMILY / "small" / task),
            "label": task,
            "statistics": str(folder / f"{task}-{kind}.safetensors"),
        }
        for task in ("math", "code")
    ]
    return api.compute({"models": models, "merge": merge}).arrays()


def test_fisher_merges_with_what_was_saved(folder):
    found = merged(folder, "fisher", {"fisher": {"norm": "none", "floored": "all"}})
    name = "model.layers.1.mlp.up_proj.weight"
    weights, diagonals = [], []
    for task in ("math", "code"):
        checkpoint = open_model(str(FAMILY / "small" / task)).checkpoint
        out = np.empty(checkpoint.specs[name].size, np.float32)
        checkpoint.read(name, 0, out)
        weights.append(out.astype(np.float64))
        diagonals.append(np.maximum(read(folder / f"{task}-fisher.safetensors")[1][name].ravel(), 1e-6))
    wanted = sum(w * f for w, f in zip(weights, diagonals, strict=True)) / sum(diagonals)
    np.testing.assert_allclose(found[name].ravel(), wanted, rtol=2**-8, atol=1e-6)
    assert np.abs(wanted - np.mean(weights, axis=0)).max() > 1e-3  # and this is not the average


def test_regmean_merges_with_what_was_saved(folder):
    found = merged(folder, "gram", {"regmean": {"damping": 0.01}})
    plain = api.compute(
        {"models": [{"model": str(FAMILY / "small" / task)} for task in ("math", "code")], "merge": "linear"}
    ).arrays()
    differ = {name for name in found if not np.array_equal(found[name], plain[name])}
    assert differ == {name.removesuffix("::gram") for name in read(folder / "math-gram.safetensors")[1]}


def test_the_edit_that_needs_a_gradient_reads_it(folder):
    entry = {
        "model": str(FAMILY / "small" / "math"),
        "edits": [{"bias_by_gradient": {"density": 0.5, "k": 0.5}}],
    }
    entry["statistics"] = str(folder / "math-gradient.safetensors")
    found = api.compute({"base": str(FAMILY / "base"), "models": [entry], "merge": "sum"}).arrays()
    assert all(np.isfinite(values).all() for values in found.values())


def test_a_recipe_has_statistics_too(folder):
    recipe = {
        "base": str(FAMILY / "base"),
        "models": [{"model": str(FAMILY / "small" / "math")}],
        "merge": "sum",
    }
    made("gradient", folder, name="recipe", model=recipe)
    ours, theirs = (read(folder / f"{name}-gradient.safetensors")[1] for name in ("recipe", "math"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert "model" not in read(folder / "recipe-gradient.safetensors")[0]


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_what_was_taken_of_another_model_is_refused(kind, folder):
    """The file of code beside math, and that of the small code beside the large one of the same name."""
    merge = {"fisher": "fisher", "gram": {"regmean": {"damping": 0.01}}}[kind]

    def recipe(size, task):
        entry = {"model": str(FAMILY / size / task), "label": "m"}
        return {"models": [entry | {"statistics": str(folder / f"code-{kind}.safetensors")}], "merge": merge}

    api.compute(recipe("small", "code"))
    for size, task in (("small", "math"), ("large", "code")):
        with pytest.raises(RefusedError, match=rf"of m were taken of another model \(code\).*--save-{kind}"):
            api.compute(recipe(size, task))


def test_places_that_are_refused(folder, tmp_path):
    with pytest.raises(
        RefusedError, match=r"there is a file already .*; choose another name, or give --overwrite"
    ):
        made("gram", folder)
    before = (folder / "math-gram.safetensors").stat().st_mtime_ns
    made("gram", folder, overwrite=True)
    assert (folder / "math-gram.safetensors").stat().st_mtime_ns > before
    options = {"data": folder / "math.jsonl", "overwrite": True}
    with pytest.raises(RecipeError, match=r"cannot be called stats.bin; name it .safetensors"):
        save("gram", FAMILY / "base", out=tmp_path / "stats.bin", **options)
    with pytest.raises(RefusedError, match="among the model's own weights"):
        save("gram", FAMILY / "base", out=FAMILY / "base" / "model.safetensors", **options)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(RefusedError, match="this is a folder"):
        save("gram", FAMILY / "base", out=tmp_path / "folder.safetensors", **options)
    with pytest.raises(RecipeError, match="there is no statistic 'hessian'; use gradient, fisher, gram"):
        save("hessian", FAMILY / "base", out=tmp_path / "a.safetensors", **options)


def test_a_stop_leaves_nothing(folder, tmp_path):
    stop = Stop()
    with pytest.raises(InterruptedRunError):
        save(
            "fisher",
            FAMILY / "base",
            data=folder / "math.jsonl",
            out=tmp_path / "a.safetensors",
            stop=stop,
            say=lambda done, of: stop.ask(),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parameters", "shapes", "found"),
    [
        ({"a": (2,)}, {"a": (2,), "b": (2,)}, {"a": "a"}),
        (
            {"t.h.0.w": (2,), "head": (3,)},
            {"h.0.w": (2,), "head": (3,)},
            {"t.h.0.w": "h.0.w", "head": "head"},
        ),
        ({"h.0.w": (2,)}, {"model.h.0.w": (2,)}, {"h.0.w": "model.h.0.w"}),
    ],
)
def test_names_of_a_network_are_those_of_its_checkpoint(parameters, shapes, found):
    assert stored_names(parameters, shapes, "m") == found


@pytest.mark.parametrize(
    ("parameters", "shapes"),
    [
        ({"a": (2,)}, {"a": (3,)}),
        ({"experts.w": (4, 2, 2)}, {"experts.0.w": (2, 2), "experts.1.w": (2, 2)}),
        ({"x.w": (2,)}, {"a.x.w": (2,), "b.x.w": (2,)}),
    ],
)
def test_a_parameter_without_a_tensor_is_refused_by_name(parameters, shapes):
    with pytest.raises(RefusedError, match=rf"no tensor of the checkpoint is {next(iter(parameters))} "):
        stored_names(parameters, shapes, "m")
