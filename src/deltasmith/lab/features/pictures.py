"""The page's pictures: what persists on every edge, and along the merge's coefficient. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltasmith.evaluate.plots import COLOURS, Dots, canvas, dots
from deltasmith.lab.features.figures import MODES, Run, Share
from deltasmith.lab.features.pooling import pooled

__all__ = ["edges_picture", "sweep_picture"]


def edges_picture(file: Path, runs: Sequence[Run]) -> None:
    """Draw the share of features that persist, a row an edge, a dot a mode; the floors come first."""
    edges = runs[0].edges
    rows = ["floor: once more", "floor: other seed", *(f"{parent} → {child}" for parent, child in edges)]
    groups: list[Dots] = []
    for mode in MODES:
        shares = [_pooled([run.floor(mode, role) for run in runs]) for role in ("again", "seed")]
        shares += [pooled([run.kept(mode, *edge) for run in runs]) for edge in edges]
        groups.append((mode, *_columns(shares)))
    dots(file, rows, groups, x_label="features that persist, per cent")


def _pooled(found: Sequence[Share | None]) -> Share | None:
    kept = [share for share in found if share is not None]
    return pooled(kept) if len(kept) == len(found) else None


def _columns(shares: Sequence[Share | None]) -> tuple[list[float], list[float], list[float]]:
    blank = float("nan")
    return (
        [100 * share.value if share else blank for share in shares],
        [100 * share.low if share else blank for share in shares],
        [100 * share.high if share else blank for share in shares],
    )


def sweep_picture(file: Path, runs: Sequence[Run]) -> None:
    """Draw, over the merge's t, which features of base and parents are kept, and how well the merge predicts text."""
    first = runs[0].sweep
    ts = [float(point["value"]) for point in first["points"]]
    labels = [first["root"], *(parent["label"] for parent in first["parents"])]
    with canvas(file, 9.2, 3.9) as figure:
        left, right = figure.subplots(1, 2)
        for number, label in enumerate(labels):
            points = [
                [Share.of(p["kept"][label]["rates"]["persisted"]) for p in run.sweep["points"]]
                for run in runs
            ]
            shares = [pooled(list(column)) for column in zip(*points, strict=True)]
            _line(left, ts, shares, number, f"features of {label}")
        for number, domain in enumerate(domain for domain, expert in first["experts"].items() if expert):
            _accuracies(right, ts, runs, domain, number + 1)
        left.set_ylabel("kept in the merge, per cent")
        right.set_ylabel("next tokens named, per cent")
        for axes in (left, right):
            axes.set_xlabel(f"{first['axis']}: from {labels[1]} to {labels[2]}")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
        left.set_ylim(0, 104)


def _line(axes: Any, ts: Sequence[float], shares: Sequence[Share], number: int, name: str) -> None:
    colour = COLOURS[number]
    lows, highs = [100 * share.low for share in shares], [100 * share.high for share in shares]
    axes.fill_between(ts, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        ts,
        [100 * share.value for share in shares],
        color=colour,
        marker="os^"[number % 3],
        markersize=4,
        label=name,
    )


def _accuracies(axes: Any, ts: Sequence[float], runs: Sequence[Run], domain: str, number: int) -> None:
    found = [[100 * point["scores"][domain]["accuracy"] for point in run.sweep["points"]] for run in runs]
    columns = list(zip(*found, strict=True))
    colour = COLOURS[number]
    axes.fill_between(
        ts, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15, linewidth=0
    )
    axes.plot(
        ts,
        [sum(c) / len(c) for c in columns],
        color=colour,
        marker="os^"[number % 3],
        markersize=4,
        label=domain,
    )
    root = runs[0].sweep["root"]
    base = [100 * run.sweep["baselines"][root]["scores"][domain]["accuracy"] for run in runs]
    axes.axhline(
        sum(base) / len(base), color=colour, linestyle="--", linewidth=0.9, label=f"{domain}: {root} alone"
    )
