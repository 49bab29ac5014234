"""Extraction: mergekit's golden outputs, what goes where, what is refused, and the same bytes on any machine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from deltasmith import api
from deltasmith.codecs.protocol import Cell
from deltasmith.engine.workers import Stop
from deltasmith.errors import DeltasmithError, InterruptedRunError, RecipeError, RefusedError
from deltasmith.formats.adapter import open_adapter
from deltasmith.formats.adapter_writer import lora_factors
from deltasmith.formats.opening import open_model
from deltasmith.packing.extraction import Wish, extract_lora
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from golden_cases import assert_close, cases
from models import (
    config,
    draw,
    family,
    neighbours,
    tokenizer,
    tree,
    tuned,
    write_adapter,
    write_model,
    write_recipe,
)

FULL = Wish(rank=99, dtype="float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("extraction"), experts=1, dtype="float32")


def read(checkpoint, name):
    out = np.empty(checkpoint.specs[name].size, np.float32)
    checkpoint.read(name, 0, out)
    return out


def reached(base, adapter, names):
    """Return base plus adapter, as our own reader sees it."""
    ground = open_model(str(base)).checkpoint
    column = open_adapter(adapter).bind(ground.specs)
    found = {}
    for name in names:
        values = read(ground, name)
        if name in column.specs:
            values = read(column, name) + (values if column.is_delta(name) else 0)
        found[name] = values.reshape(ground.specs[name].shape)
    return found


def factors(folder, module):
    stored = load_file(folder / "adapter_model.safetensors")
    return tuple(stored[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")


@pytest.mark.parametrize("case", cases("lora_extract"), ids=str)
def test_golden(case):
    given = case.arrays
    wish = Wish(
        max_rank=case.params["max_rank"],
        sv_epsilon=case.params["sv_epsilon"],
        distribute_scale=case.params["distribute_scale"],
        dtype="float32",
    )
    delta = given["delta_0"].astype(np.float32)
    cell = Cell(Spec("w.weight", delta.shape, DTYPES["float32"]))
    arrays = wish.codec().encode(delta, cell)
    a, b = lora_factors(arrays["left"], arrays["right"], "linear", delta.shape)
    assert a.shape[0] == int(given["expected_rank"])
    assert_close(b.astype(np.float64) @ a, given["expected_BA"], case)
    assert_close(np.linalg.norm(a, axis=1), given["expected_A_row_norms"], case)
    assert_close(np.linalg.norm(b, axis=0), given["expected_B_col_norms"], case)
    products = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=0)
    assert_close(products, given["expected_singular_values"][: len(products)], case)


def test_the_whole_model_comes_back_at_full_rank(models, tmp_path):
    result = extract_lora(models.root / "base", models.root / "m0", tmp_path / "out", FULL)
    found = reached(models.root / "base", tmp_path / "out", models.base)
    assert max(np.abs(found[n] - models.tunes[0][n]).max() for n in found) < 1e-7
    assert result.relative_error < 1e-5
    assert len(result.pairs) == 14
    assert set(result.whole) == {n for n in models.base if "norm" in n or "embed" in n or "head" in n}
    kinds = {row.kind: row for row in result.kinds()}
    assert kinds["model.layers.*.mlp.up_proj.weight"].ranks == (16, 16)
    assert kinds["model.layers.*.mlp.up_proj.weight"].tensors == 2
    assert api.verify(tmp_path / "out").ok
    assert str(models.root) not in (tmp_path / "out" / "manifest.json").read_text()
    assert neighbours(tmp_path / "out") == []


@pytest.mark.parametrize(
    "wish", [Wish(rank=3), Wish(error=0.5), Wish(energy=0.6, dtype="float16"), Wish(max_rank=2)]
)
def test_the_error_told_is_the_error_made(models, tmp_path, wish):
    result = extract_lora(models.root / "base", models.root / "m0", tmp_path / "out", wish)
    found = reached(models.root / "base", tmp_path / "out", result.pairs)
    for name, pair in result.pairs.items():
        delta = models.tunes[0][name].astype(np.float64) - models.base[name]
        missed = np.linalg.norm(found[name] - models.tunes[0][name].astype(np.float64))
        told = (pair.squared_error / pair.squared_norm) ** 0.5
        assert missed / np.linalg.norm(delta) == pytest.approx(told, rel=1e-2)
        spectrum = np.linalg.svd(delta, compute_uv=False)
        least = np.sqrt((spectrum[pair.rank :] ** 2).sum() / (spectrum**2).sum())
        assert least <= told * (1 + 1e-4)
        assert told <= least + 3 * 2.0**-8
        if wish.rank or wish == Wish(max_rank=2):
            assert pair.rank == (wish.rank or 2)
        else:
            assert least <= (wish.error or 0.4**0.5)


def test_a_given_rank_is_not_cut_by_the_default_limit():
    assert Wish(rank=300).codec().target.most((400, 400)) == 300
    assert Wish().codec().target.most((400, 400)) == 128
    assert Wish(error=0.1).codec().target.most((400, 400)) == 128


def test_all_of_the_scale_goes_to_a(models, tmp_path):
    extract_lora(
        models.root / "base",
        models.root / "m0",
        tmp_path / "out",
        Wish(rank=3, distribute_scale=False, dtype="float32", embed_lora=True),
    )
    for module in ("model.layers.0.mlp.up_proj", "lm_head"):
        a, b = factors(tmp_path / "out", module)
        assert np.allclose(b.T @ b, np.eye(3), atol=1e-5)
        assert np.linalg.norm(a, axis=1)[0] > 1.01 * np.linalg.norm(a, axis=1)[1]
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    b = stored["base_model.model.model.embed_tokens.lora_embedding_B"]
    assert b.shape == (16, 3)
    assert np.allclose(b.T @ b, np.eye(3), atol=1e-5)


def test_what_did_not_change_takes_no_bytes(models, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    write_model(tmp_path / "tuned", {**models.base, name: models.tunes[0][name]}, "float32")
    result = extract_lora(models.root / "base", tmp_path / "tuned", tmp_path / "out", Wish(rank=2))
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    module = "base_model.model.model.layers.1.mlp.up_proj"
    assert sorted(stored) == [f"{module}.lora_A.weight", f"{module}.lora_B.weight"]
    assert result.whole == ()
    assert {n for n, p in result.pairs.items() if p.rank} == {name}
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] is None


def test_a_model_that_does_not_differ(models, tmp_path):
    write_model(tmp_path / "same", models.base, "float32")
    with pytest.raises(RefusedError, match="does not differ from the base"):
        extract_lora(models.root / "base", tmp_path / "same", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert neighbours(tmp_path / "out") == []


def test_excluded_tensors_are_kept_whole_and_dropped_ones_are_told(models, tmp_path):
    wish = Wish(
        rank=99, dtype="float32", include=("*.mlp.*",), exclude=("*.up_proj.*",), drop=("*norm*", "lm_head*")
    )
    result = extract_lora(models.root / "base", models.root / "m0", tmp_path / "out", wish)
    assert {n.split(".")[-2] for n in result.pairs} == {"gate_proj", "down_proj"}
    assert {n.split(".")[-2] for n in result.dropped} == {
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
        "lm_head",
    }
    found = reached(models.root / "base", tmp_path / "out", models.base)
    for name, values in found.items():
        wanted = models.base if name in result.dropped else models.tunes[0]
        assert np.abs(values - wanted[name]).max() < 1e-7
    assert any("left out, as asked" in note for note in result.notes)


def test_a_tied_embedding_comes_once(tmp_path):
    base = {n: a for n, a in draw(0).items() if n != "lm_head.weight"}
    settings = config(tie_word_embeddings=True)
    write_model(tmp_path / "base", base, "float32", settings=settings)
    moved = tuned(base, 1)
    moved["lm_head.weight"] = moved["model.embed_tokens.weight"]
    write_model(tmp_path / "tuned", moved, "float32", settings=settings)
    result = extract_lora(
        tmp_path / "base",
        tmp_path / "tuned",
        tmp_path / "out",
        Wish(rank=99, dtype="float32", embed_lora=True),
    )
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert [n for n in stored if "embed" in n or "head" in n] == [
        "base_model.model.model.embed_tokens.weight"
    ]
    assert any("replace the base's while loaded" in note for note in result.notes)
    found = reached(tmp_path / "base", tmp_path / "out", base)
    assert max(np.abs(found[n] - moved[n]).max() for n in base) < 1e-7


def test_a_vocabulary_of_another_size_or_order_is_refused_at_once(models, tmp_path, monkeypatch):
    monkeypatch.setattr("deltasmith.packing.extraction_plan.Extraction.decide", None)
    write_model(tmp_path / "longer", draw(1, vocab=41), "float32", tokens=tokenizer(41))
    with pytest.raises(
        RefusedError, match=r"lm_head.weight is \[41, 16\] in the model and \[40, 16\] in the base: their voc"
    ):
        extract_lora(models.root / "base", tmp_path / "longer", tmp_path / "out")
    write_model(tmp_path / "shifted", models.tunes[0], "float32", tokens=tokenizer(shift=1))
    with pytest.raises(RefusedError, match="40 tokens have different ids in base and the model"):
        extract_lora(models.root / "base", tmp_path / "shifted", tmp_path / "out")


def test_tensors_that_only_one_has_are_listed(models, tmp_path):
    write_model(
        tmp_path / "more", {**models.tunes[0], "value_head.weight": np.ones((1, 16), np.float32)}, "float32"
    )
    with pytest.raises(RefusedError, match=r"1 tensors that the base lacks \(value_head.weight\)"):
        extract_lora(models.root / "base", tmp_path / "more", tmp_path / "out")
    extract_lora(
        models.root / "base", tmp_path / "more", tmp_path / "out", Wish(rank=1, drop=("value_head*",))
    )
    fewer = {n: a for n, a in models.tunes[0].items() if "up_proj" not in n}
    write_model(tmp_path / "fewer", fewer, "float32")
    with pytest.raises(RefusedError, match="2 tensors that the base has and the model lacks"):
        extract_lora(models.root / "base", tmp_path / "fewer", tmp_path / "out2")


def test_a_parameter_that_no_module_holds(models, tmp_path):
    write_model(tmp_path / "base", {**models.base, "scale": np.ones(3, np.float32)}, "float32")
    write_model(tmp_path / "tuned", {**models.tunes[0], "scale": np.full(3, 2, np.float32)}, "float32")
    with pytest.raises(RefusedError, match=r"1 changed tensors belong to no module, .* \(scale\)"):
        extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    result = extract_lora(
        tmp_path / "base", tmp_path / "tuned", tmp_path / "out", Wish(rank=1, drop=("scale",))
    )
    assert result.dropped == ("scale",)


def test_threads_change_no_byte(models, tmp_path):
    for threads in (1, 3):
        extract_lora(
            models.root / "base",
            models.root / "m0",
            tmp_path / str(threads),
            Wish(error=0.5),
            threads=threads,
        )
        (tmp_path / str(threads) / "README.md").unlink()  # it names the folder
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


def test_a_run_that_is_stopped_leaves_nothing(models, tmp_path):
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError):
        extract_lora(models.root / "base", models.root / "m0", tmp_path / "out", stop=stop)
    assert neighbours(tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite(models, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    bad = models.tunes[0][name].copy()
    bad[1, 2] = np.nan
    write_model(tmp_path / "bad", {**models.tunes[0], name: bad}, "float32")
    with pytest.raises(RefusedError, match="not finite"):
        extract_lora(models.root / "base", tmp_path / "bad", tmp_path / "out")


def test_an_output_within_an_input_is_refused(models):
    with pytest.raises(RefusedError, match="lies inside the input"):
        extract_lora(models.root / "base", models.root / "m0", models.root / "m0" / "out")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(rank=2, error=0.1), "give one of rank, error and energy"),
        (Wish(error=2.0), "error: Input should be less than 1"),
        (Wish(rank=0), "rank: Input should be greater than or equal to 1"),
        (Wish(sv_epsilon=-1.0), "floor: Input should be"),
        (Wish(dtype="int8"), "dtype: Input should be"),
        (Wish(drop=("nothing*",)), "no tensor matches 'nothing*'"),
    ],
)
def test_wishes_that_make_no_sense(models, tmp_path, wish, words):
    with pytest.raises(RecipeError) as caught:
        extract_lora(models.root / "base", models.root / "m0", tmp_path / "out", wish)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_budget_too_small_is_named(models, tmp_path):
    with pytest.raises(DeltasmithError, match="give --memory") as caught:
        extract_lora(models.root / "base", models.root / "m0", tmp_path / "out", memory=200 << 20)
    assert caught.value.exit_code == 4


def test_a_recipe_is_extracted_like_the_model_it_makes(models, tmp_path):
    recipe = models.recipe("half.yaml", scale=0.5, dtype="float32")
    result = extract_lora(models.root / "base", recipe, tmp_path / "out", FULL)
    found = reached(models.root / "base", tmp_path / "out", models.base)
    for name, values in found.items():
        assert np.allclose(
            values, (models.base[name].astype(np.float64) + models.tunes[0][name]) / 2, atol=1e-6
        )
    assert len(result.pairs) == 14


def test_an_adapter_can_be_compressed(models, tmp_path):
    write_adapter(tmp_path / "lora", models.base, 3, rank=4)
    result = extract_lora(models.root / "base", tmp_path / "lora", tmp_path / "out", Wish(rank=1))
    assert {p.rank for n, p in result.pairs.items() if "q_proj" in n} == {1}
    assert {p.rank for n, p in result.pairs.items() if "up_proj" in n} == {0}


def test_adapters_that_are_only_summed_are_merged_by_their_factors(models, tmp_path):
    deltas = [write_adapter(models.root / f"lora{i}", models.base, i, rank=2) for i in range(2)]
    entries = [{"model": f"./lora{i}", "weight": w} for i, w in enumerate((1.0, 0.25))]
    recipe = write_recipe(models.root / "sum.yaml", {"base": "./base", "models": entries, "scale": 0.5})
    result = extract_lora(models.root / "base", recipe, tmp_path / "out", Wish(dtype="float32"))
    assert any("merged by their factors, exactly" in note for note in result.notes)
    found = reached(models.root / "base", tmp_path / "out", deltas[0])
    for name in deltas[0]:
        wanted = models.base[name] + 0.5 * (deltas[0][name] + 0.25 * deltas[1][name])
        assert np.allclose(found[name], wanted, atol=1e-7)
    assert {p.rank for p in result.pairs.values()} == {4}
    assert not (tmp_path / "dense").exists()
    for change in ({"merge": "elect"}, {"where": "*.layers.0.*"}, {"merge": "mean"}):
        other = write_recipe(models.root / "other.yaml", {"base": "./base", "models": entries, **change})
        dense = extract_lora(models.root / "base", other, tmp_path / "dense", Wish(rank=2), overwrite=True)
        assert not any("by their factors" in note for note in dense.notes)
