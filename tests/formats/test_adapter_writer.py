"""Adapters as written: their names, their configuration, what PEFT and our own reader make of them."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deltasmith.codecs.protocol import Coded, Ending, Stream
from deltasmith.errors import RefusedError
from deltasmith.formats.adapter import open_adapter
from deltasmith.formats.adapter_names import Modules, task_type
from deltasmith.formats.adapter_writer import AdapterOutput, Origin, lora_factors
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from models import neighbours, shapes

RNG = np.random.default_rng(8)
TIED = {"model_type": "llama", "tie_word_embeddings": True}


def specs(table):
    return {n: Spec(n, tuple(s), DTYPES["float32"]) for n, s in table.items()}


LLAMA = specs(shapes())
GPT2 = specs(
    {
        "wte.weight": (40, 16),
        "wpe.weight": (32, 16),
        "h.0.ln_1.weight": (16,),
        "h.0.ln_1.bias": (16,),
        "h.0.attn.c_attn.weight": (16, 48),
        "h.0.attn.c_attn.bias": (48,),
        "h.0.attn.c_proj.weight": (16, 16),
        "h.0.attn.c_proj.bias": (16,),
        "ln_f.weight": (16,),
    }
)


def noise(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def written(out, modules, arrangement, arrays, publish=True):
    """Write pairs (left, right) and whole tensors; return what came of it."""
    with AdapterOutput.open(out, "key", modules, arrangement) as output:
        for name, content in arrays.items():
            if isinstance(content, tuple):
                output.begin(name, ())
                output.end(Ending(dict(zip(("left", "right"), content, strict=True)), 4.0, 1.0))
            else:
                output.begin(name, [Stream("values", content.dtype.name, content.shape)])
                half = content.size // 2
                output.append(Coded({"values": content.reshape(-1)[:half].tobytes()}))
                output.append(Coded({"values": content.reshape(-1)[half:].tobytes()}))
                output.end(Ending({}))
        if publish:
            output.publish(Origin("someone/base", "abc"), {"tokenizer.json": b"{}"}, lambda entries: b"{}\n")
    return output


def delta(folder, base, name):
    column = open_adapter(folder).bind(base)
    assert column.is_delta(name)
    out = np.empty(base[name].size, np.float32)
    column.read(name, 0, out)
    return out.reshape(base[name].shape)


def test_a_written_adapter_reads_back(tmp_path):
    modules = Modules(LLAMA, {"architectures": ["LlamaForCausalLM"]})
    q, up, norm = (
        f"model.layers.{n}.weight" for n in ("0.self_attn.q_proj", "1.mlp.up_proj", "0.input_layernorm")
    )
    embed = "model.embed_tokens.weight"
    pairs = {n: modules.pair_kind(n, embeddings=True) for n in (q, up, embed)}
    arrangement = modules.arrange(pairs, [norm])
    factors = {
        q: (noise(16, 3), noise(3, 16)),
        up: (noise(24, 2), noise(2, 16)),
        embed: (noise(40, 2), noise(2, 16)),
    }
    values = noise(16)
    output = written(tmp_path / "out", modules, arrangement, {**factors, norm: values})
    for name, (left, right) in factors.items():
        assert np.allclose(delta(tmp_path / "out", LLAMA, name), left @ right, atol=1e-5)
    column = open_adapter(tmp_path / "out").bind(LLAMA)
    assert not column.is_delta(norm)
    assert column.raw(norm, 0, 16) == values.tobytes()
    assert output.nbytes == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert (output.pairs[q].rank, output.pairs[q].squared_norm, output.pairs[q].squared_error) == (
        3,
        4.0,
        1.0,
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "tokenizer.json",
    ]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.0.self_attn.q_proj": 3}
    assert config["target_modules"] == [
        "embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert config["modules_to_save"] == ["model.layers.0.input_layernorm"]
    assert (config["task_type"], config["peft_type"]) == ("CAUSAL_LM", "LORA")
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/base", "abc")
    assert (config["bias"], config["fan_in_fan_out"]) == ("none", False)
    assert "base_model: someone/base" in (tmp_path / "out" / "README.md").read_text()


def test_names_are_shortened_only_where_nothing_else_ends_so():
    modules = Modules(LLAMA, {})
    every = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert modules.short(every, dotted=True) == ["q_proj"]
    assert modules.short(every[:1], dotted=True) == every[:1]
    assert modules.short(["model.norm"], dotted=True) == ["norm"]
    twins = Modules(specs({"norm.weight": (3,), "layernorm.weight": (3,)}), {})
    assert twins.short(["norm"], dotted=False) == ["norm"]  # its own full name
    twins = Modules(specs({"a.norm.weight": (3,), "a.layernorm.weight": (3,)}), {})
    assert twins.short(["a.norm"], dotted=False) == ["a.norm"]
    assert twins.short(["a.norm", "a.layernorm"], dotted=False) == ["layernorm", "norm"]
    listed = Modules(specs({"blocks.0.weight": (3, 3), "heads.0.weight": (3, 3)}), {})
    assert listed.short(["blocks.0", "heads.0"], dotted=True) == ["blocks.0", "heads.0"]


def test_modules_that_peft_would_take_along_are_saved_too():
    table = {"text_model.norm.weight": (3,), "vision.text_model.norm.weight": (3,), "x.norm.weight": (3,)}
    arrangement = Modules(specs(table), {}).arrange({}, ["text_model.norm.weight"])
    assert arrangement.saved == ("text_model.norm", "vision.text_model.norm")
    assert set(arrangement.whole) == {"text_model.norm.weight", "vision.text_model.norm.weight"}


def test_a_saved_module_has_all_its_tensors_and_no_pairs():
    modules = Modules(
        specs({"m.experts.gate": (2, 4, 3), "m.experts.up.weight": (4, 3), "m.q.weight": (4, 3)}), {}
    )
    assert modules.pair_kind("m.experts.gate") is None
    pairs = {"m.experts.up.weight": "linear", "m.q.weight": "linear"}
    arrangement = modules.arrange(pairs, ["m.experts.gate"])
    assert arrangement.whole == ("m.experts.gate", "m.experts.up.weight")
    assert list(arrangement.pairs) == ["m.q.weight"]


def test_what_looks_tokens_up():
    table = {
        "shared.weight": (9, 4),
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (9, 4),
        "embeddings.word_embeddings.weight": (9, 4),
        "embeddings.LayerNorm.weight": (4,),
        "embeddings.patch_embeddings.projection.weight": (9, 4),
        "embed_out.weight": (9, 4),
        "layers.0.q_proj.weight": (9, 4),
    }
    modules = Modules(specs(table), {"tie_word_embeddings": True})
    assert [modules.is_embedding(n) for n in table] == [True, True, True, False, False, False, False]
    assert [modules.is_tied(n) for n in table] == [True, False, True, False, False, False, False]


def test_a_parameter_of_the_model_itself_fits_nowhere():
    assert Modules(specs({"scale": (3,)}), {}).arrange({}, ["scale"]).unheld == ("scale",)


def test_what_becomes_a_pair():
    modules = Modules(LLAMA, {})
    assert modules.pair_kind("model.layers.0.mlp.up_proj.weight") == "linear"
    assert modules.pair_kind("model.embed_tokens.weight") is None
    assert modules.pair_kind("lm_head.weight") is None
    assert modules.pair_kind("model.embed_tokens.weight", embeddings=True) == "embedding"
    assert modules.pair_kind("lm_head.weight", embeddings=True) == "linear"
    assert modules.pair_kind("model.norm.weight", embeddings=True) is None
    assert Modules(LLAMA, TIED).pair_kind("model.embed_tokens.weight", embeddings=True) is None
    kernels = Modules(specs({"c.weight": (4, 3, 2, 2), "d.weight": (4, 1, 2, 2)}), {})
    assert kernels.pair_kind("c.weight") == "convolution"
    assert kernels.pair_kind("d.weight") is None


def test_a_tied_embedding_is_put_in_its_place():
    arrangement = Modules(LLAMA, TIED).arrange({}, ["model.embed_tokens.weight", "model.norm.weight"])
    assert arrangement.placed == ("model.embed_tokens.weight",)
    assert arrangement.saved == ("model.norm",)


@pytest.mark.parametrize("config", [{}, {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}])
def test_gpt2_is_recognised_with_and_without_its_config(config):
    modules = Modules(GPT2, config)
    assert modules.transposed
    assert (
        modules.pair_kind("h.0.attn.c_attn.weight")
        == modules.pair_kind("h.0.attn.c_proj.weight")
        == "flipped"
    )
    assert modules.module("h.0.attn.c_attn.weight") == ("transformer." if config else "") + "h.0.attn.c_attn"
    assert not Modules(LLAMA, {}).transposed
    assert not Modules(GPT2, {"model_type": "gpt_bigcode"}).transposed


def test_a_transposed_layer_and_its_bias_read_back(tmp_path):
    modules = Modules(GPT2, {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    attn, proj = (f"h.0.attn.{n}" for n in ("c_attn", "c_proj"))
    pairs = {f"{attn}.weight": "flipped", f"{proj}.weight": "flipped"}
    arrangement = modules.arrange(pairs, [f"{attn}.bias", f"{proj}.bias"])
    left, right = noise(16, 2), noise(2, 48)
    none = (np.zeros((16, 0), np.float32), np.zeros((0, 16), np.float32))
    content = {f"{attn}.weight": (left, right), f"{proj}.weight": none}
    written(
        tmp_path / "out",
        modules,
        arrangement,
        {**content, f"{attn}.bias": noise(48), f"{proj}.bias": noise(16)},
    )
    assert np.allclose(delta(tmp_path / "out", GPT2, f"{attn}.weight"), left @ right, atol=1e-5)
    lead = "base_model.model.transformer.h.0.attn"
    assert sorted(load_file(tmp_path / "out" / "adapter_model.safetensors")) == [
        f"{lead}.c_attn.base_layer.bias",
        f"{lead}.c_attn.lora_A.weight",
        f"{lead}.c_attn.lora_B.weight",
        f"{lead}.c_proj.bias",
    ]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["fan_in_fan_out"], config["bias"]) == (True, "all")
    assert config["target_modules"] == ["c_attn"]


def test_kernels_read_back(tmp_path):
    table = specs({"c.weight": (4, 3, 2, 2)})
    modules = Modules(table, {})
    left, right = noise(4, 2), noise(2, 12)
    a, b = lora_factors(left, right, "convolution", (4, 3, 2, 2))
    assert (a.shape, b.shape) == ((2, 3, 2, 2), (4, 2, 1, 1))
    written(
        tmp_path / "out",
        modules,
        modules.arrange({"c.weight": "convolution"}, []),
        {"c.weight": (left, right)},
    )
    assert np.allclose(
        delta(tmp_path / "out", table, "c.weight"), (left @ right).reshape(4, 3, 2, 2), atol=1e-5
    )


def test_an_unfinished_adapter_leaves_nothing(tmp_path):
    modules = Modules(LLAMA, {})
    name = "model.layers.0.self_attn.q_proj.weight"
    arrangement = modules.arrange({name: "linear"}, [])
    written(tmp_path / "out", modules, arrangement, {name: (noise(16, 2), noise(2, 16))}, publish=False)
    assert not (tmp_path / "out").exists()
    assert neighbours(tmp_path / "out") == []


def test_an_adapter_of_nothing_is_refused(tmp_path):
    modules = Modules(LLAMA, {})
    with pytest.raises(RefusedError, match="the model does not differ from the base"):
        written(tmp_path / "out", modules, modules.arrange({}, []), {})
    assert neighbours(tmp_path / "out") == []


def test_without_pairs_one_of_zeros_is_written(tmp_path):
    modules = Modules(LLAMA, {})
    name, norm = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
    arrangement = modules.arrange({name: "linear"}, [norm])
    none = (np.zeros((16, 0), np.float32), np.zeros((0, 16), np.float32))
    written(tmp_path / "out", modules, arrangement, {name: none, norm: noise(16)})
    assert not delta(tmp_path / "out", LLAMA, name).any()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (1, ["model.layers.0.self_attn.q_proj"])
    with pytest.raises(RefusedError, match="PEFT loads no adapter without one"):
        written(tmp_path / "other", modules, modules.arrange({}, [norm]), {norm: noise(16)})


def test_what_is_there_already_is_not_replaced_unasked(tmp_path):
    modules = Modules(LLAMA, {})
    name = "model.layers.0.self_attn.q_proj.weight"
    arrangement = modules.arrange({name: "linear"}, [])
    content = {name: (noise(16, 2), noise(2, 16))}
    written(tmp_path / "out", modules, arrangement, content)
    with pytest.raises(RefusedError, match="not empty"):
        written(tmp_path / "out", modules, arrangement, content)


def test_tasks_are_those_that_change_nothing_in_peft():
    assert task_type({"architectures": ["GPT2LMHeadModel"]}) == "CAUSAL_LM"
    assert task_type({"architectures": ["T5ForConditionalGeneration"]}) == "SEQ_2_SEQ_LM"
    assert task_type({"architectures": ["LlamaForSequenceClassification"]}) is None
    assert task_type({}) is None


KINDS = ["llama", "tied", "gpt2", "bare", "qwen2", "norms"]


def tiny(kind):
    import transformers as t

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 40,
    }
    if kind in ("gpt2", "bare"):
        return t.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0
        )
    if kind == "qwen2":
        return t.Qwen2Config(**sizes)
    return t.LlamaConfig(**sizes, tie_word_embeddings=kind == "tied")


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_makes_the_fine_tuned_model_of_it(tmp_path, kind, embed):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from deltasmith.packing.extraction import Wish, extract_lora

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny(kind)).eval()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if kind == "norms" and "norm" not in name:
                continue
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    if kind == "bare":
        for path in (tmp_path / "base", tmp_path / "tuned"):
            file = path / "model.safetensors"
            stored = {n.removeprefix("transformer."): a for n, a in load_file(file).items()}
            save_file(stored, file, {"format": "pt"})
    wish = Wish(rank=40, dtype="float32", embed_lora=embed)
    extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", wish, threads=1)
    ids = torch.arange(12)[None]
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        before = base(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
        after, wanted = adapted(ids).logits, model(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert not [str(w.message) for w in said if "missing" in str(w.message) or "fan_in" in str(w.message)]
    assert (before - wanted).abs().max() > 0.01
    assert torch.allclose(after, wanted, atol=2e-6)
    assert torch.allclose(merged, wanted, atol=2e-6)
