"""When and where results were made, on one line."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path

import numpy

from deltasmith import __version__

__all__ = ["made"]


def made() -> str:
    """Return the date, the processor, and the versions that computed."""
    versions = f"deltasmith {__version__}, numpy {numpy.__version__}, Python {platform.python_version()}"
    return f"{date.today().isoformat()} on {_processor()}, {os.cpu_count()} threads; {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
