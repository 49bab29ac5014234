"""Drops that are not random: by the sign of the delta, and by the sign of its product with the gradient.

The ablation behind Table 1 of A Unified View of Delta Parameter Editing (arXiv 2410.13841). The page does not state
p, so several are tried; nor on which data the gradient was taken, so it is taken on the items that the loss is
measured on (`same`) and on others (`other`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from deltasmith.lab.loss.bench import Subject
from deltasmith.lab.loss.ground import Ground, Tensors
from deltasmith.lab.loss.points import KINDS
from deltasmith.lab.loss.predictions import change
from deltasmith.lab.rows import Row

__all__ = ["KS", "RATES", "gradient", "run"]

KS = (0.5, 0.7, 0.9, 1.1, 1.3, 1.5)
RATES = (0.1, 0.5, 0.9)
_EDITS = {"random": "drop_partly", "sign": "bias_by_sign"}


def run(subject: Subject) -> Iterator[Row]:
    """Edit the expert in all four ways at every k and p; measure the loss on test items and mark the answers."""
    expert = subject.expert
    before = subject.ground.losses(expert)
    with TemporaryDirectory(prefix="deltasmith-") as scratch:
        files = {}
        for kind, ground in ((KINDS[2], subject.other), (KINDS[3], subject.ground)):
            files[kind] = _written(Path(scratch) / f"{ground is subject.ground}.safetensors", ground, expert)
        for rate in RATES:
            for k in KS:
                for kind in KINDS:
                    fields = {"density": round(1 - rate, 4), "k": k}
                    edits = {"edits": [{_EDITS.get(kind, "bias_by_gradient"): fields}]}
                    end = subject.family.made(subject.task, edits, statistics=files.get(kind))
                    keys: dict[str, Any] = {"kind": kind, "k": k, "rate": rate}
                    keys |= change(subject.ground.losses(end) - before, subject.ground.counts)
                    yield Row({**subject.keys, **keys}, subject.task, subject.marks(end))


def gradient(ground: Ground, at: Tensors) -> dict[str, Any]:
    """Return the gradient of the mean loss there, in float64."""
    ground.put(at)
    parameters = dict(ground.network.named_parameters())
    total: Mapping[str, Any] = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for chunk, count in zip(ground.chunks, ground.counts, strict=True):
        found = torch.autograd.grad(ground.loss(ground.network, chunk), list(parameters.values()))
        for name, part in zip(parameters, found, strict=True):
            total[name].add_(part.double(), alpha=float(count) / float(np.sum(ground.counts)))
    return {name: value.numpy() for name, value in total.items()}


def _written(path: Path, ground: Ground, at: Tensors) -> Path:
    from safetensors.numpy import save_file

    found = {name: value.astype(np.float32) for name, value in gradient(ground, at).items()}
    save_file(
        found, path, {"format": "deltasmith-stats-1", "kind": "gradient", "examples": str(len(ground.chunks))}
    )
    return path
