"""The network of the lab's language models: a small Llama in torch, with gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deltasmith.errors import RecipeError
from deltasmith.lab.tokens import BOS, EOS, PAD

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SIZES", "Shape", "forward", "initial", "shape_of"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Fix the width and depth of a Llama; `context` bounds the positions it is trained for."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    context: int = 96
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def config(self, vocab: int) -> dict[str, Any]:
        """Write the shape down as the `config.json` of a LlamaForCausalLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.norm_epsilon,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": vocab,
        }


SIZES: Mapping[str, Shape] = MappingProxyType(
    {
        "XS": Shape(hidden=32, inner=64, layers=2, heads=2, kv_heads=1),
        "S": Shape(hidden=96, inner=320, layers=4, heads=4, kv_heads=2),
        "M": Shape(hidden=192, inner=512, layers=6, heads=6, kv_heads=3),
    }
)


def shape_of(size: str) -> Shape:
    """Return a named size, or the shape that `WIDTHxLAYERS` spells out (`512x8`: heads of 32, two to a key head).

    Raises RecipeError where the text is neither, or the width is no multiple of 64.
    """
    if size in SIZES:
        return SIZES[size]
    found = re.fullmatch(r"(\d{2,5})x(\d{1,3})", size)
    if not found or int(found[1]) % 64 or not int(found[1]) or not int(found[2]):
        raise RecipeError(
            f"{size!r} is no size",
            where="size",
            fix=f"take one of {', '.join(SIZES)}, or WIDTHxLAYERS with a width that is a multiple of 64",
        )
    hidden = int(found[1])
    heads = hidden // 32
    return Shape(hidden, hidden * 8 // 3 // 64 * 64, int(found[2]), heads, heads // 2)


def initial(shape: Shape, vocab: int, seed: int) -> dict[str, Tensor]:
    """Draw first weights on the CPU, so that they do not depend on the device."""
    import torch

    head = shape.hidden // shape.heads
    matrices = {
        "self_attn.q_proj": (shape.heads * head, shape.hidden),
        "self_attn.k_proj": (shape.kv_heads * head, shape.hidden),
        "self_attn.v_proj": (shape.kv_heads * head, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.heads * head),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, spread: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * spread

    params = {"model.embed_tokens.weight": normal(vocab, shape.hidden, 0.1)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in matrices.items():
            # What writes into the residual stream starts smaller, so that depth does not raise its variance.
            calm = (2 * shape.layers) ** -0.5 if name.endswith(("o_proj", "down_proj")) else 1.0
            params[f"{prefix}{name}.weight"] = normal(rows, columns, calm * columns**-0.5)
        params[f"{prefix}input_layernorm.weight"] = torch.ones(shape.hidden)
        params[f"{prefix}post_attention_layernorm.weight"] = torch.ones(shape.hidden)
    params["model.norm.weight"] = torch.ones(shape.hidden)
    params["lm_head.weight"] = normal(vocab, shape.hidden, shape.hidden**-0.5)
    return params


def forward(params: Mapping[str, Tensor], shape: Shape, tokens: Tensor) -> Tensor:
    """Compute the logits of `tokens` `(batch, length) -> (batch, length, vocab)` with gradients.

    Padding belongs on the right, where causal attention keeps it from being seen.
    """
    import torch
    from torch.nn import functional

    size = shape.hidden // shape.heads
    inverse = shape.rope_theta ** (-torch.arange(0, size, 2, device=tokens.device) / size)
    angle = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * inverse  # (length, size / 2)
    cos, sin = (torch.cat((part, part), -1) for part in (angle.cos(), angle.sin()))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, (shape.hidden,), params[f"{name}.weight"], shape.norm_epsilon)

    def heads(x: Tensor, name: str, turn: bool) -> Tensor:
        y = functional.linear(x, params[f"{name}.weight"])
        y = y.view(*x.shape[:2], -1, size).transpose(1, 2)
        if turn:
            low, high = y.chunk(2, -1)
            y = y * cos + torch.cat((-high, low), -1) * sin
        return y.repeat_interleave(shape.heads // y.shape[1], dim=1)  # (batch, heads, length, size)

    x = functional.embedding(tokens, params["model.embed_tokens.weight"])
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        y = norm(x, f"{at}input_layernorm")
        query, key, value = (heads(y, f"{at}self_attn.{one}_proj", one != "v") for one in "qkv")
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + functional.linear(mixed.transpose(1, 2).flatten(2), params[f"{at}self_attn.o_proj.weight"])
        y = norm(x, f"{at}post_attention_layernorm")
        gate = functional.silu(functional.linear(y, params[f"{at}mlp.gate_proj.weight"]))
        up = functional.linear(y, params[f"{at}mlp.up_proj.weight"])
        x = x + functional.linear(gate * up, params[f"{at}mlp.down_proj.weight"])
    return functional.linear(norm(x, "model.norm"), params["lm_head.weight"])
