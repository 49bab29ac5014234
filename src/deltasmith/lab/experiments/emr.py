"""EMR's table: one model for all tasks against one unified vector with a mask and a rescaler per task, step by step.

Paper: Huang et al. 2024, arXiv 2405.17461, Tables 1 and 9 (ablation of elect, mask, rescale). EMR keeps a bit per
parameter and task and is told which task it faces; the static merges above it are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deltasmith.lab.bench import Bench
from deltasmith.lab.experiments.merges import LINES, tune
from deltasmith.lab.rows import Row
from deltasmith.table.checkpoint import Floats

__all__ = ["METHODS", "STATIC", "run"]

STATIC = ("base", "experts", "average", "ta", "ties")
METHODS = (*STATIC, "elect", "elect_mask", "elect_rescale", "emr", "emr_l2", "emr_mean")


def run(bench: Bench) -> Iterator[Row]:
    """Ask static merges of all experts, and each task's own model of every EMR variant, the test items."""
    tasks = bench.tasks
    lines = {line.name: line for line in LINES}
    base = bench.tensors(bench.base)
    yield from _rows(bench, "base", dict.fromkeys(tasks, base))
    yield from _rows(bench, "experts", {task: bench.tensors(bench.expert(task)) for task in tasks})
    average = bench.merged(bench.recipe(tasks, merge="mean"))
    yield from _rows(bench, "average", dict.fromkeys(tasks, average))
    for name in ("ta", "ties"):
        fields = tune(bench, lines[name], tasks).fields
        recipe = bench.recipe(tasks, merge=fields["merge"], scale=fields["scale"])
        for model in recipe["models"]:
            model["edits"] = [fields["edit"]] if "edit" in fields else []
        merged = bench.merged(recipe)
        yield from _rows(bench, name, dict.fromkeys(tasks, merged))
    yield from _variants(bench, base)


def _variants(bench: Bench, base: Mapping[str, Floats]) -> Iterator[Row]:
    tasks = bench.tasks
    unified = bench.merged(bench.recipe(tasks, merge="unify", dtype="float32"))
    elected = {name: unified[name] - base[name] for name in base}
    deltas = {
        task: {name: value - base[name] for name, value in bench.tensors(bench.expert(task)).items()}
        for task in tasks
    }
    masked = {
        task: {name: np.where(delta[name] * elected[name] > 0, elected[name], np.float32(0)) for name in base}
        for task, delta in deltas.items()
    }
    factor = {task: _l1(deltas[task]) / _l1(masked[task]) for task in tasks}
    # Without a mask the unified vector is as long as all tasks together: matched to the task's own L1 norm.
    unmasked = {task: _l1(deltas[task]) / _l1(elected) for task in tasks}
    yield from _rows(bench, "elect", dict.fromkeys(tasks, unified))
    yield from _rows(bench, "elect_mask", {task: _added(base, masked[task], 1.0) for task in tasks})
    yield from _rows(bench, "elect_rescale", {task: _added(base, elected, unmasked[task]) for task in tasks})
    yield from _rows(bench, "emr", {task: _added(base, masked[task], factor[task]) for task in tasks})
    for name, rescaler in (("emr_l2", "l2"), ("emr_mean", "l1_tensor_mean")):
        fields: dict[str, Any] = {"preset": "emr", "rescaler": rescaler, "dtype": "float32"}
        models = {task: bench.merged(bench.recipe(tasks, task=task, **fields)) for task in tasks}
        yield from _rows(bench, name, models)


def _l1(delta: Mapping[str, Floats]) -> float:
    return float(sum(np.abs(value, dtype=np.float64).sum() for value in delta.values()))


def _added(base: Mapping[str, Floats], delta: Mapping[str, Floats], factor: float) -> dict[str, Floats]:
    return {name: base[name] + np.float32(factor) * delta[name] for name in base}


def _rows(bench: Bench, method: str, models: Mapping[str, Mapping[str, Floats]]) -> Iterator[Row]:
    for task, tensors in models.items():
        yield Row({**bench.keys, "method": method}, task, bench.marks(tensors, (task,), "test")[task])
