"""ExPO with a line search: α is chosen on validation items, and paid for on test items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deltasmith.analysis.line_search import line_search
from deltasmith.lab.loss.bench import Subject
from deltasmith.lab.loss.predictions import change, short
from deltasmith.lab.rows import Row

__all__ = ["ALPHAS", "run"]

ALPHAS = tuple(step / 10 for step in range(-10, 11))


def run(subject: Subject) -> Iterator[Row]:
    """Measure every α of the paper's grid on both halves, then the α that a line search finds on the first."""
    expert = subject.expert
    before, other = subject.ground.losses(expert), subject.other.losses(expert)

    def at(alpha: float, by: str) -> Row:
        end = subject.family.made(subject.task, {"edits": [{"amplify": {"factor": 1 + alpha}}]})
        chosen = subject.other.mean(subject.other.losses(end) - other)
        keys: dict[str, Any] = {"alpha": alpha, "by": by, "validation": short(chosen)}
        keys |= change(subject.ground.losses(end) - before, subject.ground.counts)
        return Row({**subject.keys, **keys}, subject.task, subject.marks(end))

    grid = [at(alpha, "grid") for alpha in ALPHAS]
    yield from grid
    yield at(_searched(subject), "search")


def _searched(subject: Subject) -> float:
    """Let the line search go along the delta; it searches on every other chunk of the validation items."""
    expert, base = subject.expert, subject.base()
    end = {name: 2 * expert[name] - base[name] for name in expert}
    return line_search(subject.other.objective(expert, end), ALPHAS[0], ALPHAS[-1]).alpha
