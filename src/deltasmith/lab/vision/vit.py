"""A small Vision Transformer: its shape, its first weights, its forward pass, its files. No training here.

Tensors are named as in published ViT checkpoints, so that transformers' ViTModel loads the folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.lab.rows import Marks
from deltasmith.lab.vision.data import Part

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Observer", "VitShape", "features", "initial", "outcomes", "write_trunk"]

Observer = Callable[[str, "Tensor"], None]
"""Called with a linear layer's weight name and its input `(rows, in)`."""
_AT_ONCE = 250  # pictures; more would not fit the cache and be slower


@dataclass(frozen=True, slots=True)
class VitShape:
    """Fix the size of the trunk; `patch` must divide `side`, both in pixels."""

    hidden: int = 64
    inner: int = 256
    layers: int = 4
    heads: int = 4
    patch: int = 7
    side: int = 28
    norm_epsilon: float = 1e-6

    @property
    def patches(self) -> int:
        """Count the patches of a picture."""
        return (self.side // self.patch) ** 2

    def config(self) -> dict[str, Any]:
        """Write the shape down as the `config.json` of a ViTModel."""
        return {
            "architectures": ["ViTModel"],
            "attention_probs_dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": self.hidden,
            "image_size": self.side,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "layer_norm_eps": self.norm_epsilon,
            "model_type": "vit",
            "num_attention_heads": self.heads,
            "num_channels": 1,
            "num_hidden_layers": self.layers,
            "patch_size": self.patch,
            "qkv_bias": True,
            "torch_dtype": "float32",
        }


def initial(shape: VitShape, seed: int) -> dict[str, Tensor]:
    """Draw the first weights of a trunk, decided by `seed`."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden, area = shape.hidden, shape.patch**2

    def normal(*sizes: int, spread: float) -> Tensor:
        return torch.randn(*sizes, generator=generator) * spread

    params = {
        "embeddings.cls_token": normal(1, 1, hidden, spread=0.02),
        "embeddings.position_embeddings": normal(1, shape.patches + 1, hidden, spread=0.2),
        "embeddings.patch_embeddings.projection.weight": normal(
            hidden, 1, shape.patch, shape.patch, spread=area**-0.5
        ),
        "embeddings.patch_embeddings.projection.bias": torch.zeros(hidden),
    }
    matrices = {
        "attention.attention.query": (hidden, hidden),
        "attention.attention.key": (hidden, hidden),
        "attention.attention.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (shape.inner, hidden),
        "output.dense": (hidden, shape.inner),
    }
    for layer in range(shape.layers):
        at = f"encoder.layer.{layer}."
        for name, (rows, columns) in matrices.items():
            # What writes into the residual stream starts smaller, so that depth does not raise its variance.
            calm = (2 * shape.layers) ** -0.5 if name.endswith("output.dense") else 1.0
            params[f"{at}{name}.weight"] = normal(rows, columns, spread=calm * columns**-0.5)
            params[f"{at}{name}.bias"] = torch.zeros(rows)
        params |= _norm(f"{at}layernorm_before", hidden) | _norm(f"{at}layernorm_after", hidden)
    return params | _norm("layernorm", hidden)


def _norm(name: str, size: int) -> dict[str, Tensor]:
    import torch

    return {f"{name}.weight": torch.ones(size), f"{name}.bias": torch.zeros(size)}


def features(
    params: Mapping[str, Tensor], shape: VitShape, images: Tensor, observe: Observer | None = None
) -> Tensor:
    """Compute the last hidden state `(n, 1 + patches, hidden)` of pictures `(n, side, side)` with gradients.

    `observe` sees the input of every linear layer before that layer does.
    """
    import torch
    from torch.nn import functional

    count, size = len(images), shape.hidden // shape.heads

    def linear(x: Tensor, name: str) -> Tensor:
        if observe is not None:
            observe(f"{name}.weight", x.reshape(-1, x.shape[-1]))
        return functional.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        return functional.layer_norm(x, (shape.hidden,), weight, bias, shape.norm_epsilon)

    def heads(x: Tensor, name: str) -> Tensor:
        return linear(x, name).view(count, -1, shape.heads, size).transpose(1, 2)  # (n, heads, length, size)

    x = _patches(params, shape, images)
    x = torch.cat((params["embeddings.cls_token"].expand(count, -1, -1), x), 1)
    x = x + params["embeddings.position_embeddings"]
    for layer in range(shape.layers):
        at = f"encoder.layer.{layer}."
        y = norm(x, f"{at}layernorm_before")
        query, key, value = (heads(y, f"{at}attention.attention.{one}") for one in ("query", "key", "value"))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{at}attention.output.dense")
        y = functional.gelu(linear(norm(x, f"{at}layernorm_after"), f"{at}intermediate.dense"))
        x = x + linear(y, f"{at}output.dense")
    return norm(x, "layernorm")


def _patches(params: Mapping[str, Tensor], shape: VitShape, images: Tensor) -> Tensor:
    """Embed the patches, row by row; a convolution whose stride is its width is one matrix product."""
    from torch.nn import functional

    name, patch, rows = "embeddings.patch_embeddings.projection", shape.patch, shape.side // shape.patch
    cut = images.view(-1, rows, patch, rows, patch).transpose(2, 3).reshape(len(images), -1, patch * patch)
    return functional.linear(cut, params[f"{name}.weight"].flatten(1), params[f"{name}.bias"])


def outcomes(params: Mapping[str, Tensor], shape: VitShape, head: Tensor, part: Part) -> Marks:
    """Tell of every picture, in order, whether the class that scores highest is the right one.

    The class token times the rows of the head are the scores; nothing is augmented.
    """
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(part), _AT_ONCE):
            images = torch.from_numpy(part.images[start : start + _AT_ONCE]).to(head.device)
            best = torch.mm(features(params, shape, images)[:, 0], head.T).argmax(-1).cpu().numpy()
            found.append(best == part.labels[start : start + _AT_ONCE])
    return np.concatenate(found)


def write_trunk(folder: Path, params: Mapping[str, Tensor], shape: VitShape) -> None:
    """Write a trunk as a Hugging Face folder in float32: config.json and model.safetensors."""
    from safetensors.torch import save

    folder.mkdir(parents=True)
    whole = {name: value.float().cpu().contiguous() for name, value in params.items()}
    # Not save_file: it would leave a file that only its owner can read.
    (folder / "model.safetensors").write_bytes(save(whole, {"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n", encoding="utf-8")
