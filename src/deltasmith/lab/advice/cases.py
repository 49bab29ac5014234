"""From the lab's rows to cases: which methods were best, or level with the best, by a paired bootstrap over items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltasmith.advice.experience import MergeCase, PruneCase
from deltasmith.advice.facts import Facts
from deltasmith.lab.experiments.merges import LINES
from deltasmith.lab.rows import Results, Row, grouped
from deltasmith.lab.summary import difference

__all__ = ["PRUNING", "Standing", "Surveyed", "merge_cases", "prune_cases", "standings"]

PRUNING = ("dare", "magprune", "magnitude", "dp")
"""Pruning methods of the lab that need no search."""
RATE = 0.9
Surveyed = Mapping[tuple[int, str, tuple[str, ...]], Facts]
"""Facts by training seed, regime and models."""


@dataclass(frozen=True)
class Standing:
    """One case of the lab: the mean score of every method, and those that are best or level with the best."""

    seed: int
    regime: str
    models: tuple[str, ...]
    setting: str
    means: Mapping[str, float]
    best: tuple[str, ...]
    found: Mapping[str, Mapping[str, Any]]


def standings(results: Results, setting: str) -> list[Standing]:
    """Return the cases of `merges.json` under one setting (`tuned`, `default`), with the settings each method had."""
    rows = results.where(setting=setting).rows
    cases = grouped(rows, lambda r: (r.keys["train_seed"], r.keys["regime"], r.keys["models"]))
    found = []
    for (seed, regime, models), members in cases.items():
        by = grouped(members, lambda r: str(r.keys["method"]))
        settings = {
            m: {"scale": rows[0].keys["scale"], "fields": rows[0].keys["fields"]} for m, rows in by.items()
        }
        means = {method: mean(rows) for method, rows in by.items()}
        found.append(
            Standing(seed, regime, tuple(models.split("+")), setting, means, level(by, means), settings)
        )
    return found


def mean(rows: Sequence[Row]) -> float:
    """Average accuracies over mask seeds, then over tasks."""
    by_task = grouped(rows, lambda r: r.task)
    return float(np.mean([np.mean([row.accuracy for row in task]) for task in by_task.values()]))


def level(by: Mapping[str, Sequence[Row]], means: Mapping[str, float]) -> tuple[str, ...]:
    """Return the best method and all whose paired 95 % interval to it reaches zero, in the methods' order."""
    best = max(by, key=lambda method: means[method])
    return tuple(m for m in by if m == best or difference(by[best], by[m]).interval[0] <= 0)


def prune_cases(curves: Results, surveyed: Surveyed) -> Iterator[PruneCase]:
    """Yield a case for every expert of `curves.json`: its own task, at a rate of 0.9."""
    cases = grouped(curves.rows, lambda r: (r.keys["train_seed"], r.keys["regime"], r.task))
    for (seed, regime, task), members in cases.items():
        rows = {m: [r for r in members if r.keys["method"] == m and r.keys["rate"] == RATE] for m in PRUNING}
        whole = mean([r for r in members if r.keys["method"] == "expert"])
        means = {method: mean(found) for method, found in rows.items()}
        facts = surveyed[seed, regime, (task,)]
        kept = {method: round(value / whole, 4) for method, value in means.items()}
        yield PruneCase(
            seed,
            regime,
            task,
            round(facts.relative, 5),
            round(facts.models[0].q90, 6),
            kept,
            level(rows, means),
        )


def merge_cases(found: Sequence[Standing], surveyed: Surveyed) -> Iterator[MergeCase]:
    """Yield what advice may learn from each case with all methods tuned."""
    of = {line.name: line for line in LINES}
    for case in found:
        fields = {method: _fields(str(had["fields"])) for method, had in case.found.items()}
        scales = {method: float(str(had["scale"])) for method, had in case.found.items()}
        assert set(scales) == set(of), "the lab's methods have changed"
        yield MergeCase(
            case.seed,
            case.regime,
            case.models,
            round(surveyed[case.seed, case.regime, case.models].relative, 5),
            case.best,
            scales,
            fields,
        )


def _fields(text: str) -> dict[str, Any]:
    """Read `density=0.2 window=0.14` or `factors=[1.8, 1.0]` back."""
    found = {}
    for part in text.replace(", ", ",").split():
        key, _, value = part.partition("=")
        found[key] = json.loads(value)
    return found
