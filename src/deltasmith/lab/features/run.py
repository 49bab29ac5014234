"""The whole experiment as one call: models, studies, sweep, report for every training seed, and the file of results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltasmith.lab.features.corpora import DOMAINS, Texts
from deltasmith.lab.features.experiment import run_experiment
from deltasmith.lab.features.family import FamilyWanted, build_models
from deltasmith.lab.features.figures import FORMAT, Results, load_features
from deltasmith.lab.features.plan import SITE, Sizes, Subjects
from deltasmith.lab.features.published import PRESETS, Fetch, from_hub, subjects_of
from deltasmith.lab.jobs import require_transformers
from deltasmith.lab.made import made

__all__ = ["run_features", "run_preset"]

Say = Callable[[str], None]
_BUSY = 1.0
"""Processes that already wait or run, from which on two threads hinder each other (see docs/features.md)."""


def run_features(
    folder: Path,
    out: Path,
    seeds: Sequence[int],
    *,
    texts: Texts | None = None,
    sizes: Sizes | None = None,
    shorten: int = 1,
    jobs: int = 2,
    say: Say = print,
) -> Results:
    """Build models under FOLDER/seedN for every training seed N, follow their features, and write all results to `out`.

    Models and studies that are there stay, so an interrupted run goes on. Texts are the same for all seeds. `shorten`
    divides steps and tokens. Raises MissingExtraError without torch or transformers.
    """
    require_transformers("features")
    sizes = (sizes or Sizes()).shortened(shorten) if shorten > 1 else sizes or Sizes()
    runs = []
    for seed in seeds:
        with _timed(say, f"seed {seed}"):
            here = folder / f"seed{seed}"
            threads = 1 if jobs == 1 or os.getloadavg()[0] > _BUSY else 2
            wanted = FamilyWanted(seed=seed, texts=texts or Texts(), shorten=shorten, threads=threads)
            record = build_models(here, wanted, say)
            # The dictionaries' seed is 0 throughout: what differs is the training of the models.
            found = run_experiment(_subjects(here, record), here, sizes, jobs=jobs, say=say)
            runs.append({**found, "seed": seed})
    return _written(out, runs, {"site": SITE, "preset": None})


def run_preset(
    name: str, folder: Path, out: Path, *, jobs: int = 1, say: Say = print, fetch: Fetch = from_hub
) -> Results:
    """Run the experiment on the models that the paper's authors published, with the sizes of a preset.

    They and their texts are fetched from the hub. Seeds are of the dictionaries: there is one training of the models.
    """
    require_transformers("features")
    preset = PRESETS[name]
    subjects = subjects_of(preset, folder, fetch)
    runs = []
    for seed in preset.seeds:
        with _timed(say, f"seed {seed} of the dictionaries"):
            at = folder / f"seed{seed}"
            found = run_experiment(
                subjects,
                at,
                preset.sizes,
                seed=seed,
                floors=preset.floors,
                jobs=jobs,
                threads=max(1, (os.cpu_count() or 1) // jobs),
                device=preset.device,
                say=say,
            )
            runs.append(found)
    return _written(out, runs, {"site": SITE, "preset": name})


def _subjects(folder: Path, record: Mapping[str, Any]) -> Subjects:
    models = {label: folder / label for label in ("base", "lua", "stories", "merged")}
    return Subjects(
        models=models,
        corpora={domain: folder / "texts" / f"{domain}.features.jsonl" for domain in DOMAINS},
        # A merge in weight space has no base in its manifest; that the two fine-tunes have one is known here.
        parents=("lua=base", "stories=base"),
        control=folder / "random",
        facts={key: record[key] for key in ("vocab", "t", "shape", "schedules", "texts", "losses")},
    )


@contextmanager
def _timed(say: Say, what: str) -> Iterator[None]:
    """Say how long a block took, in seconds of the wall."""
    began = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - began:.0f} s")


def _written(out: Path, runs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Results:
    document = {
        "format": FORMAT,
        "experiment": "features",
        "settings": {"made": made(), **settings},
        "runs": list(runs),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text("".join(_lines(document, 0)) + "\n", encoding="utf-8")
    partial.replace(out)
    return load_features(out)


def _lines(value: Any, depth: int) -> Iterator[str]:
    """Lay JSON out so that what fits stands on one line: small files, and differences that can be read."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) <= 160 or not isinstance(value, (dict, list)) or depth > 8:
        yield flat
        return
    inner, outer = " " * (depth + 1), " " * depth
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    yield opening
    items = list(value.items()) if isinstance(value, dict) else [(None, one) for one in value]
    for number, (key, one) in enumerate(items):
        yield f"{',' if number else ''}\n{inner}" + (f"{json.dumps(key)}: " if key is not None else "")
        yield from _lines(one, depth + 1)
    yield f"\n{outer}{closing}"
