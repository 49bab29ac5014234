"""Results of packed deltas as a run would leave them, with answers drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.lab import EXPERTS
from deltasmith.lab.packed import distilled, merges
from deltasmith.lab.packed.points import BUDGETS, POINTS
from deltasmith.lab.rows import Results, Row

ITEMS = 40
STATIC = ("base", "experts", "average", "ta", "ties", "elect", "emr", "emr_l2", "emr_packed", "linears")


def results(regimes: Sequence[str] = ("small", "large"), seeds: Sequence[int] = (0,)) -> Results:
    rows: list[Row] = []
    for seed in seeds:
        for regime in regimes:
            keys = {"train_seed": seed, "mask_seed": 0, "regime": regime}
            rows += [row for task in EXPERTS for row in _rows(keys, task)]
    settings = {"made": "today", "held_out": {}, "train_seeds": list(seeds), "regimes": list(regimes)}
    return Results("packed", settings, tuple(rows))


def saved(folder: Path, name: str, **options: Any) -> Path:
    results(**options).save(folder / name)
    return folder


def _rows(keys: dict[str, Any], task: str) -> list[Row]:
    found = [
        ("base", "", 0),
        ("expert", "", 0),
        *((p.group, p.name, d) for p in POINTS for d in range(p.draws)),
    ]
    found += [("budget", f"budget {budget}", 0) for budget in BUDGETS]
    rows = [
        _row({**keys, "experiment": "curves", "mask_seed": draw, "group": group, "point": name}, task)
        for group, name, draw in found
    ]
    methods = [*STATIC, "bitdelta", "claq:bits=2", merges_name(8, -1, 1), merges_name(1, 16, 1)]
    rows += [_row({**keys, "experiment": "merges", "method": method}, task) for method in methods]
    for codec in distilled.CODECS:
        for data in ("none", *distilled.DATA):
            learnt = {} if data == "none" else {"loss_before": 2.0, "loss_after": 0.5, "factor": 1.5}
            rows.append(
                _row({**keys, "experiment": "distilled", "codec": codec, "data": data, **learnt}, task)
            )
    return rows


def merges_name(router: int, rank: int, top: int) -> str:
    return merges.smile_name(router, rank, top)


def _row(keys: dict[str, Any], task: str) -> Row:
    """Answer a share that depends on the keys, so that tables differ from cell to cell."""
    text = repr(sorted(keys.items()))
    share = 0.9 if keys.get("group") in ("expert", "claq") else (sum(text.encode()) % 50 + 30) / 100
    right = np.arange(ITEMS) < round(share * ITEMS)
    return Row({"ratio": 0.1 + share / 9, "error": 0.5, **keys}, task, right)
