"""The loss of the candidates on the user's data: the only part of advice that runs a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.advice.facts import Loss
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, printable

if TYPE_CHECKING:
    from deltasmith.analysis.report import LossReport

__all__ = ["compared", "loss_terms", "refuse_unready"]

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

    reports = {
        name: loss(
            recipe, data=data, rules=("midpoint",), steps=_STEPS, threads=threads, memory=memory, stop=stop
        )
        for name, recipe in candidates
    }
    return compared(reports)


def compared(reports: Mapping[str, LossReport]) -> tuple[Loss, ...]:
    """Hold the candidates' reports, which are on the same data from the same start, against the best of them.

    Chunks that are hard for all candidates alike widen every interval, and not that of a difference of two.
    """
    from deltasmith.analysis.verdict import interval

    if not reports:
        return ()
    best = min(reports.values(), key=lambda report: report.measured.value)
    least, weights = np.asarray(best.changes), np.asarray(best.weights)
    found = []
    for name, report in reports.items():
        measured, predicted = report.measured, report.prediction("midpoint").change.value
        above = interval(np.asarray(report.changes) - least, weights)
        paired = (above.value, above.low, above.high) if report is not best else (0.0, 0.0, 0.0)
        found.append(Loss(name, predicted, measured.value, measured.low, measured.high, paired))
    return tuple(found)


def refuse_unready(data: str | Path) -> None:
    """Refuse what would keep the losses from being taken, before anything else is computed.

    Raises:
        MissingExtraError: torch or transformers is missing. DamagedInputError: there is no such file of data.
    """
    from deltasmith.evaluate.models.transformers_loading import require_transformers

    require_transformers("measuring the candidates' loss", "analysis")
    if not Path(data).is_file():
        raise DamagedInputError(
            "there is no such file", where=printable(str(data)), fix="give a file of text"
        )
