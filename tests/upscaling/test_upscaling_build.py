"""Writing a mixture: what is read, kept, refused, resumed; and what evaluation makes of it."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from safetensors.numpy import load_file, save_file

from deltasmith import api
from deltasmith.engine.workers import Stop
from deltasmith.errors import (
    DamagedInputError,
    InterruptedRunError,
    MissingExtraError,
    RecipeError,
    RefusedError,
)
from deltasmith.evaluate.language import Continuation
from deltasmith.evaluate.models.opening import open_language_model
from deltasmith.formats.output import Output
from deltasmith.lab import family_folder
from deltasmith.packing.single import pack
from deltasmith.upscaling import build
from deltasmith.upscaling.build import upscale
from models import draw, neighbours, read_model, tree, tuned, write_adapter, write_fp8, write_model

pytestmark = pytest.mark.filterwarnings("default:::torch", "default:::transformers")

SMALL = {"router_rank": 4, "expert_rank": 8}


@pytest.fixture
def made(tmp_path):
    """A base and two fine-tunes, every tensor of which differs."""
    base = draw(0)
    write_model(tmp_path / "base", base, "float32", shards=2)
    for i in range(2):
        write_model(tmp_path / f"m{i}", tuned(base, i), "float32")
    return tmp_path


def both(root, **options):
    return upscale(root / "base", [root / "m0", root / "m1"], root / "out", **{**SMALL, **options})


def test_what_is_written(made):
    result = both(made)
    got, base = read_model(made / "out"), read_model(made / "base")
    assert all(got[n].tobytes() == a.tobytes() for n, a in base.items())
    added = sorted(set(got) - set(base))
    assert len(added) == 14 * 3
    assert result.linears == 14
    assert result.parameters == sum(a.size for a in got.values())
    assert result.base_parameters == sum(a.size for a in base.values())
    assert result.experts == ("m0", "m1")
    up = "model.layers.0.mlp.up_proj"
    assert [got[f"{up}.smile_{n}"].shape for n in ("gate", "svh", "u")] == [(8, 16), (16, 16), (24, 16)]
    delta = read_model(made / "m1")[f"{up}.weight"] - base[f"{up}.weight"]
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    kept = got[f"{up}.smile_u"][:, 8:] @ got[f"{up}.smile_svh"][8:]
    np.testing.assert_allclose(kept, (u[:, :8] * s[:8]) @ vt[:8], atol=1e-6)
    assert api.verify(made / "out").ok
    assert (made / "out" / "tokenizer.json").read_bytes() == (made / "base" / "tokenizer.json").read_bytes()
    manifest = json.loads((made / "out" / "manifest.json").read_text())
    assert manifest["lineage"] == {"base": "base", "merge": "upscale:smile", "parents": ["m0", "m1"]}
    assert manifest["tensors"][f"{up}.weight"]["from"] == "base"
    assert manifest["tensors"][f"{up}.smile_u"]["from"] == "merged"
    card = (made / "out" / "README.md").read_text()
    assert "merge upscale:smile" in card
    assert "| m1 | m1 | expert |" in card
    assert "expert_rank: 8" in card
    assert card.index("import deltasmith.upscaling.auto\n") < card.index("from_pretrained(")
    for name in ("manifest.json", "README.md"):
        assert str(made) not in (made / "out" / name).read_text()


def test_the_same_bytes_again(made):
    both(made)
    first = tree(made / "out")
    both(made, overwrite=True)
    assert tree(made / "out") == first


def test_what_is_left_out_is_said(made):
    notes = both(made).notes
    for note, label in zip(notes, ("m0", "m1"), strict=False):
        assert note == (
            "7 tensors that are no upscaled linears (lm_head.weight, …) were changed by "
            f"{label}; the base's are kept"
        )


def test_one_tensor_that_is_left_out_is_said_in_the_singular(made):
    base = draw(0)
    moved = tuned(base, 0)
    write_model(
        made / "m0",
        {
            n: moved[n] if "_proj" in n or n.endswith("0.input_layernorm.weight") else a
            for n, a in base.items()
        },
        "float32",
    )
    kept = "1 tensor that is no upscaled linear (model.layers.0.input_layernorm.weight) was changed by m0;"
    assert upscale(made / "base", [made / "m0"], made / "out", **SMALL).notes[0] == (
        f"{kept} the base's is kept"
    )
    twin = upscale(made / "base", [made / "m0"], made / "twin", preset="twin", where="*_proj*", router_rank=4)
    said = "1 tensor outside what is upscaled (model.layers.0.input_layernorm.weight) was changed by m0;"
    assert twin.notes[0] == f"{said} only the part in the shared expert is kept"


def test_where(made):
    result = both(made, where="*.mlp.*")
    assert result.linears == 6
    linears = json.loads((made / "out" / "config.json").read_text())["smile"]["linears"]
    assert linears[0] == "model.layers.0.mlp.down_proj"
    assert all(".mlp." in name for name in linears)
    with pytest.raises(RecipeError, match=r"nothing to upscale: '\*.moe.\*' matches none of 14 linears"):
        both(made, where="*.moe.*")


def test_linears_that_nobody_changed_stay(made):
    base = draw(0)
    same = {n: a for n, a in base.items() if ".self_attn." in n}
    for i in range(2):
        write_model(made / f"m{i}", tuned(base, i) | same, "float32")
    same["model.layers.1.self_attn.q_proj.weight"] = same["model.layers.1.self_attn.q_proj.weight"] + 2e-9
    write_model(made / "m1", tuned(base, 1) | same, "float32")
    result = both(made)
    assert result.linears == 6
    assert result.notes[0] == (
        "8 linears stay as in the base (model.layers.0.self_attn.k_proj.weight, …): no expert changed them"
    )
    model = open_torch(made / "out")
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    with pytest.raises(RefusedError, match="no expert differs from the base"):
        upscale(made / "base", [made / "base"], made / "none", **SMALL)


def open_torch(folder):
    importlib.import_module("deltasmith.upscaling.auto")
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_an_adapter_is_an_expert(made):
    dense = write_adapter(made / "lora", draw(0), 3, rank=2)
    result = upscale(made / "base", [made / "lora"], made / "out", router_rank=2, expert_rank=4)
    assert result.linears == 4
    got = read_model(made / "out")
    for name, delta in dense.items():
        module = name.removesuffix(".weight")
        np.testing.assert_allclose(got[f"{module}.smile_u"] @ got[f"{module}.smile_svh"], delta, atol=1e-6)


def test_a_packed_delta_is_an_expert(made):
    pack(made / "base", made / "m0", made / "packed", codec="lossless")
    upscale(made / "base", [made / "m0"], made / "whole", **SMALL)
    upscale(made / "base", [made / "packed"], made / "out", **SMALL)
    wanted = (made / "whole" / "model.safetensors").read_bytes()
    assert (made / "out" / "model.safetensors").read_bytes() == wanted
    write_model(made / "other", draw(7), "float32")
    with pytest.raises(DamagedInputError, match="this is not the base it was packed against"):
        upscale(made / "other", [made / "packed"], made / "never", **SMALL)


def test_a_quantised_base_is_written_as_what_it_stands_for(tmp_path):
    seen = write_fp8(tmp_path / "base", draw(0))
    write_model(tmp_path / "m0", tuned(seen, 0))
    upscale(tmp_path / "base", [tmp_path / "m0"], tmp_path / "out", router_rank=2, expert_rank=4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config["base_config"]
    name = "model.layers.0.mlp.up_proj.weight"
    got = read_model(tmp_path / "out")[name].astype(np.float32)
    np.testing.assert_allclose(got, seen[name], rtol=2**-8)


def test_twin(made):
    result = both(made, preset="twin", density=1.0)
    got, base = read_model(made / "out"), read_model(made / "base")
    experts = [read_model(made / f"m{i}") for i in range(2)]
    for name in base:
        shared = base[name] + np.float32(0.3) * sum(expert[name] - base[name] for expert in experts)
        np.testing.assert_allclose(got[name], shared, atol=1e-6)
    model = open_torch(made / "out")
    assert model._mixture.top_k == 2
    model.set_expert_weights({"m1": 1})
    name = "model.layers.1.mlp.down_proj"
    x = torch.randn(3, 24)
    torch.testing.assert_close(
        model.get_submodule(name)(x), x @ torch.from_numpy(experts[1][f"{name}.weight"]).T, atol=1e-5, rtol=0
    )
    assert result.notes == (
        "6 embeddings and norms have no gate: they are mixed only by given weights",
        "no input states a licence, so the card states none",
    )
    manifest = json.loads((made / "out" / "manifest.json").read_text())
    assert manifest["recipe"]["upscale"]["shared_scale"] == 0.3
    assert {t["from"] for t in manifest["tensors"].values()} == {"merged"}


def test_twin_density(made):
    both(made, preset="twin", density=0.25)
    got = read_model(made / "out")
    assert got["model.layers.0.mlp.up_proj.smile_u"].shape == (24, 2 * 4)


def test_in_bfloat16_twin_experts_are_relative_to_what_was_written(tmp_path):
    base = draw(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "m0", tuned(base, 0))
    upscale(tmp_path / "base", [tmp_path / "m0"], tmp_path / "out", preset="twin", density=1.0)
    got, expert = read_model(tmp_path / "out"), read_model(tmp_path / "m0")
    name = "model.layers.0.mlp.up_proj"
    u, svh, shared = (got[f"{name}.{n}"].astype(np.float64) for n in ("smile_u", "smile_svh", "weight"))
    error = np.abs(shared + u @ svh - expert[f"{name}.weight"].astype(np.float64)).max()
    assert error < 2e-4  # the factors' own rounding; relative to the shared expert before rounding it is 1e-3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"router_rank": 17, "where": "*.1.mlp.up_proj.weight"},
            RefusedError,
            "--router-rank 17 is more than the 16 directions of model.layers.1.mlp.up_proj.weight (24 x 16);"
            " use a smaller rank, or leave that linear out by --where",
        ),
        ({"router_rank": 0}, RecipeError, "--router-rank is 0"),
        ({"expert_rank": 0}, RecipeError, "--expert-rank is 0"),
        ({"top_k": 3}, RecipeError, "--top-k is 3, and there are 2 experts"),
        ({"preset": "moe"}, RecipeError, "there is no preset 'moe'; use smile or twin"),
        ({"labels": ["a"]}, RecipeError, "1 labels for 2 experts"),
        ({"labels": ["a", "a"]}, RecipeError, "2 labels for 2 experts; give each its own label"),
        ({"weights": {"m1": float("nan")}}, RecipeError, "the weight of m1 is nan; give finite weights"),
        ({"weights": {"x": 1}}, RecipeError, "no expert is labelled 'x'; use one of: m0, m1"),
    ],
)
def test_numbers_that_are_refused_before_anything_is_written(made, options, error, words):
    before = tree(made)
    with pytest.raises(error) as caught:
        both(made, **options)
    assert words in str(caught.value)
    assert tree(made) == before


def test_models_that_do_not_fit(made):
    other = draw(0, vocab=48)
    write_model(made / "m1", other, "float32")
    with pytest.raises(RefusedError, match=r"lm_head.weight is \[40, 16\] in the base and \[48, 16\] in m1"):
        both(made)
    write_model(made / "m1", {n: a for n, a in draw(0).items() if "layers.1" not in n}, "float32")
    with pytest.raises(RefusedError, match="m1 lacks 9 tensors of the base"):
        both(made)
    write_model(made / "m1", draw(0, layers=3), "float32")
    with pytest.raises(RefusedError, match="m1 has 9 tensors that the base lacks"):
        both(made)
    config = json.loads((made / "m1" / "config.json").read_text()) | {"model_type": "qwen2"}
    (made / "m1" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="m1 is of another architecture: qwen2, and the base is llama"):
        both(made)
    assert not (made / "out").exists()


def test_a_base_must_be_a_model_folder(made):
    with pytest.raises(RefusedError, match="the base of a mixture is a model folder"):
        upscale(made / "m1" / "model.safetensors", [made / "m0"], made / "out")
    pack(made / "base", made / "m0", made / "packed", codec="lossless")
    with pytest.raises(
        RefusedError, match=r"a packed delta cannot be the base of a mixture in .*; unpack it"
    ):
        upscale(made / "packed", [made / "m1"], made / "out", **SMALL)


def test_an_architecture_that_transformers_does_not_know(made):
    for name in ("base", "m0", "m1"):
        config = json.loads((made / name / "config.json").read_text()) | {"model_type": "nothing"}
        (made / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedInputError, match="transformers cannot build its architecture"):
        both(made)


def test_config_and_files_that_disagree(made):
    config = json.loads((made / "base" / "config.json").read_text()) | {"intermediate_size": 32}
    (made / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedInputError, match=r"is \[16, 24\] in the files and \[16, 32\] by config.json"):
        both(made)


def test_values_that_are_not_finite(made):
    arrays = load_file(made / "m0" / "model.safetensors")
    arrays["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
    save_file(arrays, made / "m0" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefusedError, match=r"model\.layers\.1\.mlp\.up_proj\.weight of m0"):
        both(made)
    assert not (made / "out").exists()
    assert neighbours(made / "out") == []


def test_an_output_that_exists(made):
    shutil.copytree(made / "m0", made / "out")
    before = tree(made / "out")
    with pytest.raises(RefusedError, match="the output exists and is not empty"):
        both(made)
    assert tree(made / "out") == before
    both(made, overwrite=True)
    with pytest.raises(RefusedError, match="the output holds the input"):
        upscale(made / "base", [made / "m0"], made / "m0", **SMALL, overwrite=True)


def test_an_interrupted_run_resumes(made, monkeypatch):
    both(made)
    whole = tree(made / "out")
    shutil.rmtree(made / "out")
    stop, counted, finish = Stop(), [], Output.finish

    def count(self, name, digest):
        finish(self, name, digest)
        counted.append(name)
        if len(counted) == 30:
            stop.ask()

    monkeypatch.setattr(Output, "finish", count)
    with pytest.raises(InterruptedRunError):
        both(made, stop=stop)
    assert not (made / "out").exists()
    assert neighbours(made / "out") != []
    both(made)
    assert tree(made / "out") == whole
    assert len(set(counted)) == 21 + 42
    assert len(counted) <= 21 + 42 + 2  # only the linear in hand is computed again
    assert neighbours(made / "out") == []


def test_without_transformers(made, monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(build.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError) as caught:
        both(made)
    assert str(caught.value) == (
        "upscaling needs torch and transformers (No module named 'torch'); pip install \"deltasmith[hf]\""
    )


def test_evaluation_opens_it(tmp_path):
    folder = family_folder()
    experts = [folder / "small" / name for name in ("math", "code")]
    upscale(folder / "base", experts, tmp_path / "out", router_rank=8, expert_rank=16)
    opened = open_language_model(tmp_path / "out")
    asked = [Continuation("Of 43 books, Finn sells 26. How many are left?\n", "43-26=17", ends=True)]
    mixed = opened.model.likelihoods(asked)[0].logprob
    base = open_language_model(folder / "base").model.likelihoods(asked)[0].logprob
    assert mixed > base + 1
    with pytest.raises(MissingExtraError, match="a mixture of experts is computed by torch and transformers"):
        open_language_model(tmp_path / "out", runtime="numpy")
