"""The numpy forward pass against loops by hand, its own promises, and torch where that is installed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.llama import Llama, load_folder, read_tensors
from deltasmith.lab import BUNDLED_REGIMES, EXPERTS, family_folder


def config(**changes: Any) -> dict[str, Any]:
    """Describe a model of two layers, four heads over two key-value heads."""
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 11,
        **changes,
    }


def tensors(described: dict[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Draw weights for `described`, norms included."""
    rng = np.random.default_rng(seed)
    width, inner, vocab = described["hidden_size"], described["intermediate_size"], described["vocab_size"]
    size = described.get("head_dim") or width // described["num_attention_heads"]
    query, key = described["num_attention_heads"] * size, described["num_key_value_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(described["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes[f"{at}self_attn.q_proj.weight"] = (query, width)
        shapes[f"{at}self_attn.o_proj.weight"] = (width, query)
        shapes |= {f"{at}self_attn.{one}_proj.weight": (key, width) for one in "kv"}
        shapes |= {f"{at}mlp.{one}_proj.weight": (inner, width) for one in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{at}{one}_layernorm.weight": (width,) for one in ("input", "post_attention")}
    if not described.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, width)
    return {name: rng.normal(size=shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}


def by_hand(
    described: dict[str, Any], weights: dict[str, NDArray[np.float32]], tokens: list[int]
) -> NDArray[Any]:
    """Compute the last position's logits in float64, one position and one head at a time."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, kv_heads = described["num_attention_heads"], described["num_key_value_heads"]
    size = described.get("head_dim") or described["hidden_size"] // heads

    def norm(x: NDArray[Any], name: str) -> NDArray[Any]:
        return x / math.sqrt((x * x).mean() + described["rms_norm_eps"]) * w[name]

    def turned(vector: NDArray[Any], position: int) -> NDArray[Any]:
        out = vector.copy()
        for i in range(size // 2):
            angle = position * described["rope_theta"] ** (-2 * i / size)
            a, b = vector[i], vector[i + size // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    xs = [w["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(described["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        seen = [norm(x, f"{at}input_layernorm.weight") for x in xs]
        q, k, v = ([w[f"{at}self_attn.{one}_proj.weight"] @ x for x in seen] for one in "qkv")
        for position in range(len(tokens)):
            pieces = []
            for head in range(heads):
                mine, shared = slice(head * size, (head + 1) * size), head // (heads // kv_heads)
                theirs = slice(shared * size, (shared + 1) * size)
                query = turned(q[position][mine], position)
                dots = [query @ turned(k[p][theirs], p) / math.sqrt(size) for p in range(position + 1)]
                powers = [math.exp(dot) for dot in dots]
                pieces.append(sum(power * v[p][theirs] for p, power in enumerate(powers)) / sum(powers))
            xs[position] = xs[position] + w[f"{at}self_attn.o_proj.weight"] @ np.concatenate(pieces)
            y = norm(xs[position], f"{at}post_attention_layernorm.weight")
            gate = w[f"{at}mlp.gate_proj.weight"] @ y
            gate = gate / (1 + np.exp(-gate))
            up = w[f"{at}mlp.up_proj.weight"] @ y
            xs[position] = xs[position] + w[f"{at}mlp.down_proj.weight"] @ (gate * up)
    head_matrix = w["model.embed_tokens.weight" if described.get("tie_word_embeddings") else "lm_head.weight"]
    last: NDArray[Any] = head_matrix @ norm(xs[-1], "model.norm.weight")
    return last


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 6},
        {"rope_theta": 50.0},
        {"num_hidden_layers": 0},
    ],
    ids=str,
)
def test_it_equals_the_definition(changes: dict[str, Any]) -> None:
    described = config(**changes)
    weights = tensors(described)
    tokens = [1, 5, 5, 9, 0, 10]
    found = Llama.from_tensors(described, weights).logits(np.array([tokens]))[0, -1]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(described, weights, tokens), rtol=2e-4, atol=2e-4)


def test_rope_theta_is_read_where_newer_configs_keep_it() -> None:
    weights = tensors(config())
    old = Llama.from_tensors(config(rope_theta=50.0), weights)
    nested = config(rope_parameters={"rope_theta": 50.0, "rope_type": "default"})
    assert Llama.from_tensors(nested, weights).rope_theta == old.rope_theta == 50.0


def test_padding_on_the_right_changes_nothing_before_it() -> None:
    model = Llama.from_tensors(config(), tensors(config()))
    short = model.logits(np.array([[1, 2, 3]]))
    padded = model.logits(np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]))
    np.testing.assert_allclose(padded[:1, :3], short, rtol=1e-5, atol=1e-5)


def test_chosen_positions_equal_all_positions() -> None:
    model = Llama.from_tensors(config(), tensors(config()))
    tokens = np.random.default_rng(1).integers(0, 11, (3, 7))
    wanted = np.random.default_rng(2).random((3, 7)) < 0.4
    found = model.logits_at(tokens, wanted)
    np.testing.assert_allclose(found, model.logits(tokens)[wanted], rtol=1e-5, atol=1e-5)


def test_weights_are_copied() -> None:
    weights = tensors(config())
    model = Llama.from_tensors(config(), weights)
    before = model.logits(np.array([[1, 2]]))
    for value in weights.values():
        value[...] = 0
    np.testing.assert_array_equal(model.logits(np.array([[1, 2]])), before)


def test_a_missing_tensor_is_named() -> None:
    weights = tensors(config())
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(DamagedInputError) as caught:
        Llama.from_tensors(config(), weights)
    assert str(caught.value) == (
        "model.layers.1.mlp.up_proj.weight is not among the 20 tensors; "
        "give the tensors of a LlamaForCausalLM with the layers its config names"
    )


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(DamagedInputError) as caught:
        Llama.from_tensors(config(vocab_size=12), tensors(config()))
    assert str(caught.value) == (
        "model.embed_tokens.weight has shape (11, 16), but the config says (12, 16); "
        "take the config and the tensors from the same model"
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"model_type": "qwen2"}, "model_type='qwen2'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
    ],
)
def test_variants_it_does_not_compute_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(DamagedInputError, match=named):
        Llama.from_tensors(config(**changes), tensors(config()))


@pytest.mark.parametrize(
    "label", ["base", *(f"{regime}/{task}" for regime in BUNDLED_REGIMES for task in EXPERTS)]
)
def test_every_bundled_model_loads(label: str) -> None:
    model = load_folder(family_folder() / label)
    logits = model.logits(np.array([[1, 40, 50, 2]]))
    assert logits.shape == (1, 4, model.config["vocab_size"])
    assert np.isfinite(logits).all()


def test_the_bundled_base_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    from deltasmith.lab.network import SIZES, forward

    folder = family_folder() / "base"
    params = {name: torch.from_numpy(value) for name, value in read_tensors(folder).items()}
    tokens = np.random.default_rng(0).integers(4, 99, (4, 50))
    with torch.no_grad():
        expected = forward(params, SIZES["S"], torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(load_folder(folder).logits(tokens), expected, rtol=1e-3, atol=1e-3)


def test_the_bundled_base_equals_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = family_folder() / "base"
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(4, 99, (4, 50))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(load_folder(folder).logits(tokens), expected, rtol=1e-3, atol=1e-3)
