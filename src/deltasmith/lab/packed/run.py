"""Run the experiments of packed deltas: one job per experiment, training seed and regime, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith import __version__
from deltasmith.lab import EXPERTS
from deltasmith.lab.bench import HELD_OUT, Bench
from deltasmith.lab.jobs import collected, finish, refuse_absent, require_transformers
from deltasmith.lab.made import made
from deltasmith.lab.packed.points import BUDGETS, POINTS
from deltasmith.lab.rows import Results, Row

__all__ = ["EXPERIMENTS", "run_packed"]

_RECORD = "RECORD.json"


@dataclass(frozen=True)
class _Job:
    """One experiment on the family in `folder`, which training seed `train_seed` has brought forth."""

    experiment: str
    folder: Path
    train_seed: int
    regime: str

    @property
    def bench(self) -> Bench:
        return Bench(self.folder, self.train_seed, self.regime, EXPERTS)

    @property
    def part(self) -> str:
        """Name the file that holds this job's rows: other models or another version have another."""
        state = f"{__version__} {sorted(HELD_OUT.items())} {POINTS} {BUDGETS}".encode()
        digest = hashlib.sha256(state + (self.folder / _RECORD).read_bytes()).hexdigest()
        return f"packed-{self.experiment}-seed{self.train_seed}-{self.regime}-{digest[:12]}.json"


def _curves(bench: Bench) -> Iterator[Row]:
    from deltasmith.lab.packed import curves

    return curves.run(bench)


def _merges(bench: Bench) -> Iterator[Row]:
    from deltasmith.lab.packed import merges

    return merges.run(bench)


def _distilled(bench: Bench) -> Iterator[Row]:
    from deltasmith.lab.packed import distilled

    return distilled.run(bench)


EXPERIMENTS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "curves": _curves,
    "merges": _merges,
    "distilled": _distilled,
}


def run_packed(
    families: Mapping[int, Path],
    regimes: Sequence[str],
    out: Path,
    parts: Path,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> Results:
    """Run every experiment on every family (by training seed) and regime, and write all rows to the file `out`.

    A job's rows land in `parts` when it is done, so an interrupted run goes on where it stopped. Every job computes
    on one thread, and rows do not depend on `jobs`. Raises MissingExtraError without torch or transformers, and
    DamagedInputError where a model is missing.
    """
    require_transformers("hf")
    todo = [
        _Job(name, folder, seed, regime)
        for seed, folder in families.items()
        for regime in regimes
        for name in EXPERIMENTS
    ]
    _refuse_missing(todo)
    fresh = [job for job in todo if not (parts / job.part).exists()]
    finish(todo, fresh, _work, parts, at_once=jobs, say=say)
    settings: dict[str, Any] = {"made": made(), "held_out": dict(HELD_OUT)}
    settings |= {"train_seeds": list(families), "regimes": list(regimes)}
    results = Results("packed", settings, collected(todo, parts))
    results.save(out)
    return results


def _work(job: _Job, parts: Path) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        rows = tuple(EXPERIMENTS[job.experiment](job.bench))
    Results(job.experiment, {}, rows).save(parts / job.part)


def _refuse_missing(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        models = (job.bench.base, *map(job.bench.expert, EXPERTS))
        wanted = (*(model / "config.json" for model in models), job.folder / _RECORD)
        refuse_absent(job.folder, wanted, "build")
