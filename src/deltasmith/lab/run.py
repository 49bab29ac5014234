"""Run the lab's experiments: one job per experiment, training seed and regime, several at once, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith import __version__
from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.lab import EXPERTS, REGIMES
from deltasmith.lab.bench import HELD_OUT, Bench
from deltasmith.lab.jobs import finish
from deltasmith.lab.made import made
from deltasmith.lab.rows import Results, Row, load_results

__all__ = ["EXPERIMENTS", "Job", "run_experiments"]

_RECORD = "RECORD.json"


@dataclass(frozen=True)
class Job:
    """One experiment on one training seed in one regime; `family` holds the folders `seed0`, `seed1` and so on."""

    experiment: str
    family: Path
    train_seed: int
    regime: str
    seeds: tuple[int, ...]

    @property
    def bench(self) -> Bench:
        """Return the bench the job works on."""
        return Bench(self.folder(self.train_seed), self.train_seed, self.regime, EXPERTS)

    def folder(self, seed: int) -> Path:
        """Return the family of a training seed."""
        return self.family / f"seed{seed}"

    @property
    def stranger(self) -> Path:
        """Return the family of the next training seed, which shares no base with this one."""
        following = self.seeds[(self.seeds.index(self.train_seed) + 1) % len(self.seeds)]
        return self.folder(following)

    @property
    def part(self) -> str:
        """Name the file that holds this job's rows."""
        return f"{self.experiment}-seed{self.train_seed}-{self.regime}.json"

    @property
    def digest(self) -> str:
        """Hash what the rows depend on: this version, the number of items, and the families' records."""
        families = (self.folder(self.train_seed), self.stranger)
        records = b"".join((folder / _RECORD).read_bytes() for folder in families)
        return hashlib.sha256(f"{__version__} {sorted(HELD_OUT.items())}".encode() + records).hexdigest()

    def done(self, parts: Path) -> bool:
        """Tell whether `parts` holds this job's rows, of these models."""
        path = parts / self.part
        return path.exists() and load_results(path).settings.get("of") == self.digest


def _family(job: Job) -> Iterator[Row]:
    from deltasmith.lab.experiments import family

    return family.run(job.bench)


def _curves(job: Job) -> Iterator[Row]:
    from deltasmith.lab.experiments import curves

    return curves.run(job.bench)


def _merges(job: Job) -> Iterator[Row]:
    from deltasmith.lab.experiments import merges

    return merges.run(job.bench)


def _emr(job: Job) -> Iterator[Row]:
    from deltasmith.lab.experiments import emr

    return emr.run(job.bench)


def _controls(job: Job) -> Iterator[Row]:
    from deltasmith.lab.experiments import controls

    # With a single training seed there is no stranger; the control needs two.
    return controls.run(job.bench, job.stranger) if len(job.seeds) > 1 else iter(())


EXPERIMENTS: Mapping[str, Callable[[Job], Iterator[Row]]] = {
    "family": _family,
    "curves": _curves,
    "merges": _merges,
    "emr": _emr,
    "controls": _controls,
}


def run_experiments(
    family: Path,
    out: Path,
    parts: Path,
    seeds: Sequence[int],
    *,
    experiments: Sequence[str] = tuple(EXPERIMENTS),
    regimes: Sequence[str] = REGIMES,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, Results]:
    """Run what `parts` does not hold yet and write `OUT/EXPERIMENT.json` for each experiment.

    A job's rows land in `parts` when it is done, so an interrupted run goes on where it stopped; rows of other models
    or of another version are computed anew. Every job computes on one thread, and rows do not depend on `jobs`.
    """
    todo = [
        Job(name, family, seed, regime, tuple(seeds))
        for name in experiments
        for seed in seeds
        for regime in regimes
    ]
    _refuse_missing(todo)
    fresh = [job for job in todo if not job.done(parts)]
    finish(todo, fresh, _work, parts, at_once=jobs, say=say)
    return {
        name: _combined(name, out, parts, [job for job in todo if job.experiment == name])
        for name in experiments
    }


def _work(job: Job, parts: Path) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        rows = tuple(EXPERIMENTS[job.experiment](job))
    Results(job.experiment, {"of": job.digest}, rows).save(parts / job.part)


def _combined(name: str, out: Path, parts: Path, jobs: Sequence[Job]) -> Results:
    rows = tuple(row for job in jobs for row in load_results(parts / job.part).rows)
    seeds = jobs[0].seeds
    settings: dict[str, Any] = {"made": made(), "held_out": dict(HELD_OUT)}
    settings |= {"train_seeds": list(seeds), "regimes": list(dict.fromkeys(job.regime for job in jobs))}
    if name == "family":
        records = {str(seed): _record(jobs[0].folder(seed)) for seed in seeds}
        settings["parameters"] = records[str(seeds[0])]["parameters"]
        settings["deltas"] = {seed: record["deltas"] for seed, record in records.items()}
    results = Results(name, settings, rows)
    results.save(out / f"{name}.json")
    return results


def _record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return found


def _refuse_missing(jobs: Sequence[Job]) -> None:
    if not jobs:
        raise RefusedError("nothing to run", fix="name at least one experiment, seed and regime")
    wanted = dict.fromkeys(path for job in jobs for path in (job.bench.base, *map(job.bench.expert, EXPERTS)))
    missing = [str(path) for path in wanted if not (path / "config.json").is_file()]
    missing += [
        str(path) for path in {job.folder(job.train_seed) / _RECORD for job in jobs} if not path.is_file()
    ]
    if missing:
        raise DamagedInputError(
            f"{len(missing)} files of the family are missing, the first is {missing[0]}",
            where=str(jobs[0].family),
            fix="build them with `deltasmith lab build`",
        )
