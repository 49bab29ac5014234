"""Faults of what the numbers mean: models that do not fit together (exit 1), and what is only worth a warning."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from models import (
    VOCAB,
    Family,
    assert_refused,
    check_refusal,
    config,
    draw,
    family,
    read_model,
    run,
    shapes,
    stored,
    tokenizer,
    tuned,
    write_adapter,
    write_fp8,
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


# 36: adapters


def with_adapter(models, *, seed=5, **changes):
    dense = write_adapter(models.root / "adapter", models.base, seed, **changes)
    return models.recipe(models=[{"model": "./adapter"}], dtype="float32"), dense


def merged_deltas(models, recipe):
    out = models.root.parent / "out"
    result = run("merge", recipe, out, "--quiet")
    assert result.code == 0, result
    base = {n: a.astype(np.float64) for n, a in read_model(models.root / "base").items()}
    return {n: a.astype(np.float64) - base[n] for n, a in read_model(out).items()}


@pytest.mark.parametrize("scaled_by", ["rank", "root of rank"])
def test_fault_36_adapters_are_scaled_as_they_say(models, scaled_by):
    recipe, dense = with_adapter(models, use_rslora=scaled_by == "root of rank")
    factor = np.sqrt(2.0) if scaled_by == "root of rank" else 1.0
    for name, delta in merged_deltas(models, recipe).items():
        np.testing.assert_allclose(delta, factor * dense.get(name, np.zeros(delta.shape)), atol=1e-7, rtol=0)


def test_fault_36_saved_modules_replace_theirs(models):
    recipe, dense = with_adapter(models)
    path = models.root / "adapter" / "adapter_model.safetensors"
    norm = np.full(models.base[NORM].shape, 0.25, np.float32)
    factors = read_model(models.root / "adapter")
    save_file(
        factors | {f"base_model.model.{NORM}".replace(".weight", ".modules_to_save.weight"): norm}, path
    )
    deltas = merged_deltas(models, recipe)
    base = read_model(models.root / "base")[NORM].astype(np.float64)
    np.testing.assert_allclose(deltas[NORM], 0.25 - base, atol=1e-7)
    np.testing.assert_allclose(deltas[Q], dense[Q], atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 0}, "rank"),
        ({"r": 3}, "rank"),
    ],
)
def test_fault_36_other_adapters_are_refused_by_name(models, changes, word):
    write_adapter(models.root / "adapter", models.base, 5)
    path = models.root / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert_refused(1, models.recipe(models=[{"model": "./adapter"}]), "adapter", word)


def test_fault_36_adapter_without_configuration_or_weights(models):
    recipe, _ = with_adapter(models)
    (models.root / "adapter" / "adapter_config.json").rename(models.root / "config")
    assert_refused(3, recipe, "adapter_config.json")
    (models.root / "config").rename(models.root / "adapter" / "adapter_config.json")
    (models.root / "adapter" / "adapter_model.safetensors").unlink()
    assert_refused(3, recipe, "adapter_model.safetensors")


def test_fault_36_adapter_of_another_base(models):
    write_adapter(models.root / "adapter", draw(1, layers=4), 5)
    recipe = models.recipe(models=[{"model": "./adapter"}])
    assert_refused(1, recipe, "adapter", "model.layers.2.self_attn.q_proj.weight")
    write_adapter(models.root / "adapter", draw(1, hidden=12), 5)
    assert_refused(1, recipe, "adapter", "[12, 12]", "[16, 16]")


def test_fault_36_adapter_without_a_base(models):
    write_adapter(models.root / "adapter", models.base, 5)
    entries = [{"model": "./adapter"}, {"model": "./m1"}]
    assert_refused(1, write_recipe(models.root / "r.yaml", {"models": entries, "merge": "linear"}), "base")


# 39 to 44: shapes, vocabularies, layers, types


def test_fault_39_width_mismatch_names_tensor_and_both_shapes(models):
    rewrite(models, "m1", draw(1, hidden=20))
    assert_refused(1, models.recipe(), "layers.0.self_attn.k_proj.weight", "[16, 16]", "[20, 20]", "m1")


def test_fault_40_vocabulary_mismatch_spells_the_remedies_out(models):
    rewrite(models, "m1", draw(1, vocab=44))
    assert_refused(1, models.recipe(), "lm_head.weight", "[40, 16]", "[44, 16]", "union", "pad")


def test_fault_41_same_size_other_token_ids(models):
    rewrite(models, "m1", models.tunes[1], tokens=tokenizer(shift=1))
    assert_refused(1, models.recipe(), "m1", "40 tokens", "w0")


def test_fault_42_padded_vocabulary_is_kept(models):
    for label, arrays in zip(("base", *models.labels), (models.base, *models.tunes), strict=True):
        rewrite(models, label, arrays, tokens=tokenizer(words=VOCAB - 7))
    plan = plan_of(models.recipe())
    rows = {t["name"]: t for t in plan["tensors"]}
    assert rows["lm_head.weight"]["shape"] == [VOCAB, 16]
    assert rows["lm_head.weight"]["from"] == "merged"
    assert any("33" in w and "40" in w for w in plan["warnings"])


@pytest.mark.parametrize("layers", [1, 3])
def test_fault_43_layer_count(models, layers):
    rewrite(models, "m1", draw(1, layers=layers))
    assert_refused(
        1, models.recipe(), "m1", f"model.layers.{min(layers, 2)}." if layers == 3 else "model.layers.1."
    )


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_fault_43_one_tensor(models, change):
    arrays = dict(models.tunes[1])
    if change == "missing":
        del arrays[NORM]
    else:
        arrays["model.extra.weight"] = np.ones(3, np.float32)
    rewrite(models, "m1", arrays)
    assert_refused(1, models.recipe(), "m1", NORM if change == "missing" else "model.extra.weight")


def test_fault_43_a_narrow_where_merges_what_is_shared(models):
    arrays = {n: a for n, a in models.tunes[1].items() if ".layers." in n}
    rewrite(models, "m1", arrays | {"model.extra.weight": np.ones(3, np.float32)})
    plan = plan_of(models.recipe(where="model.layers.*"))
    notes = " | ".join(plan["notes"])
    assert "model.extra.weight of m1" in notes
    assert {t["name"]: t["from"] for t in plan["tensors"]}[NORM] == "base"
    assert NORM in notes


@pytest.mark.parametrize("holders", [(), ("base",), ("m1",), ("base", "m0", "m1", "m2")])
def test_fault_43_tied_heads_are_not_written(models, holders):
    for label, arrays in zip(("base", *models.labels), (models.base, *models.tunes), strict=True):
        tied = {n: a for n, a in arrays.items() if n != "lm_head.weight"}
        if label in holders:
            tied["lm_head.weight"] = tied["model.embed_tokens.weight"].copy()
        rewrite(models, label, tied, settings=config(tie_word_embeddings=True))
    recipe = models.recipe()
    assert any("lm_head" in note for note in plan_of(recipe)["notes"]) == bool(holders)
    out = models.root.parent / "out"
    assert run("merge", recipe, out, "--quiet").code == 0
    assert set(read_model(out)) == set(shapes()) - {"lm_head.weight"}


def test_fault_43_an_untied_head_is_not_lost_in_silence(models):
    rewrite(models, "base", models.base, settings=config(tie_word_embeddings=True))
    for label, arrays in zip(models.labels, models.tunes, strict=True):
        rewrite(models, label, arrays)
    result = run("plan", models.recipe(), "--json")
    if result.code == 0:
        assert any("lm_head" in note for note in result.document["notes"] + result.document["warnings"])
    else:
        check_refusal(result, 1, "lm_head.weight")


def test_fault_44_mixed_types_take_the_base_s(models):
    rewrite(models, "m0", models.tunes[0], "float16")
    rewrite(models, "m1", models.tunes[1], "float32")
    recipe = models.recipe(merge="mean")
    assert {t["dtype"] for t in plan_of(recipe)["tensors"]} == {"bfloat16"}
    out = models.root.parent / "out"
    assert run("merge", recipe, out, "--quiet").code == 0
    read = [read_model(models.root / label) for label in models.labels]
    for name, array in read_model(out).items():
        exact = np.mean([values[name].astype(np.float64) for values in read], axis=0)
        np.testing.assert_allclose(array.astype(np.float64), exact, rtol=2**-8, atol=1e-6)


def test_fault_44_fp8_is_read_with_its_scales_and_written_as_bf16(models):
    seen = write_fp8(models.root / "m1", models.tunes[1])
    recipe = models.recipe(models=[{"model": "./m1"}], dtype="float32")
    out = models.root.parent / "out"
    assert run("merge", recipe, out, "--quiet").code == 0
    for name, array in read_model(out).items():
        np.testing.assert_allclose(array, seen[name], rtol=1e-5, atol=1e-7)
    seen = write_fp8(models.root / "base", models.base)
    plan = plan_of(models.recipe())
    assert {t["dtype"] for t in plan["tensors"]} == {"bfloat16"}
    assert {t["name"] for t in plan["tensors"]} == set(models.base)
    second = models.root.parent / "second"
    assert run("merge", models.recipe(), second, "--quiet").code == 0
    assert "quantization_config" not in json.loads((second / "config.json").read_text())


def test_fault_44_fp8_without_scales(models):
    write_fp8(models.root / "m1", models.tunes[1], scaled=False)
    assert_refused(1, models.recipe(), "m1", "o_proj.weight", "no scale")


@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes", "tensors only"])
def test_fault_44_packed_weights(models, kind):
    arrays = dict(stored(models.tunes[1], "bfloat16"))
    arrays.pop(Q)
    arrays[Q.replace("weight", "qweight")] = np.zeros((2, 16), np.int32)
    arrays[Q.replace("weight", "qzeros")] = np.zeros((2, 2), np.int32)
    settings = config() if kind == "tensors only" else config(quantization_config={"quant_method": kind})
    write_model(models.root / "m1", arrays, settings=settings)
    assert_refused(1, models.recipe(), "m1", kind if kind != "tensors only" else "qweight")


def test_fault_44_integers_come_from_the_base(models):
    steps = np.arange(5, dtype=np.int64)
    for i, (label, arrays) in enumerate(
        zip(("base", *models.labels), (models.base, *models.tunes), strict=True)
    ):
        rewrite(models, label, arrays | {"steps": steps + i, "mask": np.array([True, False])})
    out = models.root.parent / "out"
    assert run("merge", models.recipe(), out, "--quiet").code == 0
    values = read_model(out)
    assert values["steps"].tolist() == steps.tolist()
    assert values["mask"].tolist() == [True, False]


def test_fault_44_integer_against_float(models):
    rewrite(models, "m1", dict(models.tunes[1]) | {NORM: np.ones(16, np.int32)})
    assert_refused(1, models.recipe(), NORM, "int32", "m1")


def test_fault_50_another_family(models):
    rewrite(models, "m1", {n.replace("model.layers", "transformer.h"): a for n, a in models.tunes[1].items()})
    assert_refused(1, models.recipe(), "m1 lacks 18 tensors", "m1 has 18 tensors")


def test_fault_50_unequal_numbers_of_experts(models):
    def experts(count):
        names = [f"model.layers.0.mlp.experts.{i}.w1.weight" for i in range(count)]
        return dict.fromkeys(names, np.ones((4, 4), np.float32))

    for label, arrays in zip(("base", *models.labels), (models.base, *models.tunes), strict=True):
        rewrite(models, label, arrays | experts(6 if label == "m1" else 4))
    assert_refused(1, models.recipe(), "m1", "experts.4.w1", "experts.5.w1")


def test_fault_50_stacked_experts_of_other_counts(models):
    for label, arrays in zip(("base", *models.labels), (models.base, *models.tunes), strict=True):
        stack = np.ones((6 if label == "m1" else 4, 4, 4), np.float32)
        rewrite(models, label, arrays | {"model.layers.0.mlp.experts.gate_up_proj": stack})
    assert_refused(1, models.recipe(), "m1", "experts.gate_up_proj", "[4, 4, 4]", "[6, 4, 4]")


def test_every_misfit_of_every_model_is_listed(models):
    rewrite(models, "m0", {n: a for n, a in models.tunes[0].items() if n != NORM})
    rewrite(models, "m1", tuned(draw(0, hidden=20), 1))
    assert assert_refused(1, models.recipe(), "m0 lacks 1 tensors", "[20, 20]").code == 1
