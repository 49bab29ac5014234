"""One-layer Mistral models: training from a token stream, and the folders that transformers loads. Needs torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from deltasmith.lab.features.tokenizer import BOS, EOS, PAD, write_tokenizer_files
from deltasmith.lab.network import Shape, forward
from deltasmith.lab.train import Schedule

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

__all__ = [
    "BASE",
    "BRANCH",
    "SHAPE",
    "Mixture",
    "blocks_of",
    "config_of",
    "read_params",
    "train_on",
    "write_model",
]

SHAPE = Shape(hidden=128, inner=256, layers=1, heads=4, kv_heads=2, context=256, norm_epsilon=1e-6)
"""A quarter of the paper's model in every direction: it has 512 / 1024 / 16 / 8."""
BASE = Schedule(steps=1600, rate=3e-3, warmup=100, decay=0.1, batch=16)
BRANCH = Schedule(steps=600, rate=3e-4, warmup=30, decay=0.01, batch=8)
"""Batches are of pieces of 256 tokens. Fine-tunes learn at a tenth of the base's rate; the paper's learn at a
thirtieth, and far longer."""


@dataclass(frozen=True)
class Mixture:
    """Pieces of text to learn from, each domain as often as any other."""

    domains: tuple[npt.NDArray[np.int16], ...]

    def batches(self, size: int, rng: Random) -> Iterator[Tensor]:
        """Yield `(size, context)` tokens without end: every piece of a domain once before any comes again."""
        import numpy as np
        import torch

        decks: list[list[int]] = [[] for _ in self.domains]
        turn = 0
        while True:
            rows = []
            for _ in range(size):
                which = turn % len(self.domains)
                if not decks[which]:
                    decks[which] = list(range(len(self.domains[which])))
                    rng.shuffle(decks[which])
                rows.append(self.domains[which][decks[which].pop()])
                turn += 1
            yield torch.from_numpy(np.stack(rows).astype(np.int64))


def blocks_of(tokenizer: Any, documents: Sequence[str], context: int) -> npt.NDArray[np.int16]:
    """Cut the documents, `<eos>` after each, into pieces of `context` tokens that begin with `<bos>`."""
    import numpy as np

    ids: list[int] = []
    for found in tokenizer.encode_batch_fast(list(documents), add_special_tokens=False):
        ids += [*found.ids, EOS]
    count = len(ids) // (context - 1)
    body = np.array(ids[: count * (context - 1)], np.int16).reshape(count, context - 1)
    return np.concatenate((np.full((count, 1), BOS, np.int16), body), axis=1)


def train_on(
    params: Mapping[str, Tensor], shape: Shape, schedule: Schedule, mixture: Mixture, rng: Random
) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Follow the gradient of the next token's cross-entropy from `params`; these stay as they are.

    Returns the new tensors, float32, and twenty `[step, loss]` pairs, each loss the mean since the pair before.
    """
    import torch
    from torch.nn import functional

    moving = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [value for value in moving.values() if value.ndim > 1],
                "weight_decay": schedule.decay,
            },
            {"params": [value for value in moving.values() if value.ndim == 1], "weight_decay": 0.0},
        ],
        lr=schedule.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    every = max(1, schedule.steps // 20)
    log: list[list[float]] = []
    recent = torch.zeros(())
    batches = mixture.batches(schedule.batch, rng)
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        tokens = next(batches)
        logits = forward(moving, shape, tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
        optimiser.step()
        recent += loss.detach()
        if (step + 1) % every == 0:
            log.append([step + 1, round(recent.item() / every, 4)])
            recent.zero_()
    return {name: value.detach() for name, value in moving.items()}, log


def config_of(shape: Shape, vocab: int) -> dict[str, Any]:
    """Write the shape down as the `config.json` of a MistralForCausalLM without a sliding window."""
    llama = shape.config(vocab)
    dropped = ("attention_bias", "mlp_bias", "rope_scaling")
    return {name: value for name, value in llama.items() if name not in dropped} | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "sliding_window": None,
        "torch_dtype": "float32",
    }


def write_model(folder: Path, params: Mapping[str, Tensor], shape: Shape, tokenizer: Any) -> None:
    """Write float32 weights, config and tokenizer; the folder appears whole."""
    from safetensors.torch import save

    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(save(dict(params), {"format": "pt"}))
    config = json.dumps(config_of(shape, tokenizer.get_vocab_size()), indent=2)
    (partial / "config.json").write_text(config + "\n", encoding="utf-8")
    write_tokenizer_files(tokenizer, partial, shape.context)
    partial.replace(folder)


def read_params(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a model's folder."""
    from safetensors.torch import load

    return dict(load((folder / "model.safetensors").read_bytes()))
