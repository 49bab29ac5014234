"""The forward pass of a Llama in float32 numpy, laid out as Hugging Face stores it.

For small models without torch: logits of whole sequences, and of one more token after those read before. There is
no gradient.
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

__all__ = ["Llama", "Memory", "load_folder", "read_tensors"]

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


class Memory:
    """Keep the keys and values of what has been read, so that a next token costs one token.

    The first `padding[i]` positions of sequence i are no part of it: nothing looks at them, and its own
    positions are counted after them. `capacity` is the longest sequence, padding included.
    """

    def __init__(self, llama: Llama, padding: NDArray[np.int64], capacity: int) -> None:
        """Make room for as many sequences as `padding` has entries."""
        shape = (len(padding), llama.kv_heads, capacity, llama.head_dim)
        self.keys = [np.empty(shape, np.float32) for _ in llama.layers]
        self.values = [np.empty(shape, np.float32) for _ in llama.layers]
        self.padding = padding
        self.filled = 0

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Forget the sequences where `rows` is false."""
        self.keys = [one[rows] for one in self.keys]
        self.values = [one[rows] for one in self.values]
        self.padding = self.padding[rows]


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
        turn = _rotation(np.arange(length), self.head_dim, self.rope_theta)
        future = np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
        flat = wanted.reshape(-1)
        x = self.embedding[tokens.reshape(-1)]  # (batch * length, width)
        for index, layer in enumerate(self.layers):
            normed = _rms(x, layer.attention_norm, self.epsilon)
            mixed = self._mix(*self._project(layer, normed, batch, length, turn), future)
            if index == len(self.layers) - 1:
                # After the last attention no position looks at another: drop those nobody asked for.
                x, mixed = x[flat], mixed[flat]
            x = self._feed_forward(layer, x + mixed @ layer.output)
        if not self.layers:
            x = x[flat]
        result: Floats = _rms(x, self.norm, self.epsilon) @ self.head
        return result

    def read(self, tokens: NDArray[np.integer[Any]], memory: Memory) -> Floats:
        """Read further tokens, `(batch, length)`, and compute the logits after the last, `(batch, vocab)`.

        `memory` takes in what is read; padding stands on the left, with any id of the vocabulary.
        """
        batch, length = tokens.shape
        start, stop = memory.filled, memory.filled + length
        memory.filled = stop
        # Angles are relative, but counted without the padding they round as they do for the text alone.
        own = np.arange(start, stop) - memory.padding[:, None]  # (batch, length)
        turn = _rotation(np.maximum(own, 0)[:, None], self.head_dim, self.rope_theta)
        hidden = _hidden(start, stop, memory.padding)
        x = self.embedding[tokens.reshape(-1)]
        for layer, keys, values in zip(self.layers, memory.keys, memory.values, strict=True):
            normed = _rms(x, layer.attention_norm, self.epsilon)
            query, keys[:, :, start:stop], values[:, :, start:stop] = self._project(
                layer, normed, batch, length, turn
            )
            mixed = self._mix(query, keys[:, :, :stop], values[:, :, :stop], hidden)
            x = self._feed_forward(layer, x + mixed @ layer.output)
        last = x.reshape(batch, length, -1)[:, -1]
        result: Floats = _rms(last, self.norm, self.epsilon) @ self.head
        return result

    def _project(
        self, layer: _Layer, x: Floats, batch: int, length: int, turn: Callable[[Floats], Floats]
    ) -> tuple[Floats, Floats, Floats]:
        """Make queries, keys and values, `(batch * length, width) -> (batch, its heads, length, size)`."""
        joined = (x @ layer.query_key_value).reshape(batch, length, -1, self.head_dim).transpose(0, 2, 1, 3)
        query = turn(joined[:, : self.heads]) * np.float32(self.head_dim**-0.5)
        key = turn(joined[:, self.heads : self.heads + self.kv_heads])
        return query, key, joined[:, self.heads + self.kv_heads :]

    def _mix(self, query: Floats, key: Floats, value: Floats, hidden: Floats) -> Floats:
        """Mix the values of positions not `hidden` (-inf there, else 0), `-> (batch * length, heads * size)`."""
        batch, _, length, _ = query.shape
        group = self.heads // self.kv_heads
        # The query heads that share a key head lie side by side: stack them as further rows of one product.
        query = query.reshape(batch, self.kv_heads, group * length, self.head_dim)
        scores = query @ key.swapaxes(-1, -2)  # (batch, kv_heads, group * length, positions)
        scores += np.concatenate([hidden] * group, axis=-2)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed: Floats = (scores @ value) / scores.sum(-1, keepdims=True)
        mixed = mixed.reshape(batch, self.heads, length, self.head_dim).transpose(0, 2, 1, 3)
        return mixed.reshape(batch * length, self.heads * self.head_dim)

    def _feed_forward(self, layer: _Layer, x: Floats) -> Floats:
        gate_up = _rms(x, layer.mlp_norm, self.epsilon) @ layer.gate_up
        x += _swiglu(gate_up) @ layer.down
        return x


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


def _rotation(positions: NDArray[np.integer[Any]], size: int, theta: float) -> Callable[[Floats], Floats]:
    """Return the function that turns each pair (i, i + size/2) by its position's angle."""
    inverse = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angle = positions[..., None] * inverse  # (…, length, size / 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def turn(x: Floats) -> Floats:
        low, high = x[..., : size // 2], x[..., size // 2 :]
        return np.concatenate((low * cos - high * sin, high * cos + low * sin), axis=-1)

    return turn


def _hidden(start: int, stop: int, padding: NDArray[np.int64]) -> Floats:
    """Hide later positions and padding from positions [start, stop): `(batch, 1, stop - start, stop)`."""
    query, key = np.arange(start, stop)[:, None], np.arange(stop)
    # A padded position sees itself, so that no row is hidden altogether and becomes 0 / 0.
    seen = (key <= query) & ((key >= padding[:, None, None]) | (key == query))
    return np.where(seen, np.float32(0), np.float32(-np.inf))[:, None]


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
