"""Line up several models' answers to one task by question; what cannot be lined up is said, not guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltasmith.evaluate.results import TaskResult, weighted_average
from deltasmith.evaluate.task import Average

__all__ = ["Sheet", "align"]


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """One task's scores, (models, questions), and what is the same for all models."""

    task: str
    metric: str
    average: Average
    higher_is_better: bool
    asked: int
    weights: NDArray[np.float64]  # (questions,)
    scores: NDArray[np.float64]  # (models, questions)

    @property
    def items(self) -> int:
        """Count the questions all models have answered."""
        return int(self.weights.size)

    @property
    def proportion(self) -> bool:
        """Tell whether scores are shares of right, higher better, so that tasks can be averaged."""
        within = bool(((self.scores >= 0) & (self.scores <= 1)).all())
        return self.average == "mean" and self.higher_is_better and within

    @property
    def sound(self) -> bool:
        """Tell whether every number is finite (and exp of a loss), no weight negative, and some weight positive."""
        finite = np.isfinite(self.scores).all() and np.isfinite(self.weights).all()
        if self.average == "perplexity":
            finite = finite and (self.scores < 700).all()  # exp(709.8) overflows
        return bool(finite and (self.weights >= 0).all() and self.weights.sum() > 0)

    def score(self, model: int) -> float:
        """Average one model's scores."""
        return weighted_average(self.scores[model].tolist(), self.weights.tolist(), self.average)


def align(task: str, results: Sequence[TaskResult], names: Sequence[str], partial: bool) -> Sheet | str:
    """Return the scores of all results by question, in the first one's order, or what keeps them apart.

    Incomplete results are aligned only with `partial`, on the questions all have answered. Questions must weigh
    the same for all: tokens are counted by a model's tokenizer, and losses per token of two cannot be compared.
    """
    first = results[0]

    def unlike(what: str, differs: Sequence[bool]) -> str:
        others = ", ".join(name for name, one in zip(names, differs, strict=True) if one)
        return f"task {task}: {others} and {names[0]} {what}"

    differ = [one.digest != first.digest for one in results]
    if any(differ):
        return unlike("were asked different questions or in a different way (digests differ)", differ)
    kind = (first.metric, first.average, first.higher_is_better, first.asked)
    differ = [(one.metric, one.average, one.higher_is_better, one.asked) != kind for one in results]
    if any(differ):
        return unlike("were scored differently (metric, average, direction or number of questions)", differ)
    incomplete = [name for name, one in zip(names, results, strict=True) if not one.complete]
    if incomplete and not partial:
        return (
            f"task {task} of {', '.join(incomplete)} is incomplete: finish the evaluation, or give --partial"
        )
    answered = [{outcome.id: outcome for outcome in one.outcomes} for one in results]
    differ = [found.keys() != answered[0].keys() for found in answered]
    if any(differ) and not incomplete:
        return unlike("answered different questions", differ)
    ids = [name for name in answered[0] if all(name in found for found in answered)]
    if not ids:
        return f"task {task}: there is no question that all have answered"
    differ = [any(found[name].weight != answered[0][name].weight for name in ids) for found in answered]
    if any(differ):
        return unlike("weigh its questions differently (their tokenizers differ)", differ)
    return Sheet(
        task,
        first.metric,
        first.average,
        first.higher_is_better,
        first.asked,
        np.array([answered[0][name].weight for name in ids], dtype=np.float64),
        np.array([[found[name].score for name in ids] for found in answered], dtype=np.float64),
    )
