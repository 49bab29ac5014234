"""What an evaluation may ask of a language model: how likely a text is, and how it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Continuation", "Decoding", "LanguageModel", "Likelihood", "TokenLoss"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """Ask how likely `text` is after `context`; with `ends`, the end-of-sequence token is its last token."""

    context: str
    text: str
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Hold the summed natural log-probability of a continuation's tokens, and their count.

    `greedy`: each was the likeliest at its place, so greedy decoding would have written the same.
    """

    logprob: float
    tokens: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Hold what one window of a text cost: summed negative log-probability in nats, and the tokens scored.

    `right` counts the tokens that were the likeliest at their place.
    """

    loss: float
    tokens: int
    right: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """Bound a greedy generation: it ends before the first of `stop`, at end of sequence, or after `tokens`."""

    tokens: int
    stop: tuple[str, ...] = ()


class LanguageModel(Protocol):
    """A causal language model with its tokenizer. All decoding is greedy, so answers do not depend on a seed."""

    @property
    def runtime(self) -> str:
        """Say what computes: `numpy`, or `transformers 5.2 on cpu, float32`."""

    @property
    def context(self) -> int:
        """Return the longest sequence, in tokens, the model is made for."""

    def likelihoods(self, asked: Sequence[Continuation]) -> list[Likelihood]:
        """Score continuations, in order. A context that is too long loses its front."""

    def windows(self, text: str) -> list[TokenLoss]:
        """Score every token of `text` once, in consecutive windows of at most `context` tokens."""

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> list[str]:
        """Continue each prompt greedily and return only what was added, cut before the stop sequence."""

    def chat(self, instruction: str) -> str:
        """Lay out one user message as the prompt the model's chat template asks for; as it is without one."""
