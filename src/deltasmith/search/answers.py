"""A scored model's answers behind its scores: whether a score is a share of right answers, and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from deltasmith.evaluate.results import weighted_average
from deltasmith.evaluate.task import Average, Outcome

__all__ = ["Answers", "Interval", "intervals_of"]

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Answers:
    """Hold one task's outcomes and how they become one figure."""

    outcomes: tuple[Outcome, ...]
    average: Average

    @property
    def score(self) -> float:
        """Average the outcomes."""
        return weighted_average(
            [o.score for o in self.outcomes], [o.weight for o in self.outcomes], self.average
        )

    @property
    def share(self) -> bool:
        """Tell whether the score is a share, to be shown in per cent: a mean of scores within [0, 1]."""
        return self.average == "mean" and all(0 <= o.score <= 1 for o in self.outcomes)


def intervals_of(answers: Mapping[str, Answers]) -> dict[str, Interval]:
    """Return 95 % intervals over questions like these: of every task, and under `mean` of the mean over tasks.

    The mean is that of all questions together, weighted so that tasks count alike; its interval is a little too
    wide where tasks differ much. Left out is what nothing can be said of (a single question, say), the mean
    where a task is averaged otherwise, and the mean where a task has its name.
    """
    from deltasmith.evaluate.statistics import bootstrap_interval

    if not answers:
        return {}
    found: dict[str, Interval] = {}
    scores: list[float] = []
    weights: list[float] = []
    for name, answer in answers.items():
        counting = [o for o in answer.outcomes if o.weight]
        own = [o.weight for o in counting]
        found[name] = bootstrap_interval([o.score for o in counting], own, answer.average)
        scores += [o.score for o in counting]
        weights += [weight / math.fsum(own) for weight in own]
    if "mean" not in found and all(a.average == "mean" for a in answers.values()):
        found["mean"] = (
            bootstrap_interval(scores, weights, "mean") if len(found) > 1 else next(iter(found.values()))
        )
    return {name: interval for name, interval in found.items() if not any(map(math.isnan, interval))}
