"""Results of evaluations made by hand, and their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltasmith.evaluate.results import Evaluation, TaskResult
from deltasmith.evaluate.task import Average, Outcome


def answered(
    scores: Sequence[float],
    *,
    digest: str = "d",
    weights: Sequence[float] | None = None,
    average: Average = "mean",
    asked: int | None = None,
    ids: Sequence[str] | None = None,
) -> TaskResult:
    """Make one task's result; a perplexity's scores are losses."""
    names = ids or [f"q{n}" for n in range(len(scores))]
    used = weights or [1.0] * len(scores)
    outcomes = tuple(Outcome(i, float(s), float(w)) for i, s, w in zip(names, scores, used, strict=True))
    metric = "perplexity" if average == "perplexity" else "exact_match"
    return TaskResult(metric, average, average == "mean", digest, outcomes, asked or len(scores))


def right(count: int, of: int = 100, **fields: object) -> TaskResult:
    """Make a result with the first `count` questions right."""
    return answered([1.0] * count + [0.0] * (of - count), **fields)  # type: ignore[arg-type]


def evaluation(
    model: str, tasks: Mapping[str, TaskResult], *, fingerprint: str | None = None, runtime: str = "numpy"
) -> Evaluation:
    """Make a model's evaluation; models of different names are different models."""
    return Evaluation(model, fingerprint if fingerprint is not None else f"sha-{model}", runtime, tasks)


def written(path: Path, found: Evaluation) -> Path:
    """Write a result file."""
    path.write_text(json.dumps(found.as_json()), encoding="utf-8")
    return path
