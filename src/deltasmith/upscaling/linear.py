"""One linear map that has become a mixture: the base's, and each expert's low-rank change, weighed for each token.

The mathematics of SMILE is here; what is upscaled, and from which files, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltasmith.upscaling.settings import DENSE

__all__ = ["Chosen", "MixedConv1D", "Mixture", "SmileLinear", "given_weights", "route"]


@dataclass
class Mixture:
    """What all linears of one model share: how many experts a token has, and weights that overrule the gates.

    `weights` is None (the gates decide), (experts,), or (rows of the batch, experts). `prompt` are the weights that
    a router has given the prompts, while text is generated from them. While `alone`, no expert counts.
    """

    experts: int
    top_k: int = 1
    weights: Tensor | None = None
    prompt: Tensor | None = None
    alone: bool = False

    @contextmanager
    def holding(self, **state: Any) -> Iterator[None]:
        """Set fields, and put back what they were."""
        before = {name: getattr(self, name) for name in state}
        vars(self).update(state)
        try:
            yield
        finally:
            vars(self).update(before)


@dataclass(frozen=True)
class Chosen:
    """The experts of each token: `index` and `weight`, both (tokens, k), best first."""

    index: Tensor
    weight: Tensor

    def dense(self, experts: int) -> Tensor:
        """Return the weights as (tokens, experts), zero where an expert was not chosen."""
        return self.weight.new_zeros(len(self.weight), experts).scatter(1, self.index, self.weight)


def route(tokens: Tensor, gate: Tensor, experts: int, top_k: int) -> Chosen:
    """Choose the `top_k` experts of each token by the part of it that lies in each expert's input directions.

    `tokens` is (tokens, in) and `gate` (experts · r, in), an expert's rows being its r leading right singular
    vectors. With r_i = ‖V_iᵀ x‖₂, p = softmax(r), the k largest p are kept and divided by their sum. Norms and
    softmax are computed in float32. Ties go to the earlier expert; one expert gets the weight 1.
    """
    count = len(tokens)
    if experts == 1:
        return Chosen(
            torch.zeros(count, 1, dtype=torch.long, device=tokens.device),
            torch.ones(count, 1, dtype=torch.float32, device=tokens.device),
        )
    parts = functional.linear(tokens, gate).view(count, experts, len(gate) // experts)
    kind = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    likely = torch.linalg.vector_norm(parts.to(kind), dim=-1).softmax(dim=-1)
    best, index = likely.sort(dim=-1, descending=True, stable=True)
    best, index = best[:, :top_k], index[:, :top_k]
    return Chosen(index, best / best.sum(dim=-1, keepdim=True))


def given_weights(weights: Tensor, tokens: int) -> Tensor:
    """Return (tokens, experts) from weights for all tokens, or for each row of a batch of equally long rows.

    Raises:
        ValueError: the tokens cannot be shared out evenly among the rows.
    """
    if weights.dim() == 1:
        return weights.expand(tokens, -1)
    rows = len(weights)
    if rows == 0 or tokens % rows:
        raise ValueError(
            f"weights are set for {rows} rows, and {tokens} tokens came; set them for this batch"
        )
    return weights.repeat_interleave(tokens // rows, dim=0)


class _Mixed(nn.Module):  # type: ignore[misc, unused-ignore]
    """What a linear and GPT-2's transposed one have in common: the experts' tensors and their sum.

    `smile_gate` (T·r, in); `smile_svh` (T·k, in) and `smile_u` (out, T·k), S being in the former; or `smile_dense`
    (T·out, in); `smile_bias` (T, out) where the base has a bias, the experts' biases less the base's.
    """

    mixture: Mixture
    rank: int
    weight: Tensor
    bias: Tensor | None
    smile_gate: Tensor
    smile_svh: Tensor
    smile_u: Tensor
    smile_dense: Tensor
    smile_bias: Tensor

    def _grow(
        self, mixture: Mixture, out: int, columns: int, rank: int, router_rank: int, like: Tensor
    ) -> None:
        """Add the experts' tensors, all zero: until they are loaded, the module is its base."""
        self.mixture, self.rank = mixture, rank
        count = mixture.experts
        shapes = {"smile_gate": (count * router_rank, columns)}
        if rank == DENSE:
            shapes["smile_dense"] = (count * out, columns)
        else:
            shapes |= {"smile_svh": (count * rank, columns), "smile_u": (out, count * rank)}
        if self.bias is not None:
            shapes["smile_bias"] = (count, out)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(like.new_zeros(shape)))

    def _plus_change(self, base: Tensor, tokens: Tensor) -> Tensor:
        """Add what the experts change to what the base makes of the tokens."""
        return base if self.mixture.alone else base + self._change(tokens)

    def _change(self, tokens: Tensor) -> Tensor:
        """Return Σ p_i (ΔW_i x + Δb_i) for (tokens, in) as (tokens, out)."""
        experts = self.mixture.experts
        if self.mixture.weights is not None:
            weights = given_weights(self.mixture.weights.to(tokens.device), len(tokens))
            return self._all(tokens, weights.to(tokens.dtype))
        chosen = route(tokens, self.smile_gate, experts, self.mixture.top_k)
        if self.mixture.top_k == experts:
            return self._all(tokens, chosen.dense(experts).to(tokens.dtype))
        return self._sorted(tokens, chosen)  # faster even for one token and three experts: docs/upscaling.md

    def _all(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Compute every expert for every token, and weigh them: two products, whatever the number of experts."""
        if self.rank == DENSE:
            each = functional.linear(tokens, self.smile_dense).view(len(tokens), self.mixture.experts, -1)
            change = (each * weights[:, :, None]).sum(dim=1)
        else:
            inner = functional.linear(tokens, self.smile_svh)
            inner = inner * weights.repeat_interleave(self.rank, dim=1)
            change = functional.linear(inner, self.smile_u)
        return change if self.bias is None else change + weights @ self.smile_bias

    def _expert(self, tokens: Tensor, number: int) -> Tensor:
        """Return ΔW_i x + Δb_i for one expert."""
        bias = None if self.bias is None else self.smile_bias[number]
        if self.rank == DENSE:
            out = len(self.smile_dense) // self.mixture.experts
            return functional.linear(tokens, self.smile_dense[number * out : (number + 1) * out], bias)
        at = slice(number * self.rank, (number + 1) * self.rank)
        return functional.linear(functional.linear(tokens, self.smile_svh[at]), self.smile_u[:, at], bias)

    def _sorted(self, tokens: Tensor, chosen: Chosen) -> Tensor:
        """Send each token to its experts only."""
        change = tokens.new_zeros(len(tokens), self._out)
        for number in range(self.mixture.experts):
            row, place = (chosen.index == number).nonzero(as_tuple=True)
            if len(row):
                part = self._expert(tokens[row], number)
                change.index_add_(0, row, part * chosen.weight[row, place, None].to(part.dtype))
        return change

    @property
    def _out(self) -> int:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Say the shape and what the mixture is made of."""
        kept = "whole deltas" if self.rank == DENSE else f"rank {self.rank}"
        shape = f"in_features={self.smile_gate.shape[1]}, out_features={self._out}"
        return f"{shape}, bias={self.bias is not None}, experts={self.mixture.experts} of {kept}"


class SmileLinear(_Mixed, nn.Linear):  # type: ignore[misc, unused-ignore]
    """Return (W x + b) + Σ p_i (U_i S_i V_iᵀ x + Δb_i), the p_i chosen anew for each token.

    Takes (..., in) and returns (..., out) in the type of the weights. It has the linear's own `weight` and `bias`
    under their own names, so that a mixture's file is the base's file with tensors added.

    Paper: Tang et al., 2024, SMILE: Zero-Shot Sparse Mixture of Low-Rank Experts Construction From Pre-Trained
    Foundation Models (arXiv 2408.10174).
    """

    def __init__(self, linear: nn.Linear, mixture: Mixture, rank: int, router_rank: int) -> None:
        """Take over a linear's parameters, and add zero experts of this rank (-1: dense)."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._grow(mixture, linear.out_features, linear.in_features, rank, router_rank, linear.weight)

    @property
    def _out(self) -> int:
        return int(self.out_features)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the base and the chosen experts to (..., in)."""
        tokens = input.reshape(-1, self.in_features)
        mixed = self._plus_change(functional.linear(tokens, self.weight, self.bias), tokens)
        return mixed.view(*input.shape[:-1], self.out_features)


class MixedConv1D(_Mixed):
    """The same as `SmileLinear` for the transposed linear of GPT-2 (transformers' Conv1D): W is (in, out)."""

    def __init__(self, linear: Any, mixture: Mixture, rank: int, router_rank: int) -> None:
        """Take over a Conv1D's parameters, and add zero experts of this rank (-1: dense)."""
        super().__init__()
        self.nx, self.nf = (int(size) for size in linear.weight.shape)
        self.weight, self.bias = linear.weight, linear.bias
        self._grow(mixture, self.nf, self.nx, rank, router_rank, linear.weight)

    @property
    def _out(self) -> int:
        return self.nf

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base and the chosen experts to (..., in)."""
        tokens = x.reshape(-1, self.nx)
        mixed = self._plus_change(functional.linear(tokens, self.weight.T, self.bias), tokens)
        return mixed.view(*x.shape[:-1], self.nf)
