"""The result of an evaluation as a file: every question's score, so that models can be compared in pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.task import Average, Outcome

__all__ = ["Evaluation", "TaskResult", "load_evaluation", "weighted_average"]

FORMAT = 1


def weighted_average(scores: Sequence[float], weights: Sequence[float], average: Average) -> float:
    """Average scores by their weights; `perplexity` returns the exponential of that. NaN without any weight."""
    total = math.fsum(weights)
    if not total:
        return math.nan
    mean = math.fsum(s * w for s, w in zip(scores, weights, strict=True)) / total
    return math.exp(mean) if average == "perplexity" else mean


@dataclass(frozen=True)
class TaskResult:
    """One task's outcomes, complete or not, and what they average to."""

    metric: str
    average: Average
    higher_is_better: bool
    digest: str
    outcomes: tuple[Outcome, ...]
    asked: int
    interval: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """Average the outcomes."""
        return weighted_average(
            [o.score for o in self.outcomes], [o.weight for o in self.outcomes], self.average
        )

    @property
    def complete(self) -> bool:
        """Tell whether every question has been answered."""
        return len(self.outcomes) == self.asked

    def as_json(self) -> dict[str, Any]:
        """Return plain data; `items` is {id: [score, weight, detail]}."""
        return {
            "metric": self.metric,
            "average": self.average,
            "higher_is_better": self.higher_is_better,
            "digest": self.digest,
            "score": None if math.isnan(self.score) else self.score,
            "interval": self.interval and list(self.interval),
            "asked": self.asked,
            "answered": len(self.outcomes),
            "notes": list(self.notes),
            "items": {o.id: [o.score, o.weight, dict(o.detail)] for o in self.outcomes},
        }


@dataclass(frozen=True)
class Evaluation:
    """A model's results on several tasks, and how they were obtained."""

    model: str
    fingerprint: str
    runtime: str
    tasks: Mapping[str, TaskResult]
    sandbox: str | None = None
    version: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Tell whether every task is complete."""
        return all(task.complete for task in self.tasks.values())

    def as_json(self) -> dict[str, Any]:
        """Return plain data, readable by `load_evaluation`."""
        return {
            "format": FORMAT,
            "deltasmith": self.version,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "runtime": self.runtime,
            "sandbox": self.sandbox,
            "complete": self.complete,
            "notes": list(self.notes),
            "tasks": {name: task.as_json() for name, task in self.tasks.items()},
        }


def load_evaluation(path: Path | str) -> Evaluation:
    """Read what `deltasmith evaluate --json` or `--out` wrote.

    Raises DamagedInputError where the file is missing, is no JSON, or is not such a result.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as cause:
        if isinstance(cause, FileNotFoundError) and Path(f"{path}.journal").exists():
            raise DamagedInputError(
                "the evaluation is not finished", where=str(path), fix="repeat the evaluate command"
            ) from cause
        raise DamagedInputError(
            f"it cannot be read ({cause.strerror})", where=str(path), fix="check the path"
        ) from cause
    except ValueError as cause:
        raise DamagedInputError(
            "it is not JSON", where=str(path), fix="give a file written by `deltasmith evaluate`"
        ) from cause
    try:
        if document["format"] != FORMAT:
            raise DamagedInputError(
                f"it has format {document['format']!r}, and this version reads {FORMAT}",
                where=str(path),
                fix="evaluate again with this version",
            )
        tasks = {name: _task(entry) for name, entry in document["tasks"].items()}
        return Evaluation(
            model=str(document["model"]),
            fingerprint=str(document["fingerprint"]),
            runtime=str(document["runtime"]),
            tasks=tasks,
            sandbox=document["sandbox"],
            version=str(document["deltasmith"]),
            notes=tuple(document["notes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise DamagedInputError(
            f"it is not the result of an evaluation ({cause})",
            where=str(path),
            fix="give a file written by `deltasmith evaluate`",
        ) from cause


def _task(entry: Mapping[str, Any]) -> TaskResult:
    outcomes = tuple(
        Outcome(name, float(score), float(weight), detail)
        for name, (score, weight, detail) in entry["items"].items()
    )
    interval = entry["interval"]
    return TaskResult(
        metric=str(entry["metric"]),
        average=entry["average"],
        higher_is_better=bool(entry["higher_is_better"]),
        digest=str(entry["digest"]),
        outcomes=outcomes,
        asked=int(entry["asked"]),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        notes=tuple(entry["notes"]),
    )
