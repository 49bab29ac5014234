"""What is measured at a point of a sweep, from codes and scores alone: what persists, is recovered, is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deltasmith.features.comparing import Comparison
from deltasmith.features.graph import Node
from deltasmith.features.origins import merge_outcome
from deltasmith.features.outcome import FATE, Fate
from deltasmith.features.rates import rate_of, share_of
from deltasmith.features.study import Score
from deltasmith.features.sweep_records import Choice, Kept, Origins, SweepPoint

__all__ = [
    "Scores",
    "chosen",
    "experts_of",
    "kept_of",
    "mean_accuracy",
    "origins_of",
    "recovered_accuracy",
    "recovered_loss",
    "smallest",
]

Scores = Mapping[str, Score]
"""By domain."""
_IDLE = (Fate.UNEXERCISED, Fate.DEAD)
_BEYOND = 2.0  # standard errors: a gain smaller than that is no ground to divide by


def kept_of(found: Comparison) -> Kept:
    """Count what became of a model's features, and take shares of the testable ones, with intervals."""
    testable = int(found.testable[0].sum())
    counts = {fate.value: int((found.paired.fate == at).sum()) for at, fate in enumerate(FATE)}
    rates = {
        fate.value: rate_of(share_of(found.fate == at, found.testable))
        for at, fate in enumerate(FATE)
        if testable and fate not in _IDLE
    }
    return Kept(testable, counts, rates)


def origins_of(
    parents: Sequence[str], root: str, into: Mapping[str, Comparison], lost_in: Mapping[str, Comparison]
) -> Origins | None:
    """Find where the merge's features come from; None with fewer than two parents.

    `into` are the comparisons of the root and of each parent with the merge, `lost_in` those of the root with each
    parent. The root stands for the base, unless it is one of the parents itself.
    """
    if len(parents) < 2:
        return None
    base = None if root in parents else root
    node = Node("merge", None, "merge", tuple(parents), base)
    lost = [] if base is None else [lost_in[label] for label in parents]
    found = merge_outcome(node, base, into, lost)
    testable = int(into[parents[0]].testable_child[0].sum())
    return Origins(testable, dict(found.counts), dict(found.rates) if testable else {})


def experts_of(root: Scores, parents: Mapping[str, Scores], domains: Sequence[str]) -> dict[str, str | None]:
    """Name for each domain the most accurate parent, if it is more accurate than the root by two standard errors.

    The standard error is that of the difference of two shares of so many tokens each, as if tokens were independent;
    the first of equally good parents is taken. Without such a parent nothing was learnt that could be recovered.
    """
    found: dict[str, str | None] = {}
    for domain in domains:
        best = max(parents, key=lambda label: parents[label][domain].accuracy, default=None)
        ground = root[domain]
        found[domain] = None
        if best is None:
            continue
        there = parents[best][domain]
        error = math.sqrt(_variance(there) + _variance(ground))
        if there.accuracy - ground.accuracy > _BEYOND * error:
            found[domain] = best
    return found


def _variance(score: Score) -> float:
    return score.accuracy * (1 - score.accuracy) / max(score.tokens, 1)


def recovered_accuracy(
    merge: Scores, root: Scores, parents: Mapping[str, Scores], experts: Mapping[str, str | None]
) -> dict[str, float | None]:
    """Return (accuracy - root's) / (expert's - root's) by domain: 0 is the root, 1 the expert; None without one."""
    return {
        domain: None
        if expert is None
        else (merge[domain].accuracy - root[domain].accuracy)
        / (parents[expert][domain].accuracy - root[domain].accuracy)
        for domain, expert in experts.items()
    }


def recovered_loss(
    merge: Scores, root: Scores, parents: Mapping[str, Scores], experts: Mapping[str, str | None]
) -> dict[str, float | None]:
    """Return (root's loss - loss) / (root's - expert's) by domain; None where the expert's loss is not lower."""
    found: dict[str, float | None] = {}
    for domain, expert in experts.items():
        gain = 0.0 if expert is None else root[domain].loss - parents[expert][domain].loss
        found[domain] = (root[domain].loss - merge[domain].loss) / gain if gain > 0 else None
    return found


def mean_accuracy(scores: Scores, experts: Mapping[str, str | None]) -> float:
    """Average the accuracy over the domains that have an expert; over all where none has."""
    domains = [domain for domain, expert in experts.items() if expert is not None] or list(experts)
    return math.fsum(scores[domain].accuracy for domain in domains) / len(domains)


def smallest(recovered: Mapping[str, float | None]) -> float | None:
    """Return the smallest recovered fraction; None where there is none."""
    return min((share for share in recovered.values() if share is not None), default=None)


def chosen(points: Sequence[SweepPoint], measure: str) -> Choice | None:
    """Return the point where `mean_accuracy` or `smallest_recovered` is largest, the first of equals; None without."""
    told = [(at, getattr(point, measure)) for at, point in enumerate(points)]
    told = [(at, score) for at, score in told if score is not None]
    if not told:
        return None
    at, score = max(told, key=lambda item: item[1])
    return Choice(points[at].value, at, score)
