"""Describes the machine and the software of a measurement; no names of hosts, users or folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

__all__ = ["commit", "cores", "describe", "versions"]


def cores() -> int:
    """Count the processors this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, str | int | float]:
    return {
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": cores(),
        "memory_gib": round(int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) / (1 << 20), 1),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    names = ("deltasmith", "numpy", "numba", "ml_dtypes", "safetensors")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """Return the short hash of the checkout's commit, with a plus sign if files differ from it."""
    here = Path(__file__).parent
    try:
        revision = _git("rev-parse", "--short", "HEAD", folder=here)
        return revision + ("+" if _git("status", "--porcelain", "--untracked-files=no", folder=here) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str, folder: Path) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def _field(path: Path, key: str) -> str:
    """Return the first value of a `key : value` file of /proc."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"
