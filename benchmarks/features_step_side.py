"""One side of the comparison of training steps: reads cases as lines of JSON, answers with milliseconds a step.

python features_step_side.py ours|saelens. The side of SAELens imports nothing of deltasmith, and runs in the
environment of SAELens.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch


def batches(case: dict[str, Any]) -> list[torch.Tensor]:
    """Two batches of activations with some structure: 3 * width directions, 8 of them present on a token."""
    draws = torch.Generator().manual_seed(0)
    width, rows = case["width"], case["batch"]
    directions = torch.randn(3 * width, width, generator=draws) / width**0.5

    def one() -> torch.Tensor:
        present = torch.rand(rows, 3 * width, generator=draws) < 8 / (3 * width)
        strength = present * (1 + torch.rand(rows, 3 * width, generator=draws))
        return strength @ directions * width**0.5 / 4 + 0.3 * torch.randn(rows, width, generator=draws)

    return [one(), one()]


def ours(case: dict[str, Any]) -> Callable[[torch.Tensor], object]:
    from deltasmith.features.dictionaries.dictionary import fresh, scale_of
    from deltasmith.features.dictionaries.settings import BatchTopK, Optimiser, ReluL1, TopK
    from deltasmith.features.dictionaries.trainer import Trainer

    kinds = {
        "topk": lambda: TopK(k=case["k"]),
        "batch-topk": lambda: BatchTopK(k=case["k"]),
        "relu-l1": lambda: ReluL1(coefficient=5.0),
    }
    sample = batches(case)[0]
    dictionary = fresh(kinds[case["kind"]](), case["latents"], sample, scale_of(sample), 0)
    return Trainer(dictionary, Optimiser(), 10_000).step


def saelens(case: dict[str, Any]) -> Callable[[torch.Tensor], object]:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    size = {"d_in": case["width"], "d_sae": case["latents"]}
    sae = {
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=case["k"])),
        "batch-topk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=case["k"])),
        "relu-l1": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(**size, l1_coefficient=5.0)),
    }[case["kind"]]()
    settings = SAETrainerConfig(
        total_training_samples=10_000 * case["batch"],
        train_batch_size_samples=case["batch"],
        lr=1e-3,
        lr_end=1e-4,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer: Any = SAETrainer(cfg=settings, sae=sae, data_provider=iter([]))

    def step(batch: torch.Tensor) -> None:
        trainer.step(batch)
        trainer.n_training_steps += 1

    return step


def main() -> None:
    warnings.simplefilter("ignore")
    sides: dict[str, tuple[Callable[..., Any], list[str]]] = {
        "ours": (ours, ["torch", "numba"]),
        "saelens": (saelens, ["torch", "sae-lens"]),
    }
    begin, packages = sides[sys.argv[1]]
    print(json.dumps({name: version(name) for name in packages}), flush=True)
    running: dict[str, Any] = {}
    for line in sys.stdin:
        case = json.loads(line)
        key = json.dumps([case["what"], case["threads"]])
        torch.set_num_threads(case["threads"])
        if key not in running:
            running.clear()  # the weights of one case at a time
            step, data = begin(case["what"]), batches(case["what"])
            running[key] = step, data
            for batch in data:  # compiling and first pages are not timed
                step(batch)
        step, data = running[key]
        times = []
        for i in range(case["steps"]):
            start = time.perf_counter()
            step(data[i % 2])
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
