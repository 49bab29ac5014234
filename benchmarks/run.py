"""The benchmark: the floor, deltasmith and mergekit take turns on the same files; `--help` lists the options.

python benchmarks/run.py prints the tables and leaves the numbers in the work folder; `--record` writes
benchmarks/results.json and the tables of benchmarks/README.md. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import family
import machine
import report
import rival
from measure import Cost, measure
from methods import GIANT, MERGES, PLAN, Merge

__all__ = ["main"]

HERE = Path(__file__).resolve().parent


class Bench:
    """Runs the three programs in the work folder and checks that each wrote a model of the right size."""

    def __init__(self, work: Path, deltasmith: list[str], rival_options: str) -> None:
        self.work = work
        self.deltasmith = deltasmith
        self.rival_options = rival_options

    def prepare(self) -> None:
        """Copy the recipes beside the models, to which their relative paths lead from there."""
        for recipe in (HERE / "recipes").glob("*.yaml"):
            shutil.copy(recipe, self.work / recipe.name)
        for recipe in (HERE / "mergekit").glob("*.yaml"):
            shutil.copy(recipe, self.work / f"mergekit-{recipe.name}")
        shutil.rmtree(self.work / "kernels", ignore_errors=True)

    def floor(self, merge: Merge) -> Cost:
        words: list[str | Path] = [sys.executable, HERE / "floor.py", "out/floor.safetensors", *merge.inputs]
        return self._written(words, {}, merge)

    def ours(self, merge: Merge, kernels: str) -> Cost:
        """Merge with compiled kernels cached under `kernels`, which is empty before the first run."""
        words = [*self.deltasmith, "merge", f"{merge.name}.yaml", "out/merged", "--overwrite", "--json"]
        return self._written(words, self._kernels(kernels), merge)

    def theirs(self, merge: Merge) -> Cost:
        recipe = Path(f"mergekit-{merge.rival}.yaml")
        words = rival.command(self.work, recipe, Path("out/merged"), self.rival_options)
        return self._written(words, rival.environment(), merge)

    def plan(self) -> Cost:
        words = [*self.deltasmith, "plan", f"{PLAN}.yaml", "--json"]
        return measure(words, folder=self.work, environment=self._kernels("plan"))

    def start(self, words: list[str]) -> Cost:
        return measure(words, folder=self.work)

    def _kernels(self, name: str) -> dict[str, str]:
        return {"NUMBA_CACHE_DIR": str(self.work / "kernels" / name)}

    def _written(self, words: Sequence[str | Path], environment: dict[str, str], merge: Merge) -> Cost:
        """Measure a command that writes a model under out/, after what the last one left to write back."""
        output = self.work / "out"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        os.sync()
        try:
            cost = measure(words, folder=self.work, environment=environment)
            expected, found = _weight_bytes(self.work / merge.inputs[0]), _weight_bytes(output)
            if abs(found - expected) > expected // 100:
                raise SystemExit(f"{words[0]}: wrote {found:,} bytes of weights, expected about {expected:,}")
        finally:
            shutil.rmtree(output)
        return cost


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def compare(bench: Bench, merge: Merge, repetitions: int, rival_repetitions: int) -> dict[str, Any]:
    """Warm up, then take turns: floor, deltasmith, and mergekit while it still has runs to do."""
    bench.floor(merge)
    found: dict[str, Any] = {"first": asdict(bench.ours(merge, merge.name))}
    runs: dict[str, list[Cost]] = {"floor": [], "deltasmith": [], "mergekit": []}
    for turn in range(max(repetitions, rival_repetitions)):
        if turn < repetitions:
            runs["floor"].append(bench.floor(merge))
            runs["deltasmith"].append(bench.ours(merge, merge.name))
        if turn < rival_repetitions:
            runs["mergekit"].append(bench.theirs(merge))
    return found | {name: [asdict(cost) for cost in costs] for name, costs in runs.items()}


def giant(bench: Bench) -> dict[str, Any] | None:
    """Merge the 2³¹-element tensor once, after a floor that also brings its files into the page cache."""
    needed = 2 * _weight_bytes(bench.work / GIANT.inputs[0])
    if shutil.disk_usage(bench.work).free < needed:
        print(f"giant: left out, it needs {needed / 1e9:.0f} GB of free disk", file=sys.stderr)
        return None
    bench.floor(GIANT)
    return {"floor": [asdict(bench.floor(GIANT))], "deltasmith": [asdict(bench.ours(GIANT, "ties"))]}


def run(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything asked for and return the document that report.py reads."""
    with_rival = arguments.rival_repetitions > 0
    results: dict[str, Any] = {
        "format": 1,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "rival_versions": rival.versions(bench.work) if with_rival else {},
        "rival_options": arguments.rival_options,
        "merges": {},
    }
    if with_rival:
        bench.theirs(MERGES[0])  # its modules compiled and in the page cache, as every later run finds them
    theirs: dict[str | None, list[dict[str, float]]] = {None: []}
    for merge in MERGES:
        if merge.name in arguments.only:
            print(merge.title, flush=True)
            rival_repetitions = 0 if merge.rival in theirs else arguments.rival_repetitions
            found = compare(bench, merge, arguments.repetitions, rival_repetitions)
            found["mergekit"] = theirs.setdefault(merge.rival, found["mergekit"])
            results["merges"][merge.name] = found
    if "plan" in arguments.only:
        print("plan", flush=True)
        bench.plan()
        results["plan"] = [asdict(bench.plan()) for _ in range(arguments.repetitions)]
    if "start" in arguments.only:
        programs = {"deltasmith": [*bench.deltasmith, "--help"]}
        if with_rival:
            programs["mergekit-yaml"] = [str(rival.program(bench.work)), "--help"]
        results["start"] = {
            name: [asdict(bench.start(words)) for _ in range(3)] for name, words in programs.items()
        }
    if "giant" in arguments.only:
        print(GIANT.title, flush=True)
        results["giant"] = giant(bench)
    return results


def parse(words: list[str] | None) -> argparse.Namespace:
    names = [*(merge.name for merge in MERGES), "plan", "start", "giant"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=HERE / "work", help="where models and outputs go (25 GB apparent)"
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, help=",".join(names))
    parser.add_argument("--repetitions", type=int, default=5, help="runs of the floor and of deltasmith")
    parser.add_argument("--rival-repetitions", type=int, default=1, help="runs of mergekit; 0 leaves it out")
    parser.add_argument("--rival-options", default=rival.OPTIONS, help="options of mergekit-yaml")
    parser.add_argument(
        "--setup-rival", action="store_true", help="install mergekit in the work folder first"
    )
    parser.add_argument("--deltasmith", help="the command to measure; default: the installed one")
    parser.add_argument(
        "--record", action="store_true", help="write results.json and README.md beside this file"
    )
    arguments = parser.parse_args(words)
    if unknown := set(arguments.only) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not one of {', '.join(names)}")
    if arguments.record and set(arguments.only) != set(names):
        parser.error("--record: the page shows all cases; leave out --only")
    if arguments.repetitions < 1:
        parser.error("--repetitions: at least 1")
    return arguments


def _installed_command() -> str:
    """Find the command beside this interpreter, or on the path."""
    beside = Path(sys.executable).with_name("deltasmith")
    found = str(beside) if beside.exists() else shutil.which("deltasmith")
    if found is None:
        raise SystemExit("deltasmith is not installed in this environment: pip install -e .")
    return shlex.quote(found)


def main(words: list[str] | None = None) -> None:
    arguments = parse(words)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.setup_rival:
        rival.setup(work)
    if arguments.rival_repetitions and not rival.installed(work):
        raise SystemExit(
            "mergekit is not installed: add --setup-rival, or --rival-repetitions 0 to leave it out"
        )
    family.generate_family(work)
    family.generate_many(work)
    family.generate_giant(work)
    bench = Bench(work, shlex.split(arguments.deltasmith or _installed_command()), arguments.rival_options)
    bench.prepare()
    results = run(bench, arguments)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (work / "results.json").write_text(text)
    print(report.tables(results))
    if arguments.record:
        (HERE / "results.json").write_text(text)
        report.fill(HERE / "README.md", report.tables(results))


if __name__ == "__main__":
    main()
