"""A tiny Llama, a fine-tuned sister, and the sister as base plus signs times scales."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from deltasmith.distillation.scales import Scaled

VOCABULARY = 32


def pair(dtype: str = "float32", spread: float = 0.02, seed: int = 0) -> tuple[Any, Any]:
    """Return base and fine-tuned model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    base = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    fine = copy.deepcopy(base)
    with torch.no_grad():
        for name, parameter in fine.named_parameters():
            if name.endswith("_proj.weight"):
                parameter += spread * torch.randn(parameter.shape).to(parameter.dtype)
    return base, fine


def one_bit(base: Any, fine: Any, passes: int = 1, per_row: bool = False) -> dict[str, Scaled]:
    """Binarise every projection's delta, `passes` times."""
    found = {}
    after = dict(fine.named_parameters())
    for name, parameter in base.named_parameters():
        if name.endswith("_proj.weight"):
            rest = (after[name] - parameter).detach().float().numpy().astype(np.float64)
            signs, scales = [], []
            for _ in range(passes):
                sign = np.where(rest > 0, 1, -1).astype(np.int8)
                scale = np.abs(rest).mean(axis=1) if per_row else np.abs(rest).mean(keepdims=True)[0]
                signs.append(sign)
                scales.append(scale)
                rest = rest - sign * scale.reshape(-1, 1)
            scale = np.stack(scales).astype(np.float32)
            found[name] = Scaled(np.stack(signs), scale, "scale", scale.shape)
    return found


def pieces(count: int, seed: int = 0, longest: int = 16) -> list[tuple[int, ...]]:
    random = np.random.default_rng(seed)
    return [
        tuple(random.integers(3, VOCABULARY, random.integers(2, longest + 1)).tolist()) for _ in range(count)
    ]
