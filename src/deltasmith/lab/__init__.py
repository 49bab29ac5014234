"""The small reproducible model family: its tasks, tokenizer and training script, and where the files lie.

Importing this package loads nothing heavy; torch is needed by `deltasmith.lab.train` alone.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["BUNDLED_REGIMES", "EXPERTS", "REGIMES", "family_folder"]

REGIMES = ("small", "medium", "large")
BUNDLED_REGIMES = ("small", "large")
EXPERTS = ("math", "code", "ins")


def family_folder() -> Path:
    """Return the folder of the bundled family: base/, small/, large/, items/ and RECORD.json."""
    return Path(str(files("deltasmith"))) / "family"
