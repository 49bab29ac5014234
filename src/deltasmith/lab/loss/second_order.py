"""What chance costs: the excess that second order expects of k-DARE, against the mean over many masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from deltasmith.analysis.curvature import fisher_excess, hessian_excess
from deltasmith.analysis.objective import Vector
from deltasmith.lab.loss.bench import Subject
from deltasmith.lab.loss.biased import gradient
from deltasmith.lab.loss.points import k_dare
from deltasmith.lab.loss.predictions import change, short
from deltasmith.lab.rows import Row

__all__ = ["KS", "MASKS", "PROBES", "RATES", "run"]

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
KS = (0.0, -1.0, -0.5, 0.5, 0.8)
MASKS = 12
PROBES = 16
"""Hutchinson's probes, and draws of labels for Fisher's diagonal."""


def run(subject: Subject) -> Iterator[Row]:
    """Measure every k and p over all masks: one row each, with the mean change and what was expected of it.

    `low` and `high` are the mean's, over other items. `masks` lists what every mask did: value, low, high, and the
    first-order term, gradient times edit, which is zero on average over masks and most of the noise of few of them.
    """
    expert, base = subject.expert, subject.base()
    unit = _excess(subject, expert, base)
    slope = gradient(subject.ground, expert)
    before = subject.ground.losses(expert)
    for rate in RATES:
        for k in KS:
            ends = [subject.family.made(subject.task, k_dare(k, rate), mask) for mask in range(MASKS)]
            changes = [subject.ground.losses(end) - before for end in ends]
            firsts = [sum(float(np.sum(slope[n] * (end[n] - expert[n]))) for n in slope) for end in ends]
            ratio = (1 - k) ** 2 * rate / (1 - rate)
            keys: dict[str, Any] = {"k": k, "rate": rate}
            keys |= {name: short(ratio * value) for name, value in unit.items()}
            keys |= change(np.mean(changes, axis=0), subject.ground.counts)
            told = zip(changes, firsts, strict=True)
            keys["masks"] = "; ".join(_listed(subject, one, first) for one, first in told)
            yield Row({**subject.keys, **keys}, subject.task, subject.marks(ends[0]))


def _listed(subject: Subject, changes: Vector, first: float) -> str:
    values = [*change(changes, subject.ground.counts).values(), first]
    return " ".join(f"{value:.5g}" for value in values)


def _excess(subject: Subject, expert: Any, base: Any) -> dict[str, float]:
    """Return ½ Σ H_ii δ_i² and its standard error, by both kinds: the excess of variance δ², which k and p scale."""
    objective = subject.ground.objective(expert, base)
    squared = {n: np.square(expert[n] - base[n], dtype=np.float64) for n in objective.names}
    hessian = hessian_excess(objective, squared, probes=PROBES)
    fisher = fisher_excess(objective, subject.sampled, squared, probes=PROBES)
    return {
        "hessian": hessian.total,
        "hessian_error": hessian.standard_error or 0.0,
        "fisher": fisher.total,
        "fisher_error": fisher.standard_error or 0.0,
    }
