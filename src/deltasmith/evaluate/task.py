"""What a task is: numbered questions, and a way to answer a batch of them with a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from deltasmith.evaluate.language import LanguageModel

__all__ = ["Average", "Outcome", "Task"]

Average = Literal["mean", "perplexity"]
"""`mean`: Σ weight·score / Σ weight. `perplexity`: its exponential (scores are losses per token, weights tokens)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold what one question brought: its id, a finite score, its weight in the average, and what to keep of it.

    `detail` is plain JSON: the generated text, the verdict of each check.
    """

    id: str
    score: float
    weight: float = 1.0
    detail: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A named set of questions. Their ids are unique and do not depend on the model."""

    @property
    def name(self) -> str:
        """Return the name results are listed under."""

    @property
    def metric(self) -> str:
        """Name what a score means: `exact_match`, `pass@1`, `perplexity`."""

    @property
    def average(self) -> Average:
        """Say how scores become one figure."""

    @property
    def higher_is_better(self) -> bool:
        """Say which way is up."""

    @property
    def digest(self) -> str:
        """Hash everything but the model that decides the outcomes: data, prompts, options."""

    @property
    def ids(self) -> Sequence[str]:
        """Return the questions' ids in order."""

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Answer the named questions, in their order."""
