"""mergekit in an environment of its own: installation, the command to run, and its versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from machine import cores

__all__ = ["OPTIONS", "REQUIREMENTS", "command", "environment", "installed", "program", "setup", "versions"]

REQUIREMENTS = ("torch==2.13.0", "mergekit==0.1.5")
OPTIONS = f"--num-threads {cores()} --async-write --lazy-unpickle"
"""Its documented settings for speed on a CPU. `--lazy-unpickle` matters for pickles only and does no harm."""


def _folder(work: Path) -> Path:
    return (work / "rival").absolute()


def program(work: Path) -> Path:
    return _folder(work) / "bin" / "mergekit-yaml"


def installed(work: Path) -> bool:
    return program(work).exists()


def setup(work: Path) -> None:
    """Create the environment and install mergekit there, unless it is there. pip's own settings apply."""
    if installed(work):
        return
    print(f"installing {' '.join(REQUIREMENTS)} in {_folder(work).name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", _folder(work)], check=True)
    python = _folder(work) / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)


def command(work: Path, recipe: Path, output: Path, options: str) -> list[str | Path]:
    return [program(work), recipe, output, "--quiet", "--random-seed", "0", *options.split()]


def environment() -> dict[str, str]:
    """Let torch use every core, and keep transformers from asking the hub about local folders."""
    return {"OMP_NUM_THREADS": str(cores()), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def versions(work: Path) -> dict[str, str]:
    """Ask the other environment which versions it has."""
    names = ["mergekit", "torch", "transformers", "safetensors", "numpy"]
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    answer = subprocess.run(
        [_folder(work) / "bin" / "python", "-c", code], check=True, capture_output=True, text=True
    )
    found: dict[str, str] = json.loads(answer.stdout)
    return found
