"""Twin-Merging's router: the mean of a prompt's last hidden states to one weight per expert."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltasmith.upscaling.settings import RouterShape

__all__ = ["Router", "mean_states", "real_tokens"]


class Router(nn.Module):  # type: ignore[misc, unused-ignore]
    """Return softmax(MLP(h)) for (rows, width) as (rows, experts) in float32: each row's weights, summing to 1.

    Three linears, LeakyReLU (slope 0.01) after the first two. In training, batch normalisation and dropout stand
    before and after each LeakyReLU; the former is folded into the linears here, where it is an affine map, and the
    latter is nothing.

    Paper: Lu et al., 2024, Twin-Merging (arXiv 2406.15479).
    """

    def __init__(self, shape: RouterShape, experts: int) -> None:
        """Make a router of zeros, which weighs all experts alike until its tensors are loaded."""
        super().__init__()
        self.padding = shape.padding
        sizes = pairwise((shape.width, shape.hidden, shape.hidden, experts))
        for number, (columns, rows) in enumerate(sizes):
            for name, size in ((f"weight_{number}", (rows, columns)), (f"bias_{number}", (rows,))):
                zeros = torch.zeros(size, dtype=torch.float32)
                self.register_parameter(name, nn.Parameter(zeros, requires_grad=False))

    def forward(self, states: Tensor) -> Tensor:
        """Weigh the experts for mean states (rows, width)."""
        own: Any = self
        hidden = states.to(own.weight_0)
        hidden = functional.leaky_relu(functional.linear(hidden, own.weight_0, own.bias_0))
        hidden = functional.leaky_relu(functional.linear(hidden, own.weight_1, own.bias_1))
        return functional.linear(hidden, own.weight_2, own.bias_2).float().softmax(dim=-1)


def mean_states(states: Tensor, real: Tensor) -> Tensor:
    """Average (rows, tokens, width) over the tokens where `real` (rows, tokens) is true, in float32.

    A row without any is zero.
    """
    counted = torch.where(real[..., None], states.float(), 0.0)
    return counted.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)


def real_tokens(ids: Tensor | None, mask: Tensor | None, like: Tensor, padding: int | None) -> Tensor:
    """Tell which tokens are no padding, as (rows, tokens): by the mask, or else by the id of the padding token."""
    if mask is not None and mask.dim() == 2 and mask.shape == like.shape[:2]:
        return mask.to(like.device) > 0
    if ids is not None and padding is not None:
        return ids.to(like.device) != padding
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
