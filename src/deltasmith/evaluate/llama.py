"""The forward pass of a Llama in float32 numpy, laid out as Hugging Face stores it.

For scoring small models without torch. There is no generation, no cache of keys and values, and no gradient.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltasmith.errors import DamagedInputError

__all__ = ["Llama", "load_folder", "read_tensors"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """Hold one decoder layer; matrices are transposed to (in, out), those with the same input joined."""

    attention_norm: Floats
    query_key_value: Floats
    output: Floats
    mlp_norm: Floats
    gate_up: Floats
    down: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Llama:
    """Turn tokens into logits: RMSNorm, rotary positions by halves, grouped-query attention, SwiGLU.

    Build it with `from_tensors`. `config` keeps every key of the model's `config.json`.
    """

    config: Mapping[str, Any]
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    rope_theta: float
    embedding: Floats
    layers: tuple[_Layer, ...]
    norm: Floats
    head: Floats

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Llama:
        """Copy the weights out of `tensors` (names and shapes as in a LlamaForCausalLM) into float32.

        The head is `lm_head.weight`, or the embedding where `tie_word_embeddings` is set.
        Raises DamagedInputError for a missing tensor, a shape that contradicts `config`, or a variant that is
        not computed here.
        """
        _refuse_variants(config)
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        size = int(config.get("head_dim") or width // heads)
        if heads % kv_heads or size % 2:
            raise DamagedInputError(
                f"{heads} heads of {size} values over {kv_heads} key-value heads do not divide evenly",
                where="config.json",
                fix="compare num_attention_heads, num_key_value_heads and head_dim with the original model's",
            )
        inner, vocab = int(config["intermediate_size"]), int(config["vocab_size"])
        take = partial(_take, tensors)
        embedding = take("model.embed_tokens.weight", vocab, width)
        tied = bool(config.get("tie_word_embeddings"))
        depth = int(config["num_hidden_layers"])
        return cls(
            config=dict(config),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(config),
            embedding=embedding,
            layers=tuple(_layer(take, n, width, inner, heads * size, kv_heads * size) for n in range(depth)),
            norm=take("model.norm.weight", width),
            head=np.ascontiguousarray((embedding if tied else take("lm_head.weight", vocab, width)).T),
        )

    def logits(self, tokens: NDArray[np.integer[Any]]) -> Floats:
        """Compute the logits at every position, `(batch, length) -> (batch, length, vocab)`."""
        everywhere = np.ones(tokens.shape, dtype=bool)
        return self.logits_at(tokens, everywhere).reshape(*tokens.shape, -1)

    def logits_at(self, tokens: NDArray[np.integer[Any]], wanted: NDArray[np.bool_]) -> Floats:
        """Compute the logits where `wanted` is true, `(batch, length) -> (count, vocab)` in row-major order.

        Attention is causal, so padding on the right changes nothing to its left. Every id, padding included,
        must lie in the vocabulary.
        """
        batch, length = tokens.shape
        turn = _rotation(length, self.head_dim, self.rope_theta)
        flat = wanted.reshape(-1)
        x = self.embedding[tokens.reshape(-1)]  # (batch * length, width)
        for index, layer in enumerate(self.layers):
            mixed = self._attend(layer, _rms(x, layer.attention_norm, self.epsilon), batch, length, turn)
            if index == len(self.layers) - 1:
                # After the last attention no position looks at another: drop those nobody asked for.
                x, mixed = x[flat], mixed[flat]
            x = x + mixed @ layer.output
            gate_up = _rms(x, layer.mlp_norm, self.epsilon) @ layer.gate_up
            x += _swiglu(gate_up) @ layer.down
        if not self.layers:
            x = x[flat]
        result: Floats = _rms(x, self.norm, self.epsilon) @ self.head
        return result

    def _attend(
        self, layer: _Layer, x: Floats, batch: int, length: int, turn: Callable[[Floats], Floats]
    ) -> Floats:
        """Mix values of earlier positions, `(batch * length, width) -> (batch * length, heads * size)`."""
        group = self.heads // self.kv_heads
        joined = (x @ layer.query_key_value).reshape(batch, length, -1, self.head_dim).transpose(0, 2, 1, 3)
        query = turn(joined[:, : self.heads]) * np.float32(self.head_dim**-0.5)
        key = turn(joined[:, self.heads : self.heads + self.kv_heads])  # (batch, kv_heads, length, head_dim)
        value = joined[:, self.heads + self.kv_heads :]
        # The query heads that share a key head lie side by side: stack them as further rows of one product.
        query = query.reshape(batch, self.kv_heads, group * length, self.head_dim)
        scores = query @ key.swapaxes(-1, -2)  # (batch, kv_heads, group * length, length)
        future = np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
        scores += np.tile(future, (group, 1))
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed: Floats = (scores @ value) / scores.sum(-1, keepdims=True)
        mixed = mixed.reshape(batch, self.heads, length, self.head_dim).transpose(0, 2, 1, 3)
        return mixed.reshape(batch * length, self.heads * self.head_dim)


def read_tensors(folder: Path | str) -> dict[str, Floats]:
    """Read every tensor of a folder's safetensors files into float32 (stored as bf16, fp16, fp32 or fp64)."""
    import ml_dtypes
    from safetensors import deserialize

    kinds: dict[str, Any] = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    kinds["BF16"] = ml_dtypes.bfloat16
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, Floats] = {}
    for name in names:
        stored_tensors = deserialize((folder / name).read_bytes())  # type: ignore[no-untyped-call, unused-ignore]
        for tensor, entry in stored_tensors:
            if entry["dtype"] not in kinds:
                raise DamagedInputError(
                    f"{tensor} is stored as {entry['dtype']}",
                    where=str(folder / name),
                    fix=f"convert it to one of {', '.join(kinds)}",
                )
            stored = np.frombuffer(entry["data"], dtype=kinds[entry["dtype"]])
            tensors[tensor] = stored.reshape(entry["shape"]).astype(np.float32)
    return tensors


def load_folder(path: Path | str) -> Llama:
    """Read `config.json` and the safetensors files of a Hugging Face folder into a `Llama`."""
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    return Llama.from_tensors(config, read_tensors(path))


def _take(tensors: Mapping[str, NDArray[Any]], name: str, *shape: int) -> Floats:
    """Copy one tensor into float32 after checking that it is there and has `shape`."""
    if name not in tensors:
        raise DamagedInputError(
            f"{name} is not among the {len(tensors)} tensors",
            fix="give the tensors of a LlamaForCausalLM with the layers its config names",
        )
    value = np.array(tensors[name], dtype=np.float32)
    if value.shape != shape:
        raise DamagedInputError(
            f"{name} has shape {value.shape}, but the config says {shape}",
            fix="take the config and the tensors from the same model",
        )
    return value


def _layer(take: Callable[..., Floats], index: int, width: int, inner: int, query: int, key: int) -> _Layer:
    at = f"model.layers.{index}."
    rows = {"q": query, "k": key, "v": key}
    joined = [take(f"{at}self_attn.{one}_proj.weight", count, width) for one, count in rows.items()]
    gate_up = [take(f"{at}mlp.{one}_proj.weight", inner, width) for one in ("gate", "up")]
    return _Layer(
        take(f"{at}input_layernorm.weight", width),
        np.ascontiguousarray(np.concatenate(joined).T),
        np.ascontiguousarray(take(f"{at}self_attn.o_proj.weight", width, query).T),
        take(f"{at}post_attention_layernorm.weight", width),
        np.ascontiguousarray(np.concatenate(gate_up).T),
        np.ascontiguousarray(take(f"{at}mlp.down_proj.weight", width, inner).T),
    )


def _refuse_variants(config: Mapping[str, Any]) -> None:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    found = {
        "model_type": config.get("model_type", "llama"),
        "hidden_act": config.get("hidden_act", "silu"),
        "attention_bias": bool(config.get("attention_bias", False)),
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "rope_type": scaling.get("rope_type", scaling.get("type", "default")),
    }
    known = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_type": "default",
    }
    wrong = [f"{key}={value!r} (only {known[key]!r})" for key, value in found.items() if value != known[key]]
    if wrong:
        raise DamagedInputError(
            f"this forward pass does not compute {', '.join(wrong)}",
            where="config.json",
            fix="score this model with another program",
        )


def _rope_theta(config: Mapping[str, Any]) -> float:
    # transformers 5 moved the value into `rope_parameters`; older files keep it at the top.
    nested = config.get("rope_parameters") or {}
    return float(nested.get("rope_theta", config.get("rope_theta", 10000.0)))


def _rotation(length: int, size: int, theta: float) -> Callable[[Floats], Floats]:
    """Return the function that turns each pair (i, i + size/2) by its position's angle."""
    inverse = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angle = np.arange(length)[:, None] * inverse  # (length, size / 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def turn(x: Floats) -> Floats:
        low, high = x[..., : size // 2], x[..., size // 2 :]
        return np.concatenate((low * cos - high * sin, high * cos + low * sin), axis=-1)

    return turn


def _rms(x: Floats, weight: Floats, epsilon: float) -> Floats:
    square = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[1])
    scaled: Floats = x * (weight / np.sqrt(square + np.float32(epsilon)))
    return scaled


def _swiglu(gate_up: Floats) -> Floats:
    gate, up = np.split(gate_up, 2, axis=1)
    # exp of a very negative gate overflows to infinity, and gate / infinity is the right answer: 0.
    with np.errstate(over="ignore"):
        smooth = np.exp(-gate)
    smooth += 1
    np.divide(gate, smooth, out=smooth)
    smooth *= up
    return smooth
