"""Results of the loss experiments as a run would leave them, with changes made up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.lab.loss.page import BUNDLED
from deltasmith.lab.loss.points import KINDS, POINTS
from deltasmith.lab.rows import Results, Row

TASKS = ("math", "code", "ins")
RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
KS = (0.0, -1.0, -0.5, 0.5, 0.8)
GAIN = 0.5
"""What fine-tuning gained: the margin is 0.01."""
_GRIDS = [f"{rule} {steps}" for rule in ("left", "midpoint", "trapezoid") for steps in (1, 2, 5, 10)]


def results(regimes: Sequence[str] = ("small", "large"), tasks: Sequence[str] = TASKS) -> Results:
    """Every edit's change lies on a parabola of its place in the catalogue; the left rule sees (1 - 1/C) of it."""
    rows = [row for regime in regimes for task in tasks for row in _rows(regime, task)]
    return Results("loss", {"made": "today", "regimes": list(regimes), "tasks": list(tasks)}, tuple(rows))


def saved(folder: Path, name: str = BUNDLED, **options: Any) -> Path:
    results(**options).save(folder / name)
    return folder


def _rows(regime: str, task: str) -> Iterator[Row]:
    keys = {"regime": regime, "mask_seed": 0, "train_seed": 0}

    def row(experiment: str, accuracy: float = 0.9, **more: Any) -> Row:
        right = np.arange(40) < round(40 * accuracy)
        return Row({"experiment": experiment, **keys, **more}, task, right)

    def change(value: float, spread: float = 0.001) -> dict[str, float]:
        return {"measured": value, "low": value - spread, "high": value + spread}

    yield row("predictions", 0.1, group="base", edit="", loss=0.1 + GAIN)
    yield row("predictions", group="expert", edit="", loss=0.1)
    for place, point in enumerate(POINTS):
        first, second = (place % 7 - 3) / 100, (place + 1) ** 2 / 10_000
        told = {grid: first + second * (1 - ("left" in grid) / int(grid.split()[1])) for grid in _GRIDS}
        more = {"group": point.group, "edit": point.name, "size": 1.0, "validation": first + second}
        for draw in range(point.draws):
            accuracy = max(0.1, 0.9 - second)
            yield row(
                "predictions", accuracy, **{**more, "mask_seed": draw, **change(first + second), **told}
            )
    for rate in RATES:
        for k in KS:
            excess = 0.001 * (1 - k) ** 2 * rate / (1 - rate)
            masks = "; ".join(
                f"{excess * f + first:.6g} {excess * f - 1e-4:.6g} {excess * f + 1e-4:.6g} {first}"
                for f, first in ((0.9, 0.0), (1.1, 0.002))
            )
            more = {"k": k, "rate": rate, "hessian": excess, "fisher": 3 * excess, "masks": masks}
            more |= {"hessian_error": 0.1 * excess, "fisher_error": 0.3 * excess}
            yield row("second_order", **{**more, **change(excess, 1e-4)})
        for k in (0.5, 1.3):
            for place, kind in enumerate(KINDS):
                destroyed = place > 1 and k < 1
                more = {"k": k, "rate": rate, "kind": kind, **change(0.9 if destroyed else 0.0)}
                yield row("biased", 0.2 if destroyed else 0.9, **more)
    for step in range(-10, 11):
        alpha = step / 10
        found = change(alpha * (alpha - 0.4))
        yield row("extrapolation", alpha=alpha, by="grid", validation=alpha * (alpha - 0.2), **found)
    yield row("extrapolation", alpha=0.1, by="search", validation=-0.01, **change(-0.03))
