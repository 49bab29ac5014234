"""Faults of values: not a number, overflow, lost tensors, wrong bases, extreme sizes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from formats import attacks
from models import (
    Family,
    assert_refused,
    draw,
    family,
    read_model,
    run,
    spawn,
    stored,
    write_model,
    write_recipe,
)

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
SPECIAL = {"NaN": 0x7FC0, "signalling NaN": 0x7F81, "+Inf": 0x7F80, "-Inf": 0xFF80}


@pytest.fixture
def models(tmp_path) -> Family:
    return family(tmp_path / "models")


def rewrite(models, label, arrays, dtype="bfloat16", **options):
    return write_model(models.root / label, arrays, dtype, **options)


def plan_of(recipe):
    result = run("plan", recipe, "--json")
    assert result.code == 0, result
    return result.document


# 45 and 46: values


def poison(models, label, bits, at=5, name=Q, dtype="bfloat16"):
    values = stored(dict(models.base if label == "base" else models.tunes[int(label[1:])]), dtype)
    flat = values[name] = values[name].copy()
    kind = {2: np.uint16, 4: np.uint32}[flat.dtype.itemsize]
    flat.reshape(-1).view(kind)[at] = bits
    return write_model(models.root / label, values, dtype)


BITS = {
    "bfloat16": SPECIAL,
    "float16": {"NaN": 0x7E00, "signalling NaN": 0x7C01, "+Inf": 0x7C00, "-Inf": 0xFC00},
    "float32": {"NaN": 0x7FC00000, "signalling NaN": 0x7F800001, "+Inf": 0x7F800000, "-Inf": 0xFF800000},
}


@pytest.mark.parametrize("label", ["base", "m1"])
@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("dtype", BITS)
def test_fault_45_values_that_are_not_finite(models, label, what, dtype):
    poison(models, label, BITS[dtype][what], dtype=dtype)
    assert_refused(1, models.recipe(preset="task_arithmetic"), Q, label, plan=False)


@pytest.mark.parametrize("preset", ["ties", "della", "slerp", "emr", "sce", "pcb", "dare", "breadcrumbs"])
def test_fault_45_with_surveys_too(models, preset):
    poison(models, "m1", SPECIAL["NaN"])
    fields = {"density": 0.5} if preset in ("della", "dare", "breadcrumbs") else {}
    fields |= {"models": [{"model": "./m0"}, {"model": "./m1"}]} if preset == "slerp" else {}
    assert_refused(1, models.recipe(preset=preset, **fields), Q, "m1", plan=False)


@pytest.mark.parametrize("preset", ["task_arithmetic", "ties", "della", "emr", "sce"])
@pytest.mark.parametrize("policy", ["refuse", "keep", "zero"])
def test_fault_45_infinity_less_infinity(models, preset, policy):
    for label in ("base", "m1"):
        poison(models, label, SPECIAL["+Inf"])
    recipe = models.recipe(preset=preset, nonfinite=policy, **({"density": 0.5} if preset == "della" else {}))
    if policy == "refuse":
        assert_refused(1, recipe, Q, "base", plan=False)
        return
    out = models.root.parent / "out"
    result = spawn("merge", recipe, out, "--quiet")
    assert (result.code, result.err) == (0, "")
    if preset == "sce" and policy == "keep":
        return  # its coefficients are shares of whole tensors
    assert np.isfinite(np.delete(read_model(out)[Q].astype(np.float32).reshape(-1), 5)).all()


def test_fault_45_in_a_tensor_that_is_cast(models):
    poison(models, "base", SPECIAL["NaN"])
    assert_refused(1, models.recipe(where="model.norm.*", dtype="float32"), Q, "base", plan=False)


@pytest.mark.parametrize(("policy", "expected"), [("keep", np.nan), ("zero", None)])
def test_fault_45_policies(models, policy, expected):
    poison(models, "m1", SPECIAL["NaN"])
    out = models.root.parent / "out"
    assert run("merge", models.recipe(nonfinite=policy), out, "--quiet").code == 0
    value = read_model(out)[Q].astype(np.float32).reshape(-1)
    assert np.isnan(value[5]) == (policy == "keep")
    assert np.isfinite(np.delete(value, 5)).all()
    assert run("verify", out).code == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_fault_45_negative_zero_and_subnormals_survive(models, dtype):
    for label in ("base", "m0", "m1", "m2"):
        poison(models, label, 0x8000 if dtype != "float32" else 0x80000000, at=0, dtype=dtype)
    first = {label: read_model(models.root / label) for label in ("base", "m0")}
    for label, arrays in first.items():
        flat = arrays[Q].reshape(-1).view({2: np.uint16, 4: np.uint32}[arrays[Q].dtype.itemsize])
        flat[1:4] = (1, 3, flat[0] + 1)  # the smallest subnormals, both signs
        save_file(arrays, models.root / label / "model.safetensors", {"format": "pt"})
    wanted = first["m0"][Q].tobytes()
    for number, fields in enumerate(
        [
            {
                "preset": "passthrough",
                "model": "m0",
                "base": None,
                "models": [{"model": "./m0", "label": "m0"}],
            },
            {"models": [{"model": "./m0"}], "merge": "linear", "base": None},
        ]
    ):
        out = models.root.parent / f"out{number}"
        result = run("merge", models.recipe(**fields), out, "--quiet")
        assert result.code == 0, result
        assert read_model(out)[Q].tobytes() == wanted
    converted = models.root.parent / "converted"
    assert run("convert", models.root / "m0", converted, "--quiet").code == 0
    assert read_model(converted)[Q].tobytes() == wanted


def test_fault_46_overflow_on_the_cast(models):
    large = {n: a * 1e6 for n, a in models.tunes[1].items()}
    rewrite(models, "m1", large, "float32")
    assert_refused(1, models.recipe(dtype="float16"), "float16", ".weight", "values do not fit", plan=False)


def test_fault_46_overflow_of_float32_itself(models):
    rewrite(models, "m1", {n: np.full_like(a, 3e38) for n, a in models.tunes[1].items()}, "float32")
    assert_refused(1, models.recipe(dtype="float32", scale=10), ".weight", plan=False)


# 47 and 48: suspicious, and no more


def test_fault_47_a_tensor_of_zeros(models):
    rewrite(models, "m1", models.tunes[1] | {Q: np.zeros_like(models.base[Q])})
    result = run("merge", models.recipe(), models.root.parent / "out")
    assert result.code == 0
    assert any(Q in line and "zero" in line and "m1" in line for line in result.err.splitlines())


def test_fault_47_a_constant_norm_is_usual(models):
    ones = np.ones_like(models.base[NORM])
    for label, arrays in zip(("base", *models.labels), (models.base, *models.tunes), strict=True):
        rewrite(models, label, arrays | {NORM: ones})
    result = run("merge", models.recipe(), models.root.parent / "out")
    assert NORM not in result.err


def test_fault_48_the_same_model_twice(models):
    rewrite(models, "m1", models.base)
    result = run("merge", models.recipe(), models.root.parent / "out")
    assert result.code == 0
    assert any(
        "m1" in line and "base" in line for line in result.err.splitlines() if line.startswith("warning: ")
    )


def test_fault_48_another_base(models):
    rewrite(models, "base", draw(99))
    result = run("merge", models.recipe(), models.root.parent / "out")
    assert result.code == 0
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert any("base" in line and "m0" in line for line in warnings)


def test_fault_48_no_warning_without_a_reason(models):
    result = run("merge", models.recipe(), models.root.parent / "out")
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert warnings == ["warning: no input states a licence, so the card states none"]


# 49 and 50: extreme sizes, other families

SMALL = {
    "empty": (0, 4),
    "also.empty": (3, 0),
    "scalar": (),
    "one": (1,),
    "one.by.one": (1, 1),
    "row": (1, 7),
}


@pytest.mark.parametrize(
    "fields",
    [{"preset": p} for p in ("task_arithmetic", "ties", "emr", "sce", "pcb", "model_stock", "karcher", "tsv")]
    + [{"preset": p, "density": 0.5} for p in ("dare", "della", "breadcrumbs", "dare_ties")],
    ids=lambda fields: fields["preset"],
)
def test_fault_49_small_tensors(tmp_path, fields):
    rng = np.random.default_rng(3)
    base = {n: rng.normal(size=s).astype(np.float32) for n, s in SMALL.items()}
    tunes = tuple({n: np.asarray(a + 0.5 + i, np.float32) for n, a in base.items()} for i in range(2))
    for label, arrays in zip(("base", "m0", "m1"), (base, *tunes), strict=True):
        write_model(tmp_path / label, arrays, "float32")
    models = Family(tmp_path, base, tunes)
    result = run("merge", models.recipe(**fields), tmp_path / "out", "--quiet")
    assert result.code == 0, result
    values = read_model(tmp_path / "out")
    assert {n: a.shape for n, a in values.items()} == SMALL
    if fields["preset"] == "task_arithmetic":
        for name, array in values.items():
            np.testing.assert_allclose(array, base[name] + 2.0, atol=1e-5)


def test_fault_49_more_than_two_to_the_31_elements(tmp_path):
    rows, columns = 1 << 16, (1 << 15) + 1
    for label in ("base", "m0"):
        (tmp_path / label).mkdir()
        text = json.dumps({"w": attacks.entry("BF16", [rows, columns], 0, 2 * rows * columns)})
        path = tmp_path / label / "model.safetensors"
        path.write_bytes(attacks.assemble(text + " " * (-len(text) % 8)))
        os.truncate(path, path.stat().st_size + 2 * rows * columns)
    entries = [{"model": "./m0"}]
    recipe = write_recipe(tmp_path / "r.yaml", {"base": "./base", "models": entries, "preset": "ties"})
    plan = plan_of(recipe)
    assert plan["bytes_written"] > 2 * rows * columns > 1 << 32
    assert plan["tensors"][0]["shape"] == [rows, columns]
