"""Run the experiments on the loss: one job for each experiment and expert, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasmith import __version__
from deltasmith.lab import BUNDLED_REGIMES, EXPERTS
from deltasmith.lab.jobs import collected, finish, refuse_absent, require_transformers
from deltasmith.lab.loss.points import POINTS, vision_points
from deltasmith.lab.made import made
from deltasmith.lab.rows import Results, Row

if TYPE_CHECKING:
    from deltasmith.lab.loss.bench import Subject

__all__ = ["EXPERIMENTS", "PICTURED", "VISION", "run_loss", "run_vision"]

_RECORD = "RECORD.json"
VISION = "vision"
"""What stands for a regime where the experts are vision models."""
PICTURED = ("mnist", "digits", "greek", "katakana")
"""The vision tasks that are asked, of eight: two of digits and two alphabets."""


@dataclass(frozen=True)
class _Job:
    """One experiment on one expert of the family in `folder`; `data` holds the pictures of vision models."""

    experiment: str
    folder: Path
    train_seed: int
    regime: str
    task: str
    data: Path | None = None

    @property
    def expert(self) -> Path:
        """Return the folder of the expert."""
        return self.folder / ("experts" if self.regime == VISION else self.regime) / self.task

    @property
    def part(self) -> str:
        """Name the file that holds this job's rows: other models or another version have another."""
        points = vision_points() if self.regime == VISION else POINTS
        state = f"{__version__} {points if self.experiment == 'predictions' else ''}".encode()
        digest = hashlib.sha256(state + (self.folder / _RECORD).read_bytes()).hexdigest()
        which = f"seed{self.train_seed}-{self.regime}-{self.task}"
        return f"loss-{self.experiment}-{which}-{digest[:12]}.json"

    def subject(self) -> Subject:
        """Open the expert."""
        from deltasmith.lab.loss import bench

        if self.data is not None:
            return bench.vision(self.folder, self.data, self.task)
        return bench.language(self.folder, self.train_seed, self.regime, self.task)


def _predictions(subject: Subject) -> Iterator[Row]:
    from deltasmith.lab.loss import predictions

    return predictions.run(subject)


def _biased(subject: Subject) -> Iterator[Row]:
    from deltasmith.lab.loss import biased

    return biased.run(subject)


def _second_order(subject: Subject) -> Iterator[Row]:
    from deltasmith.lab.loss import second_order

    return second_order.run(subject)


def _extrapolation(subject: Subject) -> Iterator[Row]:
    from deltasmith.lab.loss import extrapolation

    return extrapolation.run(subject)


EXPERIMENTS: Mapping[str, Callable[[Subject], Iterator[Row]]] = {
    "predictions": _predictions,
    "biased": _biased,
    "second_order": _second_order,
    "extrapolation": _extrapolation,
}


def run_loss(
    folder: Path, out: Path, parts: Path, *, jobs: int = 1, say: Callable[[str], None] = print
) -> Results:
    """Run the experiments on every expert of the bundled family in `folder`, and write all rows to the file `out`.

    A job's rows land in `parts` when it is done, so an interrupted run goes on where it stopped. Every job computes
    on one thread, and rows do not depend on `jobs`. Raises MissingExtraError without torch or transformers, and
    DamagedInputError where a model is missing.
    """
    todo = [
        _Job(name, folder, 0, regime, task)
        for name in EXPERIMENTS
        for regime in BUNDLED_REGIMES
        for task in EXPERTS
    ]
    return _run(todo, {"regimes": list(BUNDLED_REGIMES), "tasks": list(EXPERTS)}, out, parts, jobs, say)


def run_vision(
    folder: Path, data: Path, out: Path, parts: Path, *, jobs: int = 1, say: Callable[[str], None] = print
) -> Results:
    """Run the experiments on some experts of a family of vision models (`lab vision`); the rest as for `run_loss`."""
    todo = [_Job(name, folder, 0, VISION, task, data) for name in EXPERIMENTS for task in PICTURED]
    return _run(todo, {"regimes": [VISION], "tasks": list(PICTURED)}, out, parts, jobs, say)


def _run(
    todo: Sequence[_Job],
    settings: Mapping[str, Any],
    out: Path,
    parts: Path,
    jobs: int,
    say: Callable[[str], None],
) -> Results:
    require_transformers("analysis")
    _refuse_missing(todo)
    fresh = [job for job in todo if not (parts / job.part).exists()]
    finish(todo, fresh, _work, parts, at_once=jobs, say=say)
    results = Results("loss", {"made": made(), **settings}, collected(todo, parts))
    results.save(out)
    return results


def _work(job: _Job, parts: Path) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)  # sums in another order would differ in the last digits
    with threadpool_limits(limits=1):
        rows = tuple(EXPERIMENTS[job.experiment](job.subject()))
    Results(job.experiment, {}, rows).save(parts / job.part)


def _refuse_missing(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        wanted = (job.folder / "base" / "config.json", job.expert / "config.json", job.folder / _RECORD)
        refuse_absent(job.folder, wanted, "vision" if job.data else "build")
