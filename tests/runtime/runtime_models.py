"""Tiny torch models, fine-tunes of them packed in memory, and the same fine-tunes unpacked: what must agree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Cell
from deltasmith.runtime import HeldDelta
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

Arrays = dict[str, np.ndarray]


def llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        **(
            {
                "vocab_size": 50,
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 64,
                "initializer_range": 0.2,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": None,
            }
            | changes
        )
    )
    return LlamaForCausalLM(config).eval()


def words(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's stored words."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().view(f"u{tensor.element_size()}").reshape(tensor.shape)


def tuned(
    model: nn.Module, seed: int, spread: float = 0.05, names: Callable[[str], bool] = lambda _: True
) -> Any:
    """Return the state of a fine-tune: every parameter moved a little."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: p.detach() + (torch.randn(p.shape, generator=random) * spread).to(p.dtype)
        for name, p in model.named_parameters()
        if names(name)
    }


def packed(
    model: nn.Module, state: Mapping[str, torch.Tensor], text: str, rest: str = "lossless"
) -> HeldDelta:
    """Code each tensor of a fine-tune with `text` if that codec takes it, else with `rest`."""
    own, tensors = dict(model.named_parameters(remove_duplicate=False)), {}
    for name, value in state.items():
        dtype = DTYPES[str(value.dtype).removeprefix("torch.")]
        spec = Spec(name, tuple(value.shape), dtype)
        cell = Cell(spec, spec, key=3)
        codec = codec_from(text)
        if value.dim() < 2 or codec.refusal(cell):
            codec = codec_from(rest)
        if codec.domain == "stored":
            arrays = codec.encode(words(value), cell, words(own[name]))
        else:
            whole = value.float() - (own[name].detach().float() if codec.domain == "delta" else 0)
            if text.startswith("sparse"):
                whole *= torch.rand(whole.shape, generator=torch.Generator().manual_seed(1)) < 0.2
            arrays = codec.encode(whole.numpy(), cell)
        tensors[name] = codec, arrays, cell
    return HeldDelta(tensors)


def emr_packed(model: nn.Module, states: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, HeldDelta]:
    """Make a unified vector and a mask and rescaler per label, by hand."""
    own, codec = dict(model.named_parameters()), codec_from("emr")
    found: dict[str, dict[str, Any]] = {label: {} for label in states}
    for name, ground in own.items():
        deltas = {k: (s[name].float() - ground.detach().float()).numpy() for k, s in states.items()}
        total = sum(deltas.values())
        sign = np.where(total > 0, 1, -1)
        agree = [np.where(d * sign > 0, np.abs(d), 0) for d in deltas.values()]
        unified = (sign * np.max(agree, axis=0)).astype(np.float32)
        spec = Spec(name, tuple(ground.shape), DTYPES["float32"])
        for i, (label, delta) in enumerate(deltas.items()):
            mask = np.packbits((delta * unified > 0).reshape(-1), bitorder="little")
            mask = np.concatenate([mask, np.zeros(-mask.size % 8, np.uint8)])
            rescaler = np.array([0.7 + i / 10], np.float32)
            arrays = {"unified": unified.copy(), "mask": mask, "rescaler": rescaler}
            found[label][name] = codec, arrays, Cell(spec, spec)
    return {label: HeldDelta(tensors) for label, tensors in found.items()}


def unpacked(model: nn.Module, delta: HeldDelta) -> nn.Module:
    """Return a copy of the model with the decoded delta added in float32 (stored words taken as they are)."""
    twin = copy.deepcopy(model)
    own = dict(twin.named_parameters(remove_duplicate=False))
    for name in delta.names:
        codec, arrays, cell = delta.tensors[name]
        with torch.no_grad():
            if codec.domain == "stored":
                decoded = codec.decode(arrays, cell, words(own[name]))
                value = torch.from_numpy(decoded.view(np.uint8)).view(own[name].dtype)
            elif codec.domain == "delta":
                value = own[name].float() + torch.from_numpy(codec.decode(arrays, cell))
            else:
                value = torch.from_numpy(codec.decode(arrays, cell))
            own[name].copy_(value.reshape(own[name].shape))
    return twin
