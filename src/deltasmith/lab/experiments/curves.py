"""One expert pruned alone: how much of its own task survives as more of its delta is removed.

DARE's experiment (arXiv 2311.03099, figures on drop rates), DELLA's Table 3, and DPPA's claim that 20 % of a delta
suffice where random dropping fails (arXiv 2403.02799).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltasmith.lab.bench import Bench
from deltasmith.lab.rows import Row
from deltasmith.planning.dppa_search import best_of, search

__all__ = ["AMPLIFIED", "MASK_SEEDS", "METHODS", "RANDOM", "RATES", "run", "window_at"]

RATES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
AMPLIFIED = (0.8, 0.9, 0.95)
"""Rates at which the amplification factors of DPA are searched; 0.8 is the released code's."""
METHODS = ("dare", "magprune", "magnitude", "magnitude_rescaled", "dp", "dp_dpa")
RANDOM = ("dare", "magprune")
MASK_SEEDS = 5
START = (1.0, 1.0)


def run(bench: Bench) -> Iterator[Row]:
    """Prune every expert at every rate by every method and ask it the test items of its own task."""
    for task in bench.tasks:
        yield _row(bench, task, "base", 1.0, 0, bench.tensors(bench.base))
        yield _row(bench, task, "expert", 0.0, 0, bench.tensors(bench.expert(task)))
        for rate in RATES:
            for method in METHODS[:-1]:
                for mask_seed in range(MASK_SEEDS if method in RANDOM else 1):
                    edits = _edits(method, rate)
                    yield _row(bench, task, method, rate, mask_seed, _pruned(bench, task, edits, mask_seed))
            if rate in AMPLIFIED:
                factors, evaluations = _factors(bench, task, rate)
                tensors = _pruned(bench, task, [_amplify(rate, factors)], 0)
                extra = {"factors": " ".join(map(str, factors)), "evaluations": evaluations}
                yield _row(bench, task, "dp_dpa", rate, 0, tensors, **extra)


def window_at(rate: float) -> float:
    """Return MAGPRUNE's window: 0.14 as in DELLA's example, less where probabilities would leave (0, 1)."""
    return round(min(0.14, 1.6 * min(rate, 1.0 - rate)), 4)


def _edits(method: str, rate: float) -> Sequence[Mapping[str, Any]]:
    density = round(1.0 - rate, 4)
    largest = {"keep_largest": {"density": density}}
    return {
        "dare": [{"drop": {"density": density}}],
        "magprune": [{"drop_by_rank": {"density": density, "window": window_at(rate)}}],
        "magnitude": [largest],
        "magnitude_rescaled": [largest, {"amplify": {"factor": 1.0 / density}}],
        "dp": [{"dynamic_prune": {"density": density}}],
    }[method]


def _amplify(rate: float, factors: tuple[float, ...]) -> Mapping[str, Any]:
    density = round(1.0 - rate, 4)
    return {"amplify_partitions": {"densities": [density / 2, density], "factors": list(factors)}}


def _factors(bench: Bench, task: str, rate: float) -> tuple[tuple[float, ...], int]:
    """Search the two factors greedily, as DPPA does, on the validation items of the expert's own task."""

    def value(factors: tuple[float, ...]) -> float:
        tensors = _pruned(bench, task, [_amplify(rate, factors)], 0)
        return bench.mean(tensors, (task,), "validation")

    visits = list(search(value, START))
    return best_of(visits).factors, len(visits)


def _pruned(bench: Bench, task: str, edits: Sequence[Mapping[str, Any]], mask_seed: int) -> dict[str, Any]:
    recipe = bench.recipe([task], merge="sum", seed=mask_seed)
    recipe["models"][0]["edits"] = edits
    return bench.merged(recipe)


def _row(
    bench: Bench, task: str, method: str, rate: float, mask_seed: int, tensors: dict[str, Any], **extra: Any
) -> Row:
    marks = bench.marks(tensors, (task,), "test")[task]
    keys = {**bench.keys, "mask_seed": mask_seed, "method": method, "rate": rate, **extra}
    return Row(keys, task, marks)
