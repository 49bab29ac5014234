"""Small torch networks with data in chunks; importing this needs torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deltasmith.analysis.torch_objective import TorchObjective
from deltasmith.kernels.bits import uniform_bits

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other

Chunk = tuple[Tensor, Tensor]


class Classifier(nn.Module):
    """inputs → tanh → logits; 31 parameters, and one more that nothing uses."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.inner, self.outer = nn.Linear(3, 4, dtype=dtype), nn.Linear(4, 3, dtype=dtype)
        self.idle = nn.Parameter(torch.zeros(2, dtype=dtype))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=drawn, dtype=dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.outer(torch.tanh(self.inner(inputs)))
        return logits


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(5, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 5, bias=False, dtype=torch.float64)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight.copy_(torch.randn(5, 4, generator=drawn, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.embedding(tokens)))
        return logits


def loss_of(network: nn.Module, chunk: Chunk) -> Tensor:
    """Mean cross-entropy of a chunk."""
    inputs, labels = chunk
    return cross_entropy(network(inputs), labels)


def sampled_loss_of(network: nn.Module, chunk: Chunk, key: int) -> Tensor:
    """The same with labels that the network draws."""
    logits = network(chunk[0])
    with torch.no_grad():
        bits = torch.from_numpy(uniform_bits(key, 0, len(logits)).astype("float64")) * 2.0**-32
        labels = torch.searchsorted(logits.softmax(-1).cumsum(-1), bits[:, None])[:, 0].clamp(max=2)
    return cross_entropy(logits, labels)


def data(seed: int, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Chunk]:
    """Draw chunks of inputs and labels."""
    drawn = torch.Generator().manual_seed(1000 + seed)
    return [
        (torch.randn(n, 3, generator=drawn, dtype=dtype), torch.randint(0, 3, (n,), generator=drawn))
        for n in sizes
    ]


def trained(network: Classifier, chunks: list[Chunk]) -> Classifier:
    """Descend for a while, so that the curvature is positive, as it is of networks in use."""
    inputs, labels = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
    for _ in range(60):
        loss = cross_entropy(network(inputs), labels)
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.3 * (torch.zeros_like(parameter) if gradient is None else gradient)
    return network


def steps(network: nn.Module, seed: int, spread: float = 0.1) -> dict[str, Tensor]:
    """Draw a direction for every parameter."""
    drawn = torch.Generator().manual_seed(2000 + seed)
    return {
        name: spread * torch.randn(p.shape, generator=drawn, dtype=torch.float64).to(p.dtype)
        for name, p in network.named_parameters()
    }


def objective(
    network: nn.Module, direction: dict[str, Tensor], sizes: tuple[int, ...] = (5, 3, 4), **how: Any
) -> TorchObjective:
    """Put a classifier on a line over drawn data."""
    dtype = next(network.parameters()).dtype
    chunks = data(0, sizes, dtype)
    return TorchObjective(network, direction, chunks, [float(n) for n in sizes], how.get("loss", loss_of))
