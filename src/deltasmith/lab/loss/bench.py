"""The lab's experts as grounds: their own held-out items as data, their own marks as accuracy. Needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltasmith.analysis.curvature import Sampled
from deltasmith.kernels.bits import uniform_bits
from deltasmith.lab import EXPERTS
from deltasmith.lab.bench import Bench
from deltasmith.lab.loss.ground import Family, Ground, Tensors
from deltasmith.lab.rows import Marks
from deltasmith.lab.tasks import Split

__all__ = ["BATCH", "ITEMS", "PARTS", "PICTURES", "Subject", "language", "vision"]

ITEMS, BATCH = 48, 4
"""Held-out items that a loss is the mean over, in 12 chunks, which intervals resample."""
PICTURES, PARTS = 128, 16
"""At most so many pictures, in so many chunks."""


@dataclass(frozen=True)
class Subject:
    """One expert: what is measured of it and where.

    `ground` holds test items, `other` as many validation items; `marks` asks a model all test items.
    """

    keys: Mapping[str, Any]
    task: str
    family: Family
    ground: Ground
    other: Ground
    marks: Callable[[Tensors], Marks]
    sampled: Sampled
    """The loss of labels that the network draws itself, for Fisher's diagonal."""

    @property
    def expert(self) -> dict[str, Any]:
        """Return the expert's tensors."""
        return self.family.expert(self.task)

    def base(self) -> dict[str, Any]:
        """Return the base's tensors."""
        return self.family.made(self.task, {"edits": [{"amplify": {"factor": 0.0}}]})


def language(folder: Path, train_seed: int, regime: str, task: str) -> Subject:
    """Open one of a family's language experts."""
    from deltasmith.analysis.language import sampled_loss

    bench = Bench(folder, train_seed, regime, EXPERTS)
    family = Family(bench.base, {name: bench.expert(name) for name in EXPERTS})
    grounds = [_language_ground(bench, task, split) for split in ("test", "validation")]
    keys = {**bench.keys, "family": "language"}

    def marks(tensors: Tensors) -> Marks:
        return bench.marks(tensors, (task,), "test")[task]

    return Subject(keys, task, family, grounds[0], grounds[1], marks, sampled_loss)


def _language_ground(bench: Bench, task: str, split: Split) -> Ground:
    """Take the first items of a split as the command takes a file of prompts and answers."""
    from deltasmith.analysis.data import read_examples
    from deltasmith.analysis.language import LanguageChunks, language_loss
    from deltasmith.analysis.networks import load

    loaded = load(bench.expert(task), threads=1)
    assert loaded.tokenizer is not None, "the lab's models have one"
    with TemporaryDirectory(prefix="deltasmith-") as scratch:
        path = Path(scratch) / f"{task}.jsonl"
        items = bench.items(task, split)[:ITEMS]
        lines = [json.dumps({"prompt": item.prompt, "answer": item.answer}) for item in items]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = read_examples(path, loaded.tokenizer, length=512)
    laid = LanguageChunks.of(found.examples, BATCH, padding=loaded.tokenizer.padding)
    return Ground(loaded.network, laid.chunks, laid.counts, language_loss)


class _Trunk(nn.Module):
    """A vision trunk whose parameters are named as its tensors are, under the frozen head of one task."""

    def __init__(self, tensors: Tensors, shape: Any, head: Tensor) -> None:
        super().__init__()
        self.shape, self.head = shape, head
        for name, values in tensors.items():
            *path, leaf = name.split(".")
            home: nn.Module = self
            for part in path:
                if part not in dict(home.named_children()):
                    home.add_module(part, nn.Module())
                home = home.get_submodule(part)
            home.register_parameter(leaf, nn.Parameter(torch.from_numpy(values.copy())))

    def forward(self, images: Tensor) -> Tensor:
        from deltasmith.lab.vision.vit import features

        with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
            return torch.mm(features(dict(self.named_parameters()), self.shape, images)[:, 0], self.head.T)


def _cross_entropy(network: nn.Module, chunk: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = chunk
    return functional.cross_entropy(network(images), labels)


def _sampled_class(network: nn.Module, chunk: tuple[Tensor, Tensor], key: int) -> Tensor:
    """Average −log p of classes that the network draws itself."""
    from deltasmith.analysis.language import sample_labels

    scores = network(chunk[0])
    drawn = sample_labels(scores.detach(), uniform_bits(key, 0, len(scores)))
    return functional.cross_entropy(scores, drawn)


def vision(folder: Path, data: Path, task: str) -> Subject:
    """Open one of a family's vision experts, with the pictures it was trained on in `data`."""
    from deltasmith.lab.vision.bench import open_bench

    bench = open_bench(folder, data)
    experts = {name: bench.folder / "experts" / name for name in bench.tasks}
    family = Family(bench.folder / "base", experts)
    grounds = []
    for split in ("test", "validation"):
        part = bench.pictures[task].part(split)
        count = min(PICTURES, len(part))
        # Every so many: alphabets come ordered by character.
        chosen = np.linspace(0, len(part) - 1, count).round().astype(np.int64)
        chosen = np.concatenate([chosen[n::PARTS] for n in range(PARTS)])
        images, labels = torch.from_numpy(part.images[chosen]), torch.from_numpy(part.labels[chosen])
        size = -(-count // PARTS)
        chunks = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
        trunk = _Trunk(bench.tensors("experts", task), bench.shape, bench.heads[task])
        grounds.append(Ground(trunk, chunks, [len(y) for _, y in chunks], _cross_entropy))

    def marks(tensors: Tensors) -> Marks:
        return bench.marks(tensors, (task,), "test")[task]

    keys = {"train_seed": bench.train_seed, "mask_seed": 0, "regime": "vision", "family": "vision"}
    return Subject(keys, task, family, grounds[0], grounds[1], marks, _sampled_class)
