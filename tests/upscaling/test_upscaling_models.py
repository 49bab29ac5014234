"""Whole models: what transformers loads is what was upscaled, for every architecture, and it behaves as a model."""

from __future__ import annotations

import copy
import json
import shutil

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from safetensors.numpy import load_file, save_file
from tiny_architectures import LINEARS, MODELS, TOKENS, answer, everything, family, load

import deltasmith.upscaling.auto  # noqa: F401 - registers
from deltasmith.errors import RecipeError
from deltasmith.upscaling.build import upscale
from deltasmith.upscaling.linear import MixedConv1D, Mixture, SmileLinear
from deltasmith.upscaling.modelling import register
from deltasmith.upscaling.twins import MixedTiedHead, mixed_norm

pytestmark = pytest.mark.filterwarnings("default:::torch", "default:::transformers")
NOTES = (
    "no tokenizer files were found, so the output has none",
    "no input states a licence, so the card states none",
)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """Two Llama experts, their mixture's folder, and the models."""
    root = tmp_path_factory.mktemp("language")
    models = family(root, "llama", 2)
    upscale(root / "base", [root / "m0", root / "m1"], root / "out", router_rank=4, expert_rank=8)
    return root / "out", models


@pytest.mark.parametrize("kind", MODELS)
def test_one_expert_of_full_rank_is_the_expert(tmp_path, kind):
    base, expert = family(tmp_path, kind)
    result = upscale(tmp_path / "base", [tmp_path / "m0"], tmp_path / "out", router_rank=2, expert_rank=99)
    assert (result.linears, result.notes) == (LINEARS[kind], NOTES)
    model = load(kind, tmp_path / "out")
    assert isinstance(model, type(base))
    mixed = [m for m in model.modules() if isinstance(m, SmileLinear | MixedConv1D)]
    assert len(mixed) == LINEARS[kind]
    assert result.parameters == result.base_parameters + sum(
        p.numel() for m in mixed for n, p in m.named_parameters() if n.startswith("smile")
    )
    wanted = answer(kind, expert)
    torch.testing.assert_close(answer(kind, model), wanted, atol=2e-4, rtol=1e-4)
    assert (answer(kind, base) - wanted).abs().max() > 0.01


def test_generation_with_a_cache_says_the_same(language):
    model = load("llama", language[0])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(TOKENS, use_cache=True, **options)
    assert with_cache.shape == (2, 11)
    assert torch.equal(with_cache, model.generate(TOKENS, use_cache=False, **options))
    with torch.inference_mode():
        whole = model(with_cache).logits[:, -2].argmax(-1)
    assert torch.equal(whole, with_cache[:, -1])


def test_saved_by_transformers_it_is_the_same_model(language, tmp_path):
    folder, _ = language
    model = load("llama", folder)
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["model_type"] == "deltasmith_smile"
    assert config["base_config"]["model_type"] == "llama"
    assert config["base_config"]["architectures"] == ["LlamaForCausalLM"]
    assert "deltasmith_smile" not in config["base_config"]
    assert str(folder) not in json.dumps(config)
    assert config["smile"] == json.loads((folder / "config.json").read_text())["smile"]
    assert torch.equal(load("llama", tmp_path / "again")(TOKENS).logits, model(TOKENS).logits)
    with pytest.raises(ValueError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "hub", push_to_hub=True)


def test_other_auto_classes_find_the_body(language):
    whole = load("llama", language[0])
    body = transformers.AutoModel.from_pretrained(language[0])
    assert type(body).__name__ == "LlamaModel"
    assert torch.equal(body(TOKENS).last_hidden_state, whole.model(TOKENS).last_hidden_state)
    with pytest.raises(ValueError, match="AutoModelForImageClassification knows no class for LlamaConfig"):
        transformers.AutoModelForImageClassification.from_pretrained(language[0])


def test_config(language):
    register()  # a second time
    config = transformers.AutoConfig.from_pretrained(language[0], output_hidden_states=True)
    assert config.model_type == "deltasmith_smile"
    assert config.vocab_size == 40
    assert config.get_text_config().model_type == "llama"
    assert config.base.output_hidden_states
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert copy.deepcopy(config).base.vocab_size == 40
    assert not hasattr(config, "no_such_attribute")


def test_options_of_loading_reach_the_model(language):
    model = load("llama", language[0], dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu")
    assert model.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.smile_u.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_a_model_of_the_config_alone_is_its_base(language):
    config = transformers.AutoConfig.from_pretrained(language[0])
    model = transformers.AutoModelForCausalLM.from_config(config)
    module = model.model.layers[0].mlp.up_proj
    assert isinstance(module, SmileLinear)
    assert not module.smile_u.any()
    assert "experts=2 of rank 8" in repr(module)


def test_experts_that_the_files_lack_are_zero(language, tmp_path):
    folder, (base, *_) = language
    shutil.copytree(folder, tmp_path / "bare")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "smile" not in name}
    save_file(kept, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "bare", output_loading_info=True
    )
    assert len(report["missing_keys"]) == len(tensors) - len(kept)
    torch.testing.assert_close(model(TOKENS).logits, base(TOKENS).logits)


def test_weights_of_the_caller(language):
    folder, (base, first, _) = language
    model = load("llama", folder)
    assert model.expert_labels == ("m0", "m1")
    routed = model(TOKENS).logits
    model.set_expert_weights([0, 0])
    torch.testing.assert_close(model(TOKENS).logits, base(TOKENS).logits)
    model.set_expert_weights({"m0": 1})
    one = model(TOKENS).logits
    assert (one - first(TOKENS).logits).abs().max() < (base(TOKENS).logits - first(TOKENS).logits).abs().max()
    model.set_expert_weights(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    rows = model(TOKENS).logits
    torch.testing.assert_close(rows[0], base(TOKENS).logits[0])
    torch.testing.assert_close(rows[1], one[1])
    model.set_expert_weights(None)
    assert torch.equal(model(TOKENS).logits, routed)
    with pytest.raises(RecipeError, match="no expert is labelled 'm9'"):
        model.set_expert_weights({"m9": 1})
    with pytest.raises(ValueError, match="expected \\(rows, 2\\)"):
        model.set_expert_weights(torch.ones(2, 3))
    for number in (float("nan"), float("inf"), -float("inf"), 1e39):
        with pytest.raises(
            RecipeError, match=f"the weight of m1 is {number}; give finite weights".replace("+", ".")
        ):
            model.set_expert_weights({"m1": number})
        with pytest.raises(RecipeError, match="some of the weights are not finite"):
            model.set_expert_weights(torch.tensor([[1.0, number]]))
    assert torch.equal(model(TOKENS).logits, routed)  # none of them took effect


def test_a_copy_has_routing_of_its_own(language):
    model = load("llama", language[0])
    other = copy.deepcopy(model)
    before = other(TOKENS).logits
    model.set_expert_weights([0, 0])
    assert torch.equal(other(TOKENS).logits, before)
    mixtures = {id(m.mixture) for m in other.modules() if isinstance(m, SmileLinear)}
    assert mixtures == {id(other._mixture)}


def test_weights_in_the_config_are_used(tmp_path):
    base, expert = family(tmp_path, "llama")
    upscale(tmp_path / "base", [tmp_path / "m0"], tmp_path / "out", expert_rank=99, weights={"m0": 0.5})
    model = load("llama", tmp_path / "out")
    halfway = copy.deepcopy(base)
    with torch.no_grad():
        for ours, theirs in zip(halfway.parameters(), expert.parameters(), strict=True):
            ours.lerp_(theirs, 0.5)
    torch.testing.assert_close(model(TOKENS).logits, halfway(TOKENS).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_twin_with_all_triplets_and_one_expert_weighed_is_that_expert(tmp_path, kind):
    experts = family(tmp_path, kind, 2, everything)[1:]
    folders = [tmp_path / "m0", tmp_path / "m1"]
    result = upscale(tmp_path / "base", folders, tmp_path / "out", preset="twin", density=1.0, router_rank=2)
    assert not [note for note in result.notes if "changed" in note]
    model = load(kind, tmp_path / "out")
    for number, expert in enumerate(experts):
        model.set_expert_weights({f"m{number}": 1.0})
        torch.testing.assert_close(answer(kind, model), answer(kind, expert), atol=1e-3, rtol=1e-3)
    if kind != "clip":  # its answer compares every picture with every text
        model.set_expert_weights(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        rows = answer(kind, model)
        torch.testing.assert_close(rows[0], answer(kind, experts[1])[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(rows[1], answer(kind, experts[0])[1], atol=1e-3, rtol=1e-3)
    assert (answer(kind, experts[0]) - answer(kind, experts[1])).abs().max() > 0.05


def test_twin_generates_and_comes_back(tmp_path):
    expert = family(tmp_path, "qwen2", 1, everything)[1]
    upscale(tmp_path / "base", [tmp_path / "m0"], tmp_path / "out", preset="twin", density=1.0, router_rank=2)
    model = load("qwen2", tmp_path / "out")
    model.set_expert_weights([1.0])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, **options), expert.generate(TOKENS, **options))
    model.save_pretrained(tmp_path / "again")
    again = load("qwen2", tmp_path / "again")
    again.set_expert_weights([1.0])
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    other = copy.deepcopy(model)
    other.set_expert_weights([0.0])
    assert other.lm_head._embedding[0] is other.model.embed_tokens
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert not torch.equal(other(TOKENS).logits, model(TOKENS).logits)


def test_a_tied_head_that_the_files_hold_all_the_same(tmp_path):
    expert = family(tmp_path, "qwen2", 1, everything)[1]
    for name in ("base", "m0"):
        path = tmp_path / name / "model.safetensors"
        tensors = load_file(path)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        save_file(tensors, path, {"format": "pt"})
    upscale(tmp_path / "base", [tmp_path / "m0"], tmp_path / "out", preset="twin", density=1.0, router_rank=2)
    model = load("qwen2", tmp_path / "out")
    assert isinstance(model.lm_head, MixedTiedHead)
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "lm_head.smile" in name]
    model.set_expert_weights([1.0])
    torch.testing.assert_close(model(TOKENS).logits, expert(TOKENS).logits, atol=1e-3, rtol=1e-3)


def test_norms_that_multiply_by_one_plus_the_weight():
    class OneNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6))

        def forward(self, x):
            return x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + self.weight)

    norm, x = OneNorm(), torch.randn(2, 3, 6)
    mixed = mixed_norm(norm, Mixture(2))
    assert isinstance(mixed, OneNorm)
    torch.testing.assert_close(mixed(x), norm(x))
    with torch.no_grad():
        mixed.smile_weight.copy_(torch.randn(2, 6))
    torch.testing.assert_close(mixed(x), norm(x))  # the gates decide: the shared expert's
    mixed.mixture.weights = torch.tensor([[0.5, 0.0], [0.0, 2.0]])
    for row, weight in ((0, 0.5 * mixed.smile_weight[0]), (1, 2.0 * mixed.smile_weight[1])):
        wanted = x[row] * x[row].square().mean(-1, keepdim=True).rsqrt() * (1 + norm.weight + weight)
        torch.testing.assert_close(mixed(x)[row], wanted)
