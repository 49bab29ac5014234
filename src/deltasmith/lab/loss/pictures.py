"""The page's own pictures: predicted against measured, and the surface of k-DARE over masks and experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.evaluate.plots import COLOURS, canvas
from deltasmith.lab.loss.figures import Regime, number
from deltasmith.lab.loss.points import CLASSES

__all__ = ["scatter", "surface"]

_SHOWN = ("left 1", "left 5", "midpoint 5")
_LOOKS: Mapping[str, tuple[str, str]] = {
    "competitive": (COLOURS[0], "o"),
    "decreased": (COLOURS[1], "s"),
    "improved": (COLOURS[2], "^"),
    "other": (COLOURS[7], "x"),
}
_NAMES = {
    "competitive": "DARE, k-DARE",
    "decreased": "BitDelta, SVD, TIES trim",
    "improved": "ExPO",
    "other": "all others",
}


def scatter(file: Path, regime: Regime) -> None:
    """Draw each edit's predicted change over its measured one, a panel for each of three rules.

    Axes are linear within the smallest margin and logarithmic beyond; on the diagonal a prediction is exact.
    """
    margin = min(regime.margins.values())
    ends = [number(row, key) for row in regime.edits for key in (*_SHOWN, "measured")]
    low, high = (
        10.0 ** math.ceil(math.log10(max(-min(ends), margin))),
        10.0 ** math.ceil(math.log10(max(ends))),
    )
    decades = [10.0**power for power in range(-2, round(math.log10(max(low, high))) + 1, 2)]
    ticks = [
        *(-one for one in reversed(decades) if one <= low),
        0.0,
        *(one for one in decades if one <= high),
    ]
    with canvas(file, 9.6, 3.9) as figure:
        panels = figure.subplots(1, len(_SHOWN), sharex=True, sharey=True)
        for axes, key in zip(panels, _SHOWN, strict=True):
            axes.axhspan(-margin, margin, color="#EEEEEE", linewidth=0)
            axes.axvspan(-margin, margin, color="#EEEEEE", linewidth=0)
            for name, (colour, marker) in _LOOKS.items():
                rows = [row for row in regime.edits if CLASSES.get(str(row.keys["group"]), "other") == name]
                xs, ys = ([number(row, which) for row in rows] for which in ("measured", key))
                look = {"color": colour, "marker": marker, "s": 11, "linewidths": 0.8, "alpha": 0.8}
                axes.scatter(xs, ys, label=_NAMES[name], **look)
            axes.plot([-low, high], [-low, high], color="#444444", linewidth=0.8)
            axes.set_xscale("symlog", linthresh=margin, linscale=0.7)
            axes.set_yscale("symlog", linthresh=margin, linscale=0.7)
            axes.set_xlim(-low, high)
            axes.set_ylim(-low, high)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set_title(f"{key.split()[0]} rule, C = {key.split()[1]}")
            axes.set_xlabel("measured change of the loss")
        panels[0].set_ylabel("predicted change")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


def surface(file: Path, regimes: Sequence[Regime]) -> None:
    """Draw the mean change of the loss under k-DARE, over masks and experts, in margins, a panel for each regime."""
    from matplotlib.colors import LinearSegmentedColormap, SymLogNorm

    colours = LinearSegmentedColormap.from_list("harm", [COLOURS[0], "#FFFFFF", COLOURS[1]])
    tables = [_table(regime) for regime in regimes]
    largest = max(float(np.abs(values).max()) for _, _, values in tables)
    norm: Any = SymLogNorm(linthresh=1.0, vmin=-largest, vmax=largest, base=10)
    with canvas(file, 3.3 * len(regimes) + 0.8, 3.4) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(regimes), sharey=True))
        for axes, regime, (ks, rates, values) in zip(panels, regimes, tables, strict=True):
            axes.imshow(values, origin="lower", aspect="auto", cmap=colours, norm=norm)
            for (y, x), value in np.ndenumerate(values):
                ink = "white" if abs(value) > 0.3 * largest else "black"
                axes.text(x, y, _brief(value), ha="center", va="center", fontsize=7, color=ink)
            axes.set_xticks(range(len(ks)), [f"{k:g}" for k in ks])
            axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axes.grid(visible=False)
            axes.set_xlabel("k")
            axes.set_title(f"{regime.name} deltas" if regime.name != "vision" else "vision")
        panels[0].set_ylabel("p, the share multiplied by k")
        figure.suptitle(
            "mean change of the loss under k-DARE, in margins (beyond ±1 it is harm or gain)", fontsize=9
        )


def _brief(value: float) -> str:
    return f"{value:+.2f}" if abs(value) < 1 else f"{value:+.1f}" if abs(value) < 10 else f"{value:+.0f}"


def _table(regime: Regime) -> tuple[list[float], list[float], Any]:
    rows = regime.of("second_order")
    ks = sorted({number(row, "k") for row in rows})
    rates = sorted({number(row, "rate") for row in rows})
    values = np.zeros((len(rates), len(ks)))
    for row in rows:
        place = rates.index(number(row, "rate")), ks.index(number(row, "k"))
        values[place] += number(row, "measured") / regime.margins[row.task] / len(regime.tasks)
    return ks, rates, values
