"""What Twin-Merging needs beyond linears: embeddings, tied heads and norms that are mixtures by given weights.

No gate chooses among their experts: while the gates decide, these are the shared expert's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltasmith.upscaling.linear import Mixture, given_weights

__all__ = ["MixedEmbedding", "MixedTiedHead", "mixed_norm"]


class MixedEmbedding(nn.Embedding):  # type: ignore[misc, unused-ignore]
    """Return E[id] + Σ w_i U_i[id] S_i V_iᵀ, with weights that the caller has set; E[id] without.

    `smile_svh` (T · k, width) holds S Vᵀ, `smile_u` (vocabulary, T · k) U.
    """

    def __init__(self, embedding: nn.Embedding, mixture: Mixture, rank: int) -> None:
        """Take over an embedding's table, and add zero experts of this rank."""
        nn.Module.__init__(self)
        for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type"):
            setattr(self, name, getattr(embedding, name))
        self.scale_grad_by_freq, self.sparse = embedding.scale_grad_by_freq, embedding.sparse
        self.weight, self.mixture, self.rank = embedding.weight, mixture, rank
        count = mixture.experts * rank
        self.smile_svh = nn.Parameter(embedding.weight.new_zeros(count, self.embedding_dim))
        self.smile_u = nn.Parameter(embedding.weight.new_zeros(self.num_embeddings, count))

    def forward(self, input: Tensor) -> Tensor:
        """Look ids (...) up and return (..., width); ids that all rows share become one copy for each row."""
        weights = self.mixture.weights
        if weights is None:
            return super().forward(input)
        if weights.dim() == 2 and input.dim() == 2 and len(input) == 1:
            input = input.expand(len(weights), -1)
        weights = given_weights(weights.to(self.smile_u), input.numel()).repeat_interleave(self.rank, dim=1)
        inner = functional.embedding(input.reshape(-1), self.smile_u) * weights
        return super().forward(input) + (inner @ self.smile_svh).view(*input.shape, -1)


class MixedTiedHead(nn.Linear):  # type: ignore[misc, unused-ignore]
    """Return h (E + Σ w_i U_i S_i V_iᵀ)ᵀ for the embedding whose table is this head's weight."""

    def __init__(self, head: nn.Linear, embedding: MixedEmbedding) -> None:
        """Take over a head's parameters. The experts stay the embedding's own, so that files hold them once."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias
        self._embedding = [embedding]  # in a list, so that it is no submodule with names of its own

    def forward(self, input: Tensor) -> Tensor:
        """Apply the head to (..., width)."""
        table = self._embedding[0]
        logits: Tensor = super().forward(input)
        weights = table.mixture.weights
        if weights is None:
            return logits
        tokens = input.reshape(-1, self.in_features)
        weights = given_weights(weights.to(tokens), len(tokens)).repeat_interleave(table.rank, dim=1)
        inner = functional.linear(tokens, table.smile_svh) * weights
        return logits + functional.linear(inner, table.smile_u).view_as(logits)


class _MixedNorm:
    """What is put before a norm's own class: y + n Σ w_i Δg_i + Σ w_i Δb_i, n being the input, normalised.

    Any module that is affine in a 1-D weight will do, also one that multiplies by 1 + weight: n is what it gives for
    a weight of ones less what it gives for a weight of zeros. `smile_weight` and `smile_bias` are (T, width).
    """

    _plain: type

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Normalise (..., width) with the experts' weights mixed in."""
        own: Any = self
        inherited: Any = super()
        out = inherited.forward(hidden_states, *args, **kwargs)
        if own.mixture.weights is None:
            return out
        ones = torch.ones_like(own.weight)
        n = self._with(ones, hidden_states, args, kwargs) - self._with(0 * ones, hidden_states, args, kwargs)
        weights = given_weights(own.mixture.weights.to(own.smile_weight), n.numel() // n.shape[-1])
        change = n * (weights @ own.smile_weight).view_as(n)
        if "smile_bias" in own._parameters:
            change = change + (weights @ own.smile_bias).view_as(n)
        return out + change

    def _with(self, weight: Tensor, hidden_states: Any, args: Any, kwargs: Any) -> Tensor:
        """Apply the plain norm with another weight, on a stand-in that shares everything else."""
        stand_in: Any = object.__new__(self._plain)
        parameters = {**self.__dict__["_parameters"], "weight": weight}
        stand_in.__dict__ = {**self.__dict__, "_parameters": parameters}
        found: Tensor = stand_in.forward(hidden_states, *args, **kwargs)
        return found


@cache
def _norm_class(plain: type) -> type:
    return type(plain.__name__, (_MixedNorm, plain), {"__module__": plain.__module__, "_plain": plain})


def mixed_norm(norm: Any, mixture: Mixture) -> Any:
    """Return a norm of the same class with zero experts, which shares the given one's parameters."""
    plain: type = type(norm)
    kind: Any = _norm_class(plain)
    mixed: Any = object.__new__(kind)
    mixed.__dict__ = {**norm.__dict__, "_parameters": dict(norm.__dict__["_parameters"])}
    mixed.mixture = mixture
    names = ["weight", *(["bias"] if getattr(norm, "bias", None) is not None else [])]
    for name in names:
        shape = (mixture.experts, norm.weight.numel())
        mixed.register_parameter(f"smile_{name}", nn.Parameter(norm.weight.new_zeros(shape)))
    return mixed
