"""Run the experiment: studies in every mode, matches, the sweep, the case studies; resumable study by study.

    FOLDER/studies/NAME/         what `features train` and `features match` wrote
    FOLDER/sweep.json            what `features sweep` wrote
    FOLDER/report.html           what `features report` wrote, of the warm study

A study that is there is not trained again; what is cheap is done again.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from deltasmith.features.study import Study
from deltasmith.lab.features.digest import compared_roots, digest_of, rounded
from deltasmith.lab.features.family import BRANCHES, recipe_of
from deltasmith.lab.features.plan import PATTERNS, SITE, Sizes, StudyJob, Subjects, studies_of

__all__ = ["run_experiment"]

Say = Callable[[str], None]
_SWEEP_RESAMPLES = 100
"""Enough for a band around a curve; three comparisons at every value take most of the sweep's time."""


def run_experiment(
    subjects: Subjects,
    folder: Path,
    sizes: Sizes,
    *,
    seed: int = 0,
    floors: str = "root",
    jobs: int = 2,
    threads: int = 1,
    device: str = "cpu",
    say: Say = print,
) -> dict[str, Any]:
    """Make every study of `studies_of` under `folder`, `jobs` at a time, and return what was found as plain values.

    Each study computes on `threads` threads. What one raises ends the run, with finished studies left for the next.
    """
    todo = studies_of(subjects, floors=floors)
    studies = folder / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    common = {
        "site": SITE,
        "corpora": subjects.corpus_words(),
        "seed": seed,
        "threads": threads,
        "device": device,
        **sizes.options(),
    }
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        found = _studies(pool, todo, studies, common, sizes, say)
    found_patterns = _patterns(studies / "warm")
    sweep = _sweep(subjects, folder, sizes, device, jobs * threads)
    say("the merge swept")
    _report(folder, studies / "warm", sizes)
    result: dict[str, Any] = rounded(
        {
            "seed": seed,
            "sizes": sizes.as_json(),
            "facts": dict(subjects.facts),
            "studies": {job.name: found[job.name] for job in todo},
            "patterns": found_patterns,
            "sweep": sweep,
        }
    )
    return result


def _studies(
    pool: ProcessPoolExecutor,
    todo: Iterable[StudyJob],
    studies: Path,
    common: Mapping[str, Any],
    sizes: Sizes,
    say: Say,
) -> dict[str, dict[str, Any]]:
    """Work through the jobs; one that needs another's dictionary waits for it."""
    waiting, done = list(todo), dict[str, dict[str, Any]]()
    running: dict[Future[dict[str, Any]], StudyJob] = {}
    while waiting or running:
        for job in [job for job in waiting if job.waits_for is None or job.waits_for in done]:
            waiting.remove(job)
            running[pool.submit(_study, job, studies, dict(common), sizes.resamples)] = job
        finished = next(as_completed(running))
        job = running.pop(finished)
        done[job.name] = finished.result()
        say(f"study {job.name}: {done[job.name]['seconds']:.0f} CPU-seconds")
    return done


def _study(job: StudyJob, studies: Path, common: dict[str, Any], resamples: int) -> dict[str, Any]:
    """Train and match one study; runs in a process of its own."""
    from deltasmith.features import match, train

    began = time.process_time()
    folder = studies / job.name
    options = {**common, **job.options}
    if job.after is not None:
        root = next(name for name in Study.open(studies / job.after).members if "~" not in name)
        options["root_dictionary"] = studies / job.after / "saes" / root
        options = {name: value for name, value in options.items() if name not in ("latents", "k")}
    there = folder.is_dir()
    study = Study.open(folder) if there else train(job.models, parents=job.parents, out=folder, **options)
    if job.against is not None:
        found = compared_roots(Study.open(studies / job.against), study, resamples)
    else:
        found = digest_of(
            study, match(study, resamples=resamples, threads=int(common["threads"]), overwrite=True)
        )
    return {"seconds": round(time.process_time() - began, 1), **found}


def _patterns(folder: Path) -> dict[str, Any]:
    from deltasmith.features.outcome_files import read_outcome
    from deltasmith.features.pattern_records import FILE, write_patterns
    from deltasmith.features.patterns import find

    study = Study.open(folder)
    found = find(study, PATTERNS, outcome=read_outcome(folder / "match"))
    write_patterns(folder / "match" / FILE, found)
    return {name: value for name, value in found.as_json().items() if name == "patterns"}


def _sweep(subjects: Subjects, folder: Path, sizes: Sizes, device: str, threads: int) -> dict[str, Any]:
    """Sweep the merge's coefficient under the dictionary of the warm study's root."""
    from deltasmith.features import sweep

    found = sweep(
        folder / "studies" / "warm",
        recipe_of(subjects.models),
        vary=sizes.sweep,
        models=subjects.words(*BRANCHES),
        out=folder / "sweep.json",
        resamples=min(sizes.resamples, _SWEEP_RESAMPLES),
        device=device,
        threads=threads,
        overwrite=True,
    )
    document = found.as_json()
    return {name: value for name, value in document.items() if name not in ("format", "study")}


def _report(folder: Path, study: Path, sizes: Sizes) -> None:
    from deltasmith.features import report

    report(study, folder / "report.html", sweep=folder / "sweep.json", features=sizes.report, overwrite=True)
