"""The tiers that work on this machine, and what is left of them in its process table."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deltasmith.errors import DeltasmithError
from deltasmith.evaluate.sandbox import Tier, choose_tier
from deltasmith.evaluate.sandbox.tiers import TIERS

__all__ = ["ISOLATING", "children", "tier_called", "vanish"]

ISOLATING = TIERS[:-1]


def tier_called(name: str) -> Tier:
    try:
        return choose_tier(name)
    except DeltasmithError as why:
        pytest.skip(f"{name} does not work on this machine: {why.what}")


def children() -> set[int]:
    """Every process on this machine that was started as a sandbox's child."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"known = frozenset(sys.modules)" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def vanish() -> bool:
    """Tell whether every child there is now ends soon; those of another test process end too."""
    remaining, until = children(), time.monotonic() + 20
    while remaining and time.monotonic() < until:
        time.sleep(0.05)
        remaining &= children()
    return not remaining
