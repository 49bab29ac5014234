"""A bench over the bundled family with few items."""

from __future__ import annotations

from deltasmith.lab import EXPERTS, family_folder
from deltasmith.lab.bench import Bench


def bundled(regime: str = "small", test: int = 12, validation: int = 6) -> Bench:
    """Return a bench over the bundled family, training seed 0."""
    return Bench(family_folder(), 0, regime, EXPERTS, {"test": test, "validation": validation})
