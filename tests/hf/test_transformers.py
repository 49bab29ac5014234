"""What transformers saves is merged, and what is merged transformers loads; needs the `hf` extra, else skipped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models import read_model, run, tree, write_recipe

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")  # other people's warnings are theirs

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": ("LlamaConfig", SIZES),
    "qwen2": ("Qwen2Config", SIZES),
    "mistral": ("MistralConfig", SIZES),
    "gpt2": ("GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def save_family(root, name, dtype, *, tied=False, shard="5GB"):
    """Save a small model with random weights, and two copies with every weight moved."""
    kind, sizes = FAMILIES[name]
    config = getattr(transformers, kind)(**sizes, tie_word_embeddings=tied, pad_token_id=0, eos_token_id=None)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(root / "base", max_shard_size=shard)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for label in ("math", "code"):
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.copy_(start[parameter_name] + 0.02 * torch.randn_like(start[parameter_name]))
        model.save_pretrained(root / label, max_shard_size=shard)
    return root


def merge(root, out, *options, **fields):
    entries = [{"model": f"./{label}", "label": label} for label in ("math", "code")]
    recipe = write_recipe(root / "r.yaml", {"base": "./base", "models": entries} | fields)
    before = {label: tree(root / label) for label in ("base", "math", "code")}
    result = run("merge", recipe, out, "--quiet", *options)
    assert result.code == 0, result.err
    assert run("verify", out).code == 0
    assert {label: tree(root / label) for label in ("base", "math", "code")} == before


def load(folder):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="auto"
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], report
    return model.eval()


def generate(model):
    prompt = torch.tensor([[3, 14, 15, 92 % 96]])
    out = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert out.shape == (1, 9)
    assert torch.isfinite(model(prompt).logits).all()
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_della_of_a_real_model_loads_and_generates(tmp_path, name):
    root = save_family(tmp_path / "in", name, torch.bfloat16)
    merge(root, tmp_path / "out", preset="della", density=0.6)
    model = load(tmp_path / "out")
    generate(model)
    base = load(root / "base")
    assert set(model.state_dict()) == set(base.state_dict())
    moved = [n for n, p in model.state_dict().items() if not torch.equal(p, base.state_dict()[n])]
    assert moved


def test_a_sum_of_deltas_equals_float64(tmp_path):
    root = save_family(tmp_path / "in", "llama", torch.float32)
    merge(root, tmp_path / "out", scale=0.7)
    models = [load(root / label).state_dict() for label in ("base", "math", "code")]
    for name, value in load(tmp_path / "out").state_dict().items():
        base, math, code = (m[name].double() for m in models)
        torch.testing.assert_close(
            value.double(), base + 0.7 * ((math - base) + (code - base)), atol=1e-7, rtol=1e-6
        )


def test_a_sharded_output_loads_and_is_the_same(tmp_path):
    root = save_family(tmp_path / "in", "llama", torch.bfloat16)
    merge(root, tmp_path / "one", preset="ties")
    merge(root, tmp_path / "many", "--shard-size", "10K", preset="ties")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = load(tmp_path / "one").state_dict(), load(tmp_path / "many").state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)
    generate(load(tmp_path / "many"))


def test_sharded_inputs(tmp_path):
    root = save_family(tmp_path / "in", "llama", torch.bfloat16, shard="20KB")
    assert (root / "base" / "model.safetensors.index.json").exists()
    merge(root, tmp_path / "out", preset="dare", density=0.5)
    generate(load(tmp_path / "out"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tied_embeddings_stay_tied(tmp_path, name):
    root = save_family(tmp_path / "in", name, torch.bfloat16, tied=True)
    merge(root, tmp_path / "out", preset="ties")
    assert set(read_model(tmp_path / "out")) == set(read_model(root / "base"))
    assert "lm_head.weight" not in read_model(tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    generate(model)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_config_says_the_type_that_was_written(tmp_path, dtype):
    root = save_family(tmp_path / "in", "llama", torch.bfloat16)
    merge(root, tmp_path / "out", dtype=dtype)
    assert load(tmp_path / "out").dtype == getattr(torch, dtype)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.get("dtype", written.get("torch_dtype")) == dtype


def test_arithmetic_of_ties_on_a_tensor(tmp_path):
    root = save_family(tmp_path / "in", "llama", torch.float32)
    merge(root, tmp_path / "out", preset="ties", density=1.0)
    base, math, code = (read_model(root / label) for label in ("base", "math", "code"))
    for name, value in read_model(tmp_path / "out").items():
        deltas = np.stack([(m[name] - base[name]).astype(np.float64) for m in (math, code)])
        sign = np.sign(deltas.sum(axis=0))
        agree = np.sign(deltas) == sign
        wanted = (deltas * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
        np.testing.assert_allclose(value - base[name].astype(np.float64), wanted, atol=1e-6, err_msg=name)
