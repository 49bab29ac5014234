"""The demonstration: every kind of merge on the bundled family, verified and evaluated."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith import api
from deltasmith.evaluate.items import Item, load_suite, score
from deltasmith.evaluate.llama import load_folder
from deltasmith.lab import EXPERTS as TASKS
from deltasmith.lab import family_folder
from deltasmith.lab.tokens import CharTokenizer

__all__ = ["FAMILY", "METHODS", "Row", "demonstrate"]

FAMILY = family_folder()

METHODS: Mapping[str, Mapping[str, Any]] = {
    "average": {"preset": "average"},
    "task_arithmetic": {"preset": "task_arithmetic", "scale": 0.5},
    "ties": {"preset": "ties", "density": 0.2},
    "dare": {"preset": "dare", "density": 0.5, "scale": 0.5},
    "dare_ties": {"preset": "dare_ties", "density": 0.5},
    "della": {"preset": "della", "density": 0.7, "window": 0.14},
    "dppa": {"preset": "dppa", "factors": [1.8, 1.0], "scale": 0.5},
}
"""Settings from the papers or their code where they state any, and none tuned on this family."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, what it gets right, what it costs."""

    name: str
    accuracy: Mapping[str, float]
    nbytes: int
    seconds: float
    note: str = ""

    @property
    def mean(self) -> float:
        """Average the accuracies, each task counting the same."""
        return sum(self.accuracy.values()) / len(self.accuracy)

    @property
    def worst(self) -> float:
        """Return the accuracy of the worst task."""
        return min(self.accuracy.values())

    def as_json(self) -> dict[str, Any]:
        """Return the line as plain data."""
        return {
            "model": self.name,
            "accuracy": dict(self.accuracy),
            "mean": self.mean,
            "worst": self.worst,
            "bytes": self.nbytes,
            "seconds": self.seconds,
        }


def demonstrate(regime: str, folder: Path) -> Iterator[Row]:
    """Yield the base, the experts, and each merge after it has been planned, written, verified and evaluated."""
    items = load_suite(FAMILY / "items", TASKS)
    yield _given("base", FAMILY / "base", items)
    for task in TASKS:
        yield _given(f"expert: {task}", FAMILY / regime / task, items)
    for name, settings in METHODS.items():
        accuracy, nbytes, seconds = _merged(regime, settings, folder / regime / name, items)
        yield Row(name, accuracy, nbytes, seconds, "planned, merged, verified, evaluated")
    yield _per_task(regime, folder, items)


def _per_task(regime: str, folder: Path, items: list[Item]) -> Row:
    """Rebuild every task's model from EMR's unified vector, and let each answer its own task."""
    accuracy: dict[str, float] = {}
    size, seconds = 0, 0.0
    for task in TASKS:
        own = [item for item in items if item.task == task]
        settings = {"preset": "emr", "task": task}
        scores, size, took = _merged(regime, settings, folder / regime / f"emr-{task}", own)
        accuracy |= scores
        seconds += took
    return Row("emr (per task)", accuracy, size, seconds, "three models from one vector, masks and rescalers")


def _given(name: str, path: Path, items: list[Item]) -> Row:
    return Row(name, _accuracy(path, items), _size(path), 0.0, "evaluated")


def _merged(
    regime: str, settings: Mapping[str, Any], out: Path, items: list[Item]
) -> tuple[Mapping[str, float], int, float]:
    models = [{"model": str(FAMILY / regime / task), "label": task} for task in TASKS]
    recipe = {"base": str(FAMILY / "base"), "models": models, **settings}
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    api.merge(recipe, out, overwrite=True)
    seconds = time.perf_counter() - began
    api.verify(out)
    return _accuracy(out, items), _size(out), seconds


def _accuracy(path: Path, items: list[Item]) -> Mapping[str, float]:
    return score(load_folder(path), CharTokenizer.load(path), items).accuracy


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
