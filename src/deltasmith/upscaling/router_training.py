"""The router's training: mean states and labels to three linears, the epoch chosen on examples held out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltasmith.table.checkpoint import Floats
from deltasmith.upscaling.examples import Divided, order
from deltasmith.upscaling.settings import ROUTER, RouterShape

__all__ = ["Trained", "train_router"]

_RATE = 5e-4
_DROPOUT = 0.5
_BATCH, _LEAST_BATCH = 1024, 8
_STEPS = 16
"""Batches of an epoch, at least: what 1024 comes to on three experts' 5500 examples. Few examples take smaller ones."""
_PATIENCE = 10


@dataclass(frozen=True)
class Trained:
    """A trained router's tensors by their names in the files, and how it did on examples that it has not seen."""

    tensors: dict[str, Floats] = field(repr=False)
    confusion: tuple[tuple[int, ...], ...]
    epoch: int
    epochs: int

    @property
    def accuracy(self) -> float:
        """Return the fraction of reported examples whose own expert has the largest weight."""
        right = sum(row[index] for index, row in enumerate(self.confusion))
        return right / sum(map(sum, self.confusion))


def train_router(
    states: Tensor,
    labels: Sequence[int],
    divided: Divided,
    shape: RouterShape,
    experts: int,
    *,
    epochs: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Trained:
    """Train an MLP by cross entropy to name the expert of each mean state (examples, width), where they lie.

    AdamW at 5e-4 without decay, falling linearly to zero; batches of 1024, or of a sixteenth of the examples where
    these are few. After each epoch the loss on `divided.choosing` is taken; the router of the lowest is kept, and
    ten epochs without a lower one end the training. `check` is called after each epoch, and may raise. The seed
    decides first weights, dropout and order; the caller's random numbers are left as they were.

    Paper: Lu et al., 2024, Twin-Merging (arXiv 2406.15479). Departures: the released code keeps the epoch of the
    best accuracy on the test inputs, and always trains for all epochs.
    """
    device = states.device
    wanted = torch.tensor(list(labels), device=device)
    parts = [
        torch.tensor(part, device=device) for part in (divided.training, divided.choosing, divided.reported)
    ]
    training, choosing, reported = [(states[part], wanted[part]) for part in parts]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed % (1 << 63))
        network = _network(shape, experts).to(device)
        kept, epoch, seen = _fitted(network, training, choosing, epochs, seed, check)
    with torch.inference_mode():
        chosen = kept(reported[0]).argmax(dim=-1)
    confusion = torch.zeros(experts, experts, dtype=torch.long, device=device)
    confusion.index_put_((reported[1], chosen), torch.ones_like(chosen), accumulate=True)
    counts = tuple(tuple(row) for row in confusion.tolist())
    return Trained(_folded(kept), counts, epoch, seen)


def _network(shape: RouterShape, experts: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for columns in (shape.width, shape.hidden):
        layers += [nn.Linear(columns, shape.hidden), nn.BatchNorm1d(shape.hidden), nn.LeakyReLU()]
        layers += [nn.Dropout(_DROPOUT)]
    return nn.Sequential(*layers, nn.Linear(shape.hidden, experts))


def _fitted(
    network: nn.Sequential,
    training: tuple[Tensor, Tensor],
    choosing: tuple[Tensor, Tensor],
    epochs: int,
    seed: int,
    check: Callable[[], None],
) -> tuple[nn.Sequential, int, int]:
    """Return the best network, the epoch after which it stood, and how many epochs there were."""
    count = len(training[0])
    size = min(_BATCH, max(_LEAST_BATCH, count // _STEPS))
    steps = max(1, count // size)  # the last batch takes the rest, so that none is too small to normalise
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.0)
    lowest, kept, best = float("inf"), copy.deepcopy(network).eval(), 0
    epoch = 0
    for epoch in range(1, epochs + 1):
        network.train()
        shuffled = torch.tensor(order(count, "epoch", seed, epoch), device=training[0].device)
        for step in range(steps):
            rate = _RATE * (1 - ((epoch - 1) * steps + step) / (epochs * steps))
            rows = shuffled[step * size : (step + 1) * size if step < steps - 1 else count]
            _step(network, optimiser, rate, training[0][rows], training[1][rows])
        network.eval()
        with torch.inference_mode():
            loss = float(functional.cross_entropy(network(choosing[0]), choosing[1]))
        if loss < lowest:
            lowest, kept, best = loss, copy.deepcopy(network), epoch
        check()
        if epoch - best >= _PATIENCE:
            break
    return kept, best, epoch


def _step(
    network: nn.Sequential, optimiser: torch.optim.Optimizer, rate: float, states: Tensor, labels: Tensor
) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss = functional.cross_entropy(network(states), labels)
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    optimiser.step()


def _folded(network: nn.Sequential) -> dict[str, Floats]:
    """Write each normalisation into the linear before it: y = γ (W x + b − μ) / √(σ² + ε) + β, in float64."""
    found: dict[str, Floats] = {}
    modules: list[Any] = list(network)
    for number, module in enumerate(m for m in modules if isinstance(m, nn.Linear)):
        weight, bias = module.weight.detach().double(), module.bias.detach().double()
        after = modules[modules.index(module) + 1 :][:1]
        if after:
            norm = after[0]
            scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = scale[:, None] * weight
            bias = scale * (bias - norm.running_mean.double()) + norm.bias.detach().double()
        found[f"{ROUTER}.weight_{number}"] = weight.float().cpu().numpy()
        found[f"{ROUTER}.bias_{number}"] = bias.float().cpu().numpy()
    return found
