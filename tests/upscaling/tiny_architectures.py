"""Tiny models of several architectures on disk, and fine-tunes of them that differ in the layers' linears only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
}
PICTURES = SMALL | {"image_size": 8, "patch_size": 4}
TOKENS = torch.tensor([[3, 5, 7, 11, 2], [1, 4, 9, 16, 25]])


def _language(kind: str, **changes: Any) -> Any:
    settings = SMALL | {"num_key_value_heads": 1, "max_position_embeddings": 32} | changes
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        settings[token] = None
    config = getattr(transformers, f"{kind}Config")(**settings)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def _clip() -> Any:
    text = SMALL | {"max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=PICTURES, projection_dim=8)
    )


def _gpt2() -> Any:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, bos_token_id=None, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: _language("Llama"),
    "qwen2": lambda: _language("Qwen2", tie_word_embeddings=True),
    "mistral": lambda: _language("Mistral", sliding_window=None),
    "gpt2": _gpt2,
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURES)),
    "clip": _clip,
    "clip_vision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**PICTURES)),
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SMALL, max_position_embeddings=40)
    ),
}
AUTO = {
    "vit": "AutoModelForImageClassification",
    "clip": "AutoModel",
    "clip_vision": "AutoModel",
    "roberta": "AutoModelForSequenceClassification",
}
LINEARS = {
    "llama": 14,
    "qwen2": 14,
    "mistral": 14,
    "gpt2": 8,
    "vit": 12,
    "clip": 24,
    "clip_vision": 12,
    "roberta": 12,
}


def build(kind: str, seed: int = 0) -> Any:
    """Make a model with weights large enough that every linear matters."""
    torch.manual_seed(seed)
    model = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def in_layers(model: Any) -> list[Any]:
    """List the linears under a layer number."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
    ]


def everything(model: Any) -> list[Any]:
    """List the modules that Twin-Merging mixes: linears, embeddings and norms, wherever they are."""
    kinds = (nn.Linear, Conv1D, nn.Embedding)
    return [m for m in model.modules() if isinstance(m, kinds) or "Norm" in type(m).__name__]


def tune(model: Any, seed: int, pick: Callable[[Any], list[Any]]) -> Any:
    """Move the weights and biases of some modules."""
    torch.manual_seed(100 + seed)
    with torch.no_grad():
        for parameter in {p: None for module in pick(model) for p in module.parameters(recurse=False)}:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def family(
    root: Path, kind: str, experts: int = 1, pick: Callable[[Any], list[Any]] = in_layers
) -> list[Any]:
    """Write `base`, `m0`, `m1`, … under `root`, and return the models."""
    models = [build(kind), *(tune(build(kind), i, pick) for i in range(experts))]
    for name, model in zip(["base", *(f"m{i}" for i in range(experts))], models, strict=True):
        model.save_pretrained(root / name)
    return models


def answer(kind: str, model: Any) -> torch.Tensor:
    """Return what a model says about a fixed input, as one tensor."""
    torch.manual_seed(5)
    pixels = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        if kind == "clip":
            return model(input_ids=TOKENS, pixel_values=pixels).logits_per_image
        if kind == "clip_vision":
            return model(pixel_values=pixels).last_hidden_state
        return model(pixels).logits if kind == "vit" else model(TOKENS).logits


def load(kind: str, folder: Path, **options: Any) -> Any:
    """Load a folder by the Auto class of its kind."""
    return getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM")).from_pretrained(folder, **options)
