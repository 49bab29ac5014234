"""Measures what analysing a loss takes, beside one plain forward and backward pass over the same network and chunk.

python benchmarks/loss.py [WORK] prints a table in Markdown. The models are those of benchmarks/family.py (374 M
parameters in bfloat16, computed in float32); the edit is DARE at a rate of a half, the data random words. `plain` is
what any program must hold that takes a gradient: weights, gradients, activations. What `loss` takes beyond it is for
loading the second network, which becomes the direction, and for merging. Linux only; needs the extra [analysis].
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from family import generate_family
from machine import describe
from measure import Cost, measure

REPETITIONS = 3
CHUNKS, WORDS = 2, 128

PLAIN = """
import sys
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(2)
network = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager")
generator = torch.Generator().manual_seed(0)
for _ in range(int(sys.argv[2])):
    tokens = torch.randint(3, 100, (1, int(sys.argv[3])), generator=generator)
    network(input_ids=tokens, labels=tokens).loss.backward()
"""
"""Gradients are accumulated, as in training."""


def readable(work: Path, label: str) -> Path:
    """Lay the family's weights beside a tokenizer that knows words: the family's own knows no text."""
    source, folder = work / "family" / label, work / "words" / label
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if not (folder / path.name).exists() and path.name != "tokenizer.json":
            (folder / path.name).hardlink_to(path)  # a symbolic link that leads out of its folder is refused
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"] = {"type": "WordLevel", "vocab": tokenizer["model"]["vocab"], "unk_token": "<unk>"}
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="?", type=Path, default=Path(__file__).parent / "work")
    work = parser.parse_args().work
    generate_family(work)
    base, expert = (readable(work, label) for label in ("base", "math"))
    recipe, data = work / "loss.yaml", work / "loss.txt"
    recipe.write_text(f"base: {base}\nmodels: [{{model: {expert}, edits: [{{drop: {{density: 0.5}}}}]}}]\n")
    data.write_text(
        "".join(" ".join(f"t{3 + i + 7 * c}" for i in range(WORDS)) + "\n" for c in range(CHUNKS))
    )
    command = Path(sys.executable).with_name("deltasmith")
    ours = [command, "loss", recipe, "--data", data, "--batch", "1", "--json"]
    cases = {
        "plain: 2 forward and backward passes": [
            sys.executable,
            "-c",
            PLAIN,
            expert,
            str(CHUNKS),
            str(WORDS),
        ],
        "loss, left, 1 step: 2 of them, and 4 losses": [*ours, "--rule", "left", "--steps", "1"],
        "loss, midpoint, 2 steps: 4 of them, and 6 losses": [*ours, "--rule", "midpoint", "--steps", "2"],
    }
    print(describe())
    print("| | s | CPU-s | peak GB | x plain |\n|---|---:|---:|---:|---:|")
    plain = 0
    for name, command in cases.items():
        costs = [measure(command, folder=Path.cwd()) for _ in range(REPETITIONS)]
        middle = [statistics.median(getattr(c, field) for c in costs) for field in Cost.__slots__]
        plain = plain or middle[2]
        row = f"{middle[0]:.1f} | {middle[1]:.1f} | {middle[2] / 1e9:.2f} | {middle[2] / plain:.2f}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
