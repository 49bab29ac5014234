"""Controls: an expert merged with itself, and experts that share no base.

Averaging an expert with itself must give the expert, bit for bit. Experts of different training seeds have the same
shape and nothing else in common, so averaging their weights should leave nothing of either. (Task arithmetic at λ = 1
adds one expert's delta to the other expert as it is, and so keeps the latter: that is no merge.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.errors import VerificationError
from deltasmith.lab.bench import Bench
from deltasmith.lab.experiments.merges import FINE
from deltasmith.lab.rows import Row

__all__ = ["PAIR", "run"]

PAIR = ("math", "code")


def run(bench: Bench, stranger: Path) -> Iterator[Row]:
    """Merge the first expert with itself, and with a second one with and without a common base.

    `stranger` is the family of another training seed; λ of task arithmetic is tuned on validation items.
    """
    first, second = PAIR
    yield from _rows(bench, "itself", "average", _same(bench, first), (first,))
    partners = {"shared": bench.expert(second), "none": stranger / bench.regime / second}
    for shared, partner in partners.items():
        recipe = bench.recipe([first])
        recipe["models"].append({"model": str(partner), "label": second})
        yield from _rows(bench, shared, "average", bench.merged({**recipe, "merge": "mean"}), PAIR)
        weights = {"models": recipe["models"], "preset": "slerp", "t": 0.5, "base": recipe["base"]}
        yield from _rows(bench, shared, "slerp", bench.merged(weights), PAIR)
        trials = [{**recipe, "merge": "sum", "scale": scale} for scale in FINE]
        best = max(trials, key=lambda trial: bench.mean(bench.merged(trial), PAIR, "validation"))
        yield from _rows(bench, shared, "ta", bench.merged(best), PAIR)


def _same(bench: Bench, task: str) -> dict[str, Any]:
    """Average an expert with itself, and refuse to go on if that is not the expert."""
    models = [{"model": str(bench.expert(task)), "label": label} for label in ("one", "two")]
    averaged = bench.merged({"base": str(bench.base), "models": models, "preset": "average"})
    expert = bench.tensors(bench.expert(task))
    different = [name for name in expert if not np.array_equal(averaged[name], expert[name])]
    if different:
        raise VerificationError(
            "an expert averaged with itself is not the expert", where=different[0], fix="report this bug"
        )
    return averaged


def _rows(
    bench: Bench, shared: str, method: str, tensors: Mapping[str, Any], tasks: tuple[str, ...]
) -> Iterator[Row]:
    for task, marks in bench.marks(tensors, tasks, "test").items():
        yield Row({**bench.keys, "base": shared, "method": method}, task, marks)
