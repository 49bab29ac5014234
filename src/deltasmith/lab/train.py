"""Training the lab's language models: what a step sees, and the steps. No merging, no files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING

from deltasmith.lab import tasks
from deltasmith.lab.network import Shape, forward
from deltasmith.lab.tokens import BOS, EOS, PAD, CharTokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCHEDULES", "Schedule", "finetuning_rows", "pretraining_rows", "train"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Fix one run of AdamW: the rate climbs over `warmup` steps to `rate`, then falls straight to a tenth."""

    steps: int
    rate: float
    warmup: int
    decay: float = 0.0
    batch: int = 64

    def rate_at(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        climb = min(1.0, (step + 1) / self.warmup)
        return self.rate * climb * (1.0 - 0.9 * step / self.steps)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "base": Schedule(steps=3000, rate=3e-3, warmup=100, decay=0.1),
        "small": Schedule(steps=120, rate=3e-4, warmup=10),
        "medium": Schedule(steps=200, rate=1e-3, warmup=10),
        "large": Schedule(steps=300, rate=3e-3, warmup=10),
    }
)
"""The regimes differ in the size of their deltas, each about three times the one before: methods rank differently."""


Row = tuple[list[int], int]  # token ids, and how many of them at the front carry no loss


def pretraining_rows(tokenizer: CharTokenizer, rng: Random) -> Iterator[Row]:
    """Yield documents between `<bos>` and `<eos>` without end; every token after the first is learnt."""
    for text in tasks.pretraining_text(rng):
        yield [BOS, *tokenizer.encode(text), EOS], 1


def finetuning_rows(tokenizer: CharTokenizer, task: str, rng: Random) -> Iterator[Row]:
    """Yield training problems of one task without end; only the answer and `<eos>` are learnt."""
    for example in tasks.examples(task, "train", rng):
        prompt = [BOS, *tokenizer.encode(f"{example.prompt}\n")]
        yield [*prompt, *tokenizer.encode(example.answer), EOS], len(prompt)


def _batches(rows: Iterator[Row], size: int, rng: Random) -> Iterator[list[Row]]:
    # Rows of like length share a batch, which spares a third of the arithmetic that padding would cost.
    while True:
        pool = sorted(itertools.islice(rows, 8 * size), key=lambda row: len(row[0]))
        cuts = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(cuts)
        yield from cuts


def _loss(params: Mapping[str, Tensor], shape: Shape, batch: list[Row]) -> Tensor:
    import torch
    from torch.nn import functional

    length = max(len(ids) for ids, _ in batch)
    tokens = torch.full((len(batch), length), PAD)
    targets = torch.full((len(batch), length), -100)  # -100: cross_entropy's ignore_index
    for index, (ids, silent) in enumerate(batch):
        row = torch.tensor(ids)
        tokens[index, : len(ids)] = row
        targets[index, silent - 1 : len(ids) - 1] = row[silent:]
    device = params["model.norm.weight"].device
    logits = forward(params, shape, tokens[:, :-1].to(device))
    return functional.cross_entropy(logits.flatten(0, 1), targets[:, :-1].flatten().to(device))


def train(
    params: Mapping[str, Tensor],
    shape: Shape,
    schedule: Schedule,
    rows: Iterator[Row],
    rng: Random,
    say: Callable[[str], None],
    device: str = "cpu",
) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Follow the gradient from `params` and round the end point to bfloat16; `params` stay as they are.

    Returns the new tensors (float32 values that bfloat16 holds exactly) and `[step, loss]` pairs, each loss
    being the mean over the steps since the pair before.
    """
    import torch

    moving = {name: value.to(device, copy=True).requires_grad_() for name, value in params.items()}
    groups = [
        {"params": [value for value in moving.values() if value.ndim > 1], "weight_decay": schedule.decay},
        {"params": [value for value in moving.values() if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))
    every = max(1, schedule.steps // 20)
    recent: list[float] = []
    log: list[list[float]] = []
    for step, batch in enumerate(itertools.islice(_batches(rows, schedule.batch, rng), schedule.steps)):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = _loss(moving, shape, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            log.append([step + 1, round(math.fsum(recent) / len(recent), 4)])
            say(f"  step {step + 1:5d}  loss {log[-1][1]:.4f}")
            recent.clear()
    return {name: value.detach().bfloat16().float().cpu() for name, value in moving.items()}, log
