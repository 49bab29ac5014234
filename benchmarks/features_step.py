"""Time a training step of a sparse autoencoder, side by side with SAELens's trainer, on the same batches.

python benchmarks/features_step.py --rival PYTHON [--record FILE] [--threads 1 2] [--only topk]

PYTHON has sae-lens. The two sides are two processes that take turns, a few steps each, so that whatever else the
machine does falls on both. A step is all that happens to a batch: for SAELens `SAETrainer.step`, its loss, gradients,
clipping, Adam and statistics; for us `Trainer.step`. Medians over all timed steps. SAELens is timed with its dense
activations, its default: with `use_sparse_activations` its step fails on the CPU (6.54.12 with torch 2.13).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine

SHAPES = [
    {"width": 256, "latents": 1024, "k": 16, "batch": 512, "steps": 12, "rounds": 5},
    {"width": 768, "latents": 6144, "k": 32, "batch": 2048, "steps": 2, "rounds": 3},
    {"width": 1024, "latents": 16384, "k": 32, "batch": 2048, "steps": 1, "rounds": 3},
]
KINDS = ["topk", "batch-topk", "relu-l1"]


class Side:
    """A process that times one side's steps."""

    def __init__(self, python: str, name: str) -> None:
        script = Path(__file__).with_name("features_step_side.py")
        command = [python, str(script), name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.versions: dict[str, str] = self._answer()

    def times(self, case: dict[str, Any]) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        found: list[float] = self._answer()
        return found

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("one side has died; run features_step_side.py by hand to see why")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compared(
    ours: Side, theirs: Side | None, shape: dict[str, Any], kind: str, threads: int
) -> dict[str, Any]:
    what = {name: shape[name] for name in ("width", "latents", "k", "batch")}
    case = {"what": {**what, "kind": kind}, "threads": threads, "steps": shape["steps"]}
    mine: list[float] = []
    rival: list[float] = []
    for _ in range(shape["rounds"]):
        mine += ours.times(case)
        rival += [] if theirs is None else theirs.times(case)
    row = {**what, "kind": kind, "threads": threads, "ours_ms": round(statistics.median(mine), 2)}
    if rival:
        row["saelens_ms"] = round(statistics.median(rival), 2)
        row["ratio"] = round(statistics.median(rival) / statistics.median(mine), 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival", metavar="PYTHON", help="an interpreter that has sae-lens")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the table as JSON")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--shapes", type=int, nargs="*", default=[256, 768, 1024], metavar="WIDTH")
    options = parser.parse_args()
    ours = Side(sys.executable, "ours")
    theirs = Side(options.rival, "saelens") if options.rival else None
    rows = []
    for shape in (s for s in SHAPES if s["width"] in options.shapes):
        for kind in options.only:
            for threads in options.threads:
                rows.append(compared(ours, theirs, shape, kind, threads))
                print(json.dumps(rows[-1]), flush=True)
    versions = {"ours": ours.versions, "saelens": theirs.versions if theirs else None}
    for side in filter(None, (ours, theirs)):
        side.close()
    if options.record:
        document = {
            "machine": machine.describe(),
            "versions": versions,
            "commit": machine.commit(),
            "rows": rows,
        }
        options.record.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
