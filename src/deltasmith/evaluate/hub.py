"""Scores in the Hugging Face Hub's own format: `.eval_results/*.yaml` of a model repository.

The format is that of the Hub's documentation ("Evaluation results") and of `huggingface_hub.EvalResultEntry`: a list
of {dataset: {id, task_id}, value, date, source: {url, name}, notes}. The dataset must be a benchmark there and
`task_id` one of its tasks; neither can be told from a local file, so the user names them.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith.errors import RecipeError
from deltasmith.evaluate.results import Evaluation, TaskResult
from deltasmith.evaluate.saving import write_whole

__all__ = ["Benchmark", "benchmarks", "write_hub_results"]

_SPEC = re.compile(r"(?P<task>[^=]+)=(?P<id>[^#\s]+/[^#\s]+)#(?P<task_id>\S+)")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Name a task of a benchmark dataset on the Hub."""

    dataset: str
    task: str


def benchmarks(given: Sequence[str]) -> dict[str, Benchmark]:
    """Read `TASK=OWNER/DATASET#TASK_ID`, each: which of our tasks is which benchmark of the Hub's.

    >>> benchmarks(["gsm8k=openai/gsm8k#gsm8k"])
    {'gsm8k': Benchmark(dataset='openai/gsm8k', task='gsm8k')}
    """
    found = {}
    for text in given:
        match = _SPEC.fullmatch(text)
        if match is None:
            raise RecipeError(f"{text!r} names no benchmark", fix="write TASK=OWNER/DATASET#TASK_ID")
        found[match["task"]] = Benchmark(match["id"], match["task_id"])
    return found


def write_hub_results(
    evaluation: Evaluation,
    folder: Path,
    known: Mapping[str, Benchmark],
    *,
    source: str | None = None,
    date: datetime.date | None = None,
) -> tuple[list[Path], list[str]]:
    """Write `folder/TASK.yaml` for every complete task whose benchmark is known; return the files and what is left out.

    Means of scores between 0 and 1 are given in per cent. `source` is the address of a page with the details.
    """
    import yaml

    written, left = [], []
    for name, task in evaluation.tasks.items():
        if name not in known or not task.complete or task.score != task.score:
            left.append(name)
            continue
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.yaml"
        entry = _entry(
            task, evaluation, known[name], source, date or datetime.datetime.now(datetime.UTC).date()
        )
        write_whole(path, yaml.safe_dump([entry], sort_keys=False, allow_unicode=True).encode())
        written.append(path)
    return written, left


def _entry(
    task: TaskResult, evaluation: Evaluation, benchmark: Benchmark, source: str | None, date: datetime.date
) -> dict[str, Any]:
    shares = task.average == "mean" and all(0 <= o.score <= 1 for o in task.outcomes)
    unit = f"{task.metric}, per cent" if shares else task.metric
    entry: dict[str, Any] = {
        "dataset": {"id": benchmark.dataset, "task_id": benchmark.task},
        "value": round(100 * task.score, 4) if shares else task.score,
        "date": date.isoformat(),
    }
    if source is not None:
        entry["source"] = {"url": source, "name": "evaluation details"}
    entry["notes"] = f"{unit}, {task.asked} questions; deltasmith {evaluation.version}, {evaluation.runtime}"
    return entry
