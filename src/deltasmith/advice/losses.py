"""The loss of the candidates on the user's data: the only part of advice that runs a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasmith.advice.facts import Loss
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop

__all__ = ["loss_terms"]

_STEPS = 2  # of the midpoint rule, which is exact on quadratics; two gradients a candidate


def loss_terms(
    candidates: Sequence[tuple[str, Mapping[str, Any]]],
    data: str | Path,
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    stop: Stop | None = None,
) -> tuple[Loss, ...]:
    """Return the predicted and measured change of the loss of every candidate, given as (name, recipe).

    Of an edit of one model from that model, of a merge from the base, in nats per token; the prediction is the midpoint
    rule's with two steps. Raises what `deltasmith.analysis.run.loss` raises.
    """
    from deltasmith.analysis.run import loss

    found = []
    for name, recipe in candidates:
        report = loss(
            recipe, data=data, rules=("midpoint",), steps=_STEPS, threads=threads, memory=memory, stop=stop
        )
        measured = report.measured
        predicted = report.prediction("midpoint").change.value
        found.append(Loss(name, predicted, measured.value, measured.low, measured.high))
    return tuple(found)
