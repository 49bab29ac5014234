"""The lab: a reproducible family of small models, the papers' comparisons on it, and the page that shows them.

`family` trains, `bench` merges and scores in memory, `experiments` are the comparisons, `rows` their results, `claims`
and `page` what they say. Importing this package loads nothing heavy.
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
