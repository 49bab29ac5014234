"""The tensors to look at first: where most changed, where a few elements stick out, where rounding took most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasmith.advice.facts import hidden
from deltasmith.advice.measuring import Measured

__all__ = ["Risk", "risks_of"]

_EACH = 3
_STANDS_OUT = 3.0
_OUTLIER = 5.0
_MANY = 0.01
_HIDDEN = 0.3


@dataclass(frozen=True)
class Risk:
    """One tensor of one model, what is the matter with it, and the number that says so."""

    tensor: str
    label: str
    what: str
    value: float


def risks_of(measured: Sequence[Measured]) -> tuple[Risk, ...]:
    """Return up to three tensors a model of each kind, worst first.

    `relative change`: ‖δ‖ / ‖base‖ at least three times the model's median tensor. `outliers`: of matrices alone, at
    least 1 % of |δ| above 5 times the tensor's mean (of a Laplace distribution 0.7 % lie there, of a normal one none).
    `rounding`: at least 30 % unmoved because the stored type is too coarse.
    """
    found: list[Risk] = []
    labels = list(measured[0].columns) if measured else []
    for label in labels:
        kept = [
            (one, one.columns[label]) for one in measured if one.size and one.columns[label].change.squares
        ]
        norms = sorted(column.change.relative_norm for _, column in kept)
        middle = norms[len(norms) // 2] if norms else 0.0
        changed = [
            Risk(one.name, label, "relative change", column.change.relative_norm)
            for one, column in kept
            if column.change.relative_norm >= _STANDS_OUT * middle
        ]
        sticking = [
            Risk(one.name, label, "outliers", column.spectrum.above(_OUTLIER * column.change.mean) / one.size)
            for one, column in kept
            if len(one.shape) > 1
        ]
        rounded = [
            Risk(one.name, label, "rounding", share[0])
            for one, _ in kept
            if (share := hidden(one, label)) is not None
        ]
        for group, least in ((changed, 0.0), (sticking, _MANY), (rounded, _HIDDEN)):
            worst = sorted((r for r in group if r.value >= least), key=lambda r: (-r.value, r.tensor))
            found += worst[:_EACH]
    return tuple(found)
