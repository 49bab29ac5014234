"""`pack --statistics`: errors weighed by the layers' inputs fall, and matrices of other layers are refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from containers import values
from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.packing import pack
from deltasmith.packing.frugal import pack_within
from models import check_refusal, family, run

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("pack-statistics") / "models"
    return family(root, experts=1, dtype="float32", hidden=32, inter=48)


@pytest.fixture(scope="module")
def grams(models):
    """Write Gram matrices of correlated inputs for two layers."""
    random, found = np.random.default_rng(3), {}
    for name, width in ((UP, 32), (DOWN, 48)):
        x = random.standard_normal((400, width)) @ random.standard_normal((width, width))
        found[f"{name}::gram"] = (x.T @ x / 400).astype(np.float32)
    save_file(found, models.root / "grams.safetensors")
    return found


def output_errors(models, out, grams):
    """Return Σ ‖(δ − δ̂) x‖² over the inputs that the Gram matrices are of, per tensor."""
    base, found = open_model(str(models.root / "base")).checkpoint, {}
    for name, again in values(out, base).items():
        if f"{name}::gram" in grams:
            miss = models.tunes[0][name].astype(np.float64) - again
            found[name] = float(
                np.einsum("oi,ij,oj->", miss, grams[f"{name}::gram"].astype(np.float64), miss)
            )
    return found


def test_the_error_of_the_outputs_falls(models, grams):
    pack(models.root / "base", models.root / "m0", models.root / "plain", codec="claq:bits=2")
    done = run(
        "pack", models.root / "base", models.root / "m0", models.root / "weighed", "--codec", "claq:bits=2",
        "--statistics", models.root / "grams.safetensors",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "errors weighed by grams" in done.err
    plain, weighed = (output_errors(models, models.root / o, grams) for o in ("plain", "weighed"))
    assert plain.keys() == weighed.keys() == {UP, DOWN}
    for name, error in weighed.items():
        assert error < 0.9 * plain[name], (name, error, plain[name])
    one, other = (open_packed(models.root / o).delta() for o in ("plain", "weighed"))
    untouched = "model.layers.0.mlp.gate_proj.weight"
    assert [bytes(d.source(untouched).whole("codes")) for d in (one, other)] == [
        bytes(one.source(untouched).whole("codes"))
    ] * 2, "a tensor without a Gram matrix is coded as before"


def test_a_budget_weighs_errors_too(models, grams):
    file = models.root / "grams.safetensors"
    found = {}
    for name, statistics in (("b-plain", None), ("b-weighed", file)):
        out = models.root / name
        pack_within(
            models.root / "base",
            models.root / "m0",
            out,
            budget=0.95,
            among=["claq:bits=2"],
            statistics=statistics,
        )
        found[name] = output_errors(models, out, grams)
    assert all(found["b-weighed"][name] < 0.9 * found["b-plain"][name] for name in (UP, DOWN))


@pytest.mark.parametrize("shape", [(16, 16), (48, 48), (32, 16), (32,), (32 * 32,)], ids=str)
def test_a_gram_matrix_of_another_shape_is_refused_by_name(models, tmp_path, shape):
    save_file({f"{UP}::gram": np.ones(shape, np.float32)}, tmp_path / "grams.safetensors")
    result = run(
        "pack", models.root / "base", models.root / "m0", tmp_path / "out", "--codec", "claq:bits=2", "--quiet",
        "--statistics", tmp_path / "grams.safetensors",
    )  # fmt: skip
    check_refusal(result, 1, UP, f"a Gram matrix of {list(shape)}", "for a tensor of [48, 32]")
    assert not (tmp_path / "out").exists()


def test_a_gram_matrix_for_a_vector_is_refused(models, tmp_path):
    save_file({"model.norm.weight::gram": np.ones((32, 32), np.float32)}, tmp_path / "grams.safetensors")
    with pytest.raises(RefusedError, match=r"model\.norm\.weight"):
        pack(
            models.root / "base",
            models.root / "m0",
            tmp_path / "out",
            statistics=tmp_path / "grams.safetensors",
        )


def test_a_file_without_gram_matrices_is_refused(models, tmp_path):
    with pytest.raises(DamagedInputError, match="not a file of Gram matrices"):
        pack(models.root / "base", models.root / "m0", tmp_path / "out", statistics=models.root / "m0")
    assert not (tmp_path / "out").exists()


def test_grams_of_another_model_are_refused(models, grams, tmp_path):
    base, m0 = (models.root / name for name in ("base", "m0"))
    for name in ("base", "m0"):
        whose = {
            "model": name,
            "model_fingerprint": fingerprint(open_model(str(models.root / name)).checkpoint),
        }
        save_file(grams, tmp_path / f"{name}.safetensors", {"kind": "gram", **whose})
    pack(base, m0, tmp_path / "right", codec="claq:bits=2", statistics=tmp_path / "m0.safetensors")
    with pytest.raises(RefusedError, match=r"of m0 were taken of another model \(base\).*--save-gram"):
        pack(base, m0, tmp_path / "out", codec="claq:bits=2", statistics=tmp_path / "base.safetensors")
    assert not (tmp_path / "out").exists()
