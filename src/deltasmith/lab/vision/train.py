"""Train the vision family: one weak base for all tasks, frozen heads, and one expert for each task.

Needs torch. No merging here.

The base learns alphabets that are no task, and of every task one picture of each class: as CLIP, it can see
but hardly knows the tasks. Then the heads are frozen, as the text heads of CLIP are in the papers, and every
expert fine-tunes the trunk on all training pictures of its own task. The heads lie apart from the trunks, in
`heads.safetensors`. Weights are float32: small deltas would drown in bfloat16. The seed and the version of
torch decide the result but for last bits, which differ between processors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from deltasmith.errors import RefusedError
from deltasmith.lab.family import delta_statistics
from deltasmith.lab.train import Schedule
from deltasmith.lab.vision.data import AUXILIARY, Part, Pictures, digest, load_pictures
from deltasmith.lab.vision.vit import VitShape, features, initial, outcomes, write_trunk

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCHEDULES", "augmented", "build_family", "train"]

Params = Mapping[str, "Tensor"]
Batch = Mapping[str, Part]


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "base": Schedule(steps=2500, rate=2e-3, batch=4, warmup=100, decay=0.05),
        "expert": Schedule(steps=300, rate=1e-3, batch=64, warmup=20),
    }
)
"""Adam's runs; `batch` counts the pictures of each task in a step."""
_TURN, _SHIFT, _STRETCH = 0.17, 0.1, 0.1  # radians, half pictures, share of the size
_SHOTS = 1  # picture of each class in pre-training: the base has seen the classes, hardly learnt them
_AUXILIARY, _AUXILIARY_SHARE = "auxiliary", 24  # its pictures in a step, in batches of one task


def augmented(part: Part, rng: np.random.Generator, device: str) -> tuple[Tensor, Tensor]:
    """Turn, shift and stretch pictures a little, each its own way; the border continues outwards.

    At most 10 degrees, 1.4 pixels and a tenth of the size. Returns pictures and labels on `device`.
    """
    import torch
    from torch.nn import functional

    turn, stretch, right, down = rng.uniform(-1, 1, size=(4, len(part))).astype(np.float32)
    cos, sin = (f(_TURN * turn) * (1 + _STRETCH * stretch) for f in (np.cos, np.sin))
    theta = np.stack((cos, -sin, _SHIFT * right, sin, cos, _SHIFT * down), axis=1).reshape(-1, 2, 3)
    images = torch.from_numpy(part.images)[:, None]
    grid = functional.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved[:, 0].to(device), torch.from_numpy(part.labels).to(device)


def _batches(parts: Mapping[str, Part], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield `size` pictures of every task without end; each task is gone through in a new order every time."""
    queues = {name: np.empty(0, dtype=np.int64) for name in parts}
    while True:
        batch = {}
        for name, part in parts.items():
            count = size * _AUXILIARY_SHARE if name == _AUXILIARY else size
            while len(queues[name]) < count:
                queues[name] = np.concatenate((queues[name], rng.permutation(len(part))))
            chosen, queues[name] = np.split(queues[name], [count])
            batch[name] = part[chosen]
        yield batch


def _loss(params: Params, heads: Params, shape: VitShape, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Average the cross-entropies of the tasks, each scored by its own head."""
    import torch
    from torch.nn import functional

    device = str(next(iter(params.values())).device)
    moved = [augmented(part, rng, device) for part in batch.values()]
    tokens = features(params, shape, torch.cat([images for images, _ in moved]))[:, 0]
    pieces = torch.split(tokens, [len(labels) for _, labels in moved])
    losses = [
        functional.cross_entropy(functional.linear(piece, heads[name]), labels)
        for name, piece, (_, labels) in zip(batch, pieces, moved, strict=True)
    ]
    return torch.stack(losses).mean()


def train(
    params: Params,
    heads: Params,
    shape: VitShape,
    schedule: Schedule,
    parts: Mapping[str, Part],
    rng: np.random.Generator,
    say: Callable[[str], None],
    *,
    moving: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[list[float]]]:
    """Follow the gradient from `params`, and of the heads named by `moving`; the arguments stay as they are.

    Returns the new trunk, all heads, and `[step, loss]` pairs, each loss being the mean over the steps since
    the pair before.
    """
    import torch

    trunk = {name: value.clone().requires_grad_() for name, value in params.items()}
    tops = {n: v.clone().requires_grad_() if n in moving else v for n, v in heads.items()}
    weights = [*trunk.values(), *(tops[name] for name in moving)]
    groups = [
        {"params": [value for value in weights if value.ndim > 1], "weight_decay": schedule.decay},
        {"params": [value for value in weights if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))
    every = max(1, schedule.steps // 10)
    recent: list[float] = []
    log: list[list[float]] = []
    for step, batch in zip(range(schedule.steps), _batches(parts, schedule.batch, rng), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = _loss(trunk, tops, shape, batch, rng)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        recent.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            log.append([step + 1, round(math.fsum(recent) / len(recent), 4)])
            say(f"  step {step + 1:5d}  loss {log[-1][1]:.4f}")
            recent.clear()
    return _still(trunk), _still(tops), log


def _still(params: Params) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in params.items()}


def _few(task: Pictures, rng: np.random.Generator) -> Part:
    """Return the few training pictures of every class that pre-training sees."""
    classes = [np.flatnonzero(task.train.labels == label) for label in range(task.classes)]
    return task.train[np.sort(np.concatenate([rng.permutation(mine)[:_SHOTS] for mine in classes]))]


def _heads(parts: Mapping[str, Part], hidden: int, seed: int, device: str) -> dict[str, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed + 1)
    return {
        name: (torch.randn(int(part.labels.max()) + 1, hidden, generator=generator) * hidden**-0.5).to(device)
        for name, part in parts.items()
    }


def _generator(seed: int, label: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(label.encode())])


def build_family(
    data: Path,
    out: Path,
    seed: int,
    say: Callable[[str], None],
    *,
    device: str = "cpu",
    shape: VitShape | None = None,
    schedules: Mapping[str, Schedule] = SCHEDULES,
) -> dict[str, Any]:
    """Train the base and one expert for each task and write them under `out`; return `RECORD.json`.

    Writes `base/`, `experts/TASK/`, `heads.safetensors` and `RECORD.json`; `out` must not exist.
    """
    import torch

    if out.exists():
        raise RefusedError("the folder exists", where=str(out), fix="name one that does not")
    torch.use_deterministic_algorithms(device == "cpu")
    shape = shape or VitShape()
    tasks, auxiliary = load_pictures(data, seed)
    start = {name: value.to(device) for name, value in initial(shape, seed).items()}
    record: dict[str, Any] = {"format": 1, "seed": seed, "shape": asdict(shape), "dtype": "float32"}
    record |= {"torch": torch.__version__.split("+")[0], "device": device, "data": digest(tasks)}
    record |= {"shots": _SHOTS, "auxiliary": list(AUXILIARY)}
    record["schedules"] = {name: asdict(schedule) for name, schedule in schedules.items()}
    record["tasks"] = {name: _sizes(task) for name, task in tasks.items()}
    record["parameters"] = sum(value.numel() for value in start.values())
    record |= {"accuracy": {}, "deltas": {}, "losses": {}}

    def keep(label: str, params: Params, heads: Params, log: list[list[float]]) -> None:
        write_trunk(out / (label if label == "base" else f"experts/{label}"), params, shape)
        record["losses"][label] = log
        record["accuracy"][label] = _accuracy(params, shape, heads, tasks)
        say(f"  accuracy {record['accuracy'][label]}")

    say("base")
    base, heads, log = _pretrained(start, shape, schedules["base"], tasks, auxiliary, seed, say)
    keep("base", base, heads, log)
    _write_heads(out / "heads.safetensors", heads)
    for name, task in tasks.items():
        say(name)
        rng = _generator(seed, f"{name} order")
        expert, _, log = train(base, heads, shape, schedules["expert"], {name: task.train}, rng, say)
        keep(name, expert, heads, log)
        record["deltas"][name] = delta_statistics(base, expert)
    (out / "RECORD.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _pretrained(
    start: Params,
    shape: VitShape,
    schedule: Schedule,
    tasks: Mapping[str, Pictures],
    auxiliary: Part,
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[list[float]]]:
    """Train the base with new heads, and return it, the heads of the tasks, and its losses."""
    rng = _generator(seed, "base")
    parts = {name: _few(task, rng) for name, task in tasks.items()} | {_AUXILIARY: auxiliary}
    device = str(next(iter(start.values())).device)
    first = _heads(parts, shape.hidden, seed, device)
    base, heads, log = train(start, first, shape, schedule, parts, rng, say, moving=tuple(first))
    return base, {name: heads[name] for name in tasks}, log


def _write_heads(path: Path, heads: Params) -> None:
    from safetensors.torch import save

    plain = {name: head.cpu().contiguous() for name, head in heads.items()}
    path.write_bytes(save(plain, {"format": "pt"}))


def _sizes(task: Pictures) -> dict[str, int]:
    sizes = {"classes": task.classes, "train": len(task.train)}
    return {**sizes, "validation": len(task.validation), "test": len(task.test)}


def _accuracy(
    params: Params, shape: VitShape, heads: Params, tasks: Mapping[str, Pictures]
) -> dict[str, float]:
    """Return per cent of the test pictures named right, by task."""
    return {
        name: round(100 * float(outcomes(params, shape, heads[name], task.test).mean()), 2)
        for name, task in tasks.items()
    }
