"""Packing and unpacking against the floor, and a 7 B-parameter shape packed by BitDelta; `--help` lists the options.

python benchmarks/packing.py prints a table; `--record` writes it into benchmarks/README.md. Two sizes: the 374 M
family, where starting Python is a large part of it, and a quarter of Llama-2-7B's layers (1.9 B). `--seven` also
writes two models of all its layers (27 GB of disk), packs one, and reports size and memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

import ml_dtypes
import numpy as np

import family
import machine
from folder import Tensor, complete, llama_config, shards_of, write_folder
from measure import Cost, measure
from report import BUDGET_MIB, fill_between

HERE = Path(__file__).resolve().parent
AT_MOST = 3.0
BEGIN, END = "<!-- packing: begin -->", "<!-- packing: end -->"
CODECS = ("bitdelta", "lossless")
SIZES = {"family": ("family/base", "family/math"), "quarter": ("quarter/base", "quarter/chat")}
SEVEN_LIMIT = 1.34e9

HIDDEN, INNER, LAYERS, HEADS, VOCAB = 4096, 11008, 32, 32, 32000
PATTERN = 1 << 22
"""Elements of the noise that fills the 7 B models again and again: sizes do not depend on where it repeats."""


@dataclass(frozen=True, slots=True)
class Case:
    """One command in the work folder, and its floor: what it must read, and how many bytes it must write."""

    title: str
    command: list[str]
    reads: tuple[str, ...]
    written: Path


class Bench:
    """Runs commands and their floors in turns."""

    def __init__(self, work: Path, deltasmith: list[str]) -> None:
        self.work, self.deltasmith = work, deltasmith

    def cases(self, size: str, codec: str) -> tuple[Case, Case]:
        packed, unpacked = f"packed-{codec}", f"unpacked-{codec}"
        base, model = SIZES[size]
        command = [*self.deltasmith, "pack", base, model, packed, "--codec", codec, "--overwrite", "--quiet"]
        if codec == "lossless":
            command += ["--where", "*"]
        back = [*self.deltasmith, "unpack", packed, unpacked, "--base", base, "--overwrite", "--quiet"]
        return (
            Case(f"pack {codec}", command, (base, model), self.work / packed),
            Case(f"unpack {codec}", back, (base, packed), self.work / unpacked),
        )

    def run(self, size: str, codec: str, repetitions: int) -> dict[str, Any]:
        cases = self.cases(size, codec)
        for case in cases:  # warm: kernels compiled, hashes of unchanged inputs remembered
            self.cost(case)
        runs: dict[str, dict[str, list[Cost]]] = {case.title: {"floor": [], "ours": []} for case in cases}
        for _ in range(repetitions):
            for case in cases:
                runs[case.title]["floor"].append(self.floor(case))
                runs[case.title]["ours"].append(self.cost(case))
        found: dict[str, Any] = {
            title: {name: [asdict(c) for c in costs] for name, costs in turns.items()}
            for title, turns in runs.items()
        }
        sizes = [_bytes(path) for path in (self.work / SIZES[size][1], cases[0].written)]
        for case in cases:
            shutil.rmtree(case.written)
        return found | {"bytes": sizes}

    def cost(self, case: Case) -> Cost:
        shutil.rmtree(case.written, ignore_errors=True)
        os.sync()
        return measure(case.command, folder=self.work, environment=self._environment())

    def floor(self, case: Case) -> Cost:
        output = self.work / "floor.safetensors"
        words = [sys.executable, HERE / "floor.py", output, f"--bytes={_bytes(case.written)}", *case.reads]
        os.sync()
        cost = measure(words, folder=self.work)
        output.unlink()
        return cost

    def _environment(self) -> dict[str, str]:
        """Let compiled kernels and byte code be kept, as an installation keeps them, whatever this shell forbids."""
        kept = self.work / "kernels"
        return {
            "NUMBA_CACHE_DIR": str(kept / "packing"),
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(kept / "bytecode"),
        }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def llama_tensors(layers: int) -> list[Tensor]:
    """List the tensors of Llama-2-7B, or of its first layers."""
    tensors = [Tensor("model.embed_tokens.weight", (VOCAB, HIDDEN))]
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        tensors += [
            Tensor(f"{stem}.{norm}_layernorm.weight", (HIDDEN,)) for norm in ("input", "post_attention")
        ]
        tensors += [Tensor(f"{stem}.self_attn.{p}_proj.weight", (HIDDEN, HIDDEN)) for p in "qkvo"]
        tensors += [Tensor(f"{stem}.mlp.{p}_proj.weight", (INNER, HIDDEN)) for p in ("gate", "up")]
        tensors.append(Tensor(f"{stem}.mlp.down_proj.weight", (HIDDEN, INNER)))
    return [*tensors, Tensor("model.norm.weight", (HIDDEN,)), Tensor("lm_head.weight", (VOCAB, HIDDEN))]


def generate(work: Path, name: str, layers: int) -> None:
    """Write WORK/NAME/{base,chat}: Llama-2-7B's shapes, the same noise again and again, deltas of 4e-4."""
    random = np.random.Generator(np.random.SFC64(family.SEED))
    base = random.standard_normal(PATTERN, dtype=np.float32) * np.float32(0.02)
    base = base.astype(ml_dtypes.bfloat16).astype(np.float32)
    drift = random.standard_normal(PATTERN, dtype=np.float32) * np.float32(4e-4)
    for label, values in (("base", base), ("chat", base + drift)):
        stamp = {"kind": name, "label": label, "seed": family.SEED, "version": 1}
        folder = work / name / label
        if not complete(folder, stamp):
            print(f"generating {name}/{label}", flush=True)
            config = llama_config(
                hidden=HIDDEN, inner=INNER, layers=layers, heads=HEADS, vocab=VOCAB, tied=False
            )
            data = values.astype(ml_dtypes.bfloat16).tobytes()
            write_folder(
                folder, shards_of(llama_tensors(layers), 5 << 30), config, stamp, partial(_repeat, data)
            )


def _repeat(data: bytes, file: IO[bytes], tensor: Tensor) -> None:
    """Fill a tensor with the noise; the last piece is cut."""
    left = tensor.stored_bytes
    while left:
        left -= file.write(data[: min(left, len(data))])


def seven(bench: Bench, rest: str) -> dict[str, Any]:
    """Pack the 7 B shape by BitDelta, once; `rest` codes embeddings, head and norms."""
    packed = bench.work / f"packed-seven-{rest}"
    words = [*bench.deltasmith, "pack", "seven/base", "seven/chat", str(packed), "--rest", rest, "--quiet"]
    shutil.rmtree(packed, ignore_errors=True)
    cost = measure(words, folder=bench.work, environment=bench._environment())
    sizes = [_bytes(bench.work / "seven/chat"), _bytes(packed)]
    shutil.rmtree(packed)
    return {"cost": asdict(cost), "bytes": sizes}


def table(results: dict[str, Any]) -> str:
    """Return the Markdown of one measurement."""
    found = results["machine"]
    lines = [
        f"{results['date']}, commit {results['commit']}. {found['processor']}, {found['cores']} cores,"
        f" {found['memory_gib']} GiB; load before the run {found['load_before']}. Medians of {results['repetitions']}.",
        "",
        f"| model in bfloat16 | floor s | deltasmith s | × floor | expected | CPU-s | peak MiB (≤ {BUDGET_MIB}) |"
        " packed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (size, codec), runs in ((key.split("/"), runs) for key, runs in results["codecs"].items()):
        model, packed = runs["bytes"]
        for title in (f"pack {codec}", f"unpack {codec}"):
            floor, ours = (_median(runs[title][name], "wall_seconds") for name in ("floor", "ours"))
            peak = max(run["peak_anonymous_bytes"] for run in runs[title]["ours"]) / (1 << 20)
            verdict = "met" if ours / floor <= AT_MOST else "**not met**"
            cells = [
                f"{title}, {model / 1e9:.2f} GB ({size})",
                f"{floor:.2f}",
                f"{ours:.2f}",
                f"{ours / floor:.2f}",
                f"≤ {AT_MOST:g}: {verdict}",
            ]
            cells += [
                f"{_median(runs[title]['ours'], 'cpu_seconds'):.2f}",
                f"{peak:.0f}",
                f"{packed / model:.3f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    for rest, run in results.get("seven", {}).items():
        model, packed = run["bytes"]
        verdict = f"≤ {SEVEN_LIMIT / 1e9:.2f} GB: {'met' if packed <= SEVEN_LIMIT else '**not met**'}"
        peak = run["cost"]["peak_anonymous_bytes"] / (1 << 20)
        lines += [
            "",
            f"Llama-2-7B's shapes, BitDelta on the decoder's linears, the rest {rest}: {model / 1e9:.2f} GB →"
            f" {packed / 1e9:.3f} GB ({verdict}); {run['cost']['wall_seconds']:.0f} s from disk, "
            f"{run['cost']['cpu_seconds']:.0f} CPU-s, peak {peak:.0f} MiB.",
        ]
    return "\n".join(lines)


def _median(runs: list[dict[str, float]], key: str) -> float:
    return median(run[key] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=HERE / "work", help="where models and outputs go (15 GB)"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--deltasmith", help="the command to measure; default: the installed one")
    parser.add_argument("--seven", action="store_true", help="the 7 B shape too: 27 GB of disk")
    parser.add_argument(
        "--record", action="store_true", help="write packing.json and README.md beside this file"
    )
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    beside = Path(sys.executable).with_name("deltasmith")
    bench = Bench(work, shlex.split(arguments.deltasmith or shlex.quote(str(beside))))
    family.generate_family(work)
    generate(work, "quarter", LAYERS // 4)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "repetitions": arguments.repetitions,
        "codecs": {f"{s}/{c}": bench.run(s, c, arguments.repetitions) for s in SIZES for c in CODECS},
    }
    recorded = HERE / "packing.json"
    if arguments.seven:
        generate(work, "seven", LAYERS)
        results["seven"] = {rest: seven(bench, rest) for rest in ("dense", "lossless")}
    elif recorded.is_file():
        results["seven"] = json.loads(recorded.read_text()).get("seven", {})
    print(table(results))
    if arguments.record:
        recorded.write_text(json.dumps(results, indent=1) + "\n")
        fill_between(HERE / "README.md", BEGIN, END, table(results))


if __name__ == "__main__":
    main()
