"""The loss of a causal language model over chunks of examples: mean cross-entropy in nats per counted token.

Logits are wide. Where the network's last step is a plain linear head, its hidden states are computed once, and the
head and the cross-entropy in pieces of positions, each computed again on the way back: the memory does not grow by
tokens times vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from deltasmith.analysis.data import Example, chunked
from deltasmith.kernels.bits import uniform_bits

__all__ = ["Chunk", "LanguageChunks", "forward", "language_loss", "sample_labels", "sampled_loss"]

_IGNORED = -100
_PIECE = 1 << 24
"""Logits that are computed at once: 64 MiB of float32, and a few times that in the softmax and its gradient."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Examples that are computed together, padded on the right.

    `tokens` and `mask` are (examples, length); the mask is 1 where a token is. `labels` hold at position i the token
    that is predicted there, the one at i + 1, where it counts, and -100 elsewhere. `prompts` count each example's
    tokens before the first that counts.
    """

    tokens: Tensor
    mask: Tensor
    labels: Tensor
    prompts: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, examples: Sequence[Example], device: str | torch.device, padding: int) -> Chunk:
        """Lay examples out on a device."""
        shape = (len(examples), max(len(example.tokens) for example in examples))
        tokens = torch.full(shape, padding, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, _IGNORED, dtype=torch.long)
        firsts = tuple(max(example.first, 1) for example in examples)
        for row, (example, first) in enumerate(zip(examples, firsts, strict=True)):
            ids = torch.tensor(example.tokens)
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
            labels[row, first - 1 : len(ids) - 1] = ids[first:]
        count = sum(example.counted for example in examples)
        return cls(tokens.to(device), mask.to(device), labels.to(device), firsts, count)


@dataclass(frozen=True, eq=False)
class LanguageChunks:
    """All data of an analysis, laid out; `counts` are each chunk's counted tokens."""

    chunks: tuple[Chunk, ...]
    counts: tuple[float, ...]

    @classmethod
    def of(
        cls, examples: Sequence[Example], batch: int, device: str | torch.device = "cpu", padding: int = 0
    ) -> LanguageChunks:
        """Group `batch` examples at a time in their order, each with a counted token, and lay them out.

        Raises:
            RecipeError: `batch` is below 1.
        """
        chunks = tuple(Chunk.of(group, device, padding) for group in chunked(examples, batch))
        return cls(chunks, tuple(float(chunk.count) for chunk in chunks))


def language_loss(network: nn.Module, chunk: Chunk) -> Tensor:
    """Return the mean cross-entropy of the chunk's counted tokens, a scalar in nats per token.

    It can be differentiated twice. Logits narrower than float32 are widened.
    """
    scores = _scores(network, chunk)
    return scores.loss(chunk.labels[chunk.labels != _IGNORED])


def sampled_loss(network: nn.Module, chunk: Chunk, key: int) -> Tensor:
    """Return the mean of −log p of labels that the network itself draws at the counted positions, given the data.

    The labels are constants. The gradient g of this mean has expectation 0, and count · g² has the expectation of
    the diagonal of the Fisher matrix of one token, averaged over the counted tokens: labels are drawn independently.
    The same `key`, in [0, 2^64), draws the same labels from the same network.
    """
    scores = _scores(network, chunk)
    uniform = uniform_bits(key, 0, chunk.count)
    with torch.no_grad():
        drawn = [sample_labels(scores.logits(part), uniform[part]) for part in scores.parts()]
    return scores.loss(torch.cat(drawn))


def forward(network: nn.Module, chunk: Chunk) -> Any:
    """Run a network of transformers over a chunk; a mixture's router reads the prompts alone, as when it answers."""
    reading = getattr(network, "reading_prompts", None)
    context = nullcontext() if reading is None else reading(chunk.tokens, list(chunk.prompts))
    with context:
        return network(input_ids=chunk.tokens, attention_mask=chunk.mask, use_cache=False)


def sample_labels(logits: Tensor, bits: np.ndarray[Any, np.dtype[np.uint32]]) -> Tensor:
    """Draw a label for each row of `logits`, (n, labels) -> (n,), by inverting the distribution function in float64.

    `bits` are 32 random bits for each row; a label of probability p is drawn with probability p ± 2^-32.
    """
    summed = logits.double().softmax(dim=-1).cumsum(dim=-1)
    uniform = torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-32).to(logits.device)
    found = torch.searchsorted(summed, (uniform * summed[:, -1])[:, None])[:, 0]
    return found.clamp_(max=logits.shape[-1] - 1)


@dataclass(frozen=True)
class _Scores:
    """What the network says at the counted positions: `states` (n, width) which `head` turns into logits."""

    states: Tensor
    head: Callable[[Tensor], Tensor]
    labels: int

    def parts(self) -> list[slice]:
        """Divide the positions into pieces whose logits are computed together."""
        step = max(1, _PIECE // self.labels)
        return [slice(at, at + step) for at in range(0, len(self.states), step)]

    def logits(self, part: slice) -> Tensor:
        """Return the logits of a piece, in float32 or wider."""
        return _wide(self.head(self.states[part]))

    def loss(self, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy with the labels, (n,)."""

        def piece(states: Tensor, wanted: Tensor) -> Tensor:
            return cross_entropy(_wide(self.head(states)), wanted, reduction="sum")

        parts = self.parts()
        if len(parts) == 1:
            return piece(self.states, labels) / len(labels)
        # Not reentrant: then a parameter's gradient is complete once, after all pieces, as TorchObjective expects.
        sums = [
            checkpoint(piece, self.states[part], labels[part], use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
        return torch.stack(sums).sum() / len(labels)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _scores(network: nn.Module, chunk: Chunk) -> _Scores:
    """Run the network once, up to its head where that is a plain linear and the last step."""
    at = chunk.labels != _IGNORED
    head = _head(network)
    if head is not None and (states := _before_head(network, head, chunk)) is not None:
        return _Scores(states[at], head, head.out_features)
    logits = forward(network, chunk).logits
    return _Scores(logits[at], lambda states: states, logits.shape[-1])


def _head(network: nn.Module) -> nn.Linear | None:
    """Return the network's output linear, if it has one that is nothing else."""
    found = getattr(network, "get_output_embeddings", lambda: None)()
    return found if type(found) is nn.Linear else None


def _before_head(network: nn.Module, head: nn.Linear, chunk: Chunk) -> Tensor | None:
    """Return what enters the head, (examples, length, width); None where the head is not the network's last step.

    The network goes on with one position alone. What it makes of the head's output there tells whether it is the
    logits: some networks scale them or bound them afterwards, and this holds for those not listed anywhere too.
    """
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entered.extend(inputs)
        return tuple(states[:1, :1] for states in inputs)

    def leave(_: nn.Module, __: Any, output: Tensor) -> None:
        left.append(output.detach().clone())

    hooks = [head.register_forward_pre_hook(enter), head.register_forward_hook(leave)]
    try:
        found = forward(network, chunk).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(entered) != 1 or entered[0].shape[:2] != chunk.tokens.shape:
        return None
    final = found.detach()
    plain = final.shape == left[0].shape and bool(left[0].any()) and bool((final == left[0]).all())
    return entered[0] if plain else None
