"""Pictures of what edits do to the loss: along the path, tensor by tensor, over a sweep. Needs matplotlib.

Losses are in nats, per token or per example of a classifier. Colours are told apart by the colour-blind, and
nothing is told by colour alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.analysis.drawing import (
    BAND,
    BLACK,
    BLUE,
    GREY,
    RED,
    Shading,
    bar,
    grid_name,
    hatch_absent,
    look_of,
    shown,
    title,
)
from deltasmith.analysis.rules import Grid, Rule
from deltasmith.analysis.sweep_plots import sweep_plot
from deltasmith.evaluate.plots import canvas
from deltasmith.table.names import layer_of

if TYPE_CHECKING:
    from deltasmith.analysis.line_search import LineSearch
    from deltasmith.analysis.objective import Matrix
    from deltasmith.analysis.report import Estimate, LossReport

__all__ = ["heatmap", "line_search_plot", "path_plot", "sweep_plot"]

_NEAR = 2.0  # how far beyond the other losses, in their span, a base's loss may lie and still be drawn


def path_plot(report: LossReport, file: str | Path) -> None:
    """Draw the loss along the path, its ends with intervals, and behind the end what each rule predicts.

    The band is the margin around the start's loss. Raises MissingExtraError without matplotlib, RecipeError for
    another ending than .png or .svg, ResourceError where the file cannot be written.
    """
    start = report.start_loss.value
    predictions = report.predictions
    with canvas(file, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        axes.axhspan(start - report.margin, start + report.margin, color=BAND, linewidth=0, label="margin")
        points = sorted(report.along)
        axes.plot(*zip(*points, strict=True), "-o", color=BLUE, markersize=4, label="loss on the path")
        for t, estimate in ((0.0, report.start_loss), (1.0, report.end_loss)):
            bar(axes, t, estimate, BLUE)
        for place, prediction in enumerate(predictions):
            colour, marker = look_of(prediction.grid.rule)
            x = 1 + 0.06 * (place + 1)
            value = start + prediction.change.value
            axes.plot([x], [value], marker, color=colour, markersize=6, label=grid_name(prediction.grid))
            change = prediction.change
            axes.plot([x, x], [start + change.low, start + change.high], color=colour, linewidth=1.4)
        note = _base_line(axes, report.base_loss, [loss for _, loss in points])
        axes.set_xlim(-0.04, 1.04 + 0.06 * len(predictions))
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["start", "0.2", "0.4", "0.6", "0.8", "end"])
        axes.set_xlabel(f"position on the path{note}")
        axes.set_ylabel(f"loss, nats per {report.data.unit}")
        title(
            axes,
            f"{shown(report.start)} → {shown(report.end)}: {_change(report.measured)}, {report.verdict}",
        )
        figure.legend(loc="outside lower center", ncols=min(3, len(predictions) + 2))


def _base_line(axes: Any, base: float | None, losses: Sequence[float]) -> str:
    """Draw the base's loss if it is near the others; say it beside the axis if not."""
    if base is None:
        return ""
    low, high = min(losses), max(losses)
    room = _NEAR * (high - low)
    if not low - room <= base <= high + room:
        return f" (the base's loss, {base:.4g}, lies outside)"
    axes.axhline(base, color=BLACK, linestyle="--", linewidth=1.1, label="loss of the base")
    return ""


def heatmap(report: LossReport, grid: Grid | Rule | None, file: str | Path) -> None:
    """Draw what each tensor adds to the change of the loss: layers from left to right, projections below each other.

    Every stack of layers has a panel, and tensors outside them one of their own. Numbered parts within a layer
    (experts) are added up. Orange is harm, blue is gain, white is nothing; hatched cells do not exist. `grid` is a grid
    or a rule of the report, None the most exact. Raises what `path_plot` raises.
    """
    prediction = report.prediction(grid)
    stacks, alone = _stacks(prediction.contributions)
    largest = max((abs(v) for v in prediction.contributions.values()), default=0.0)
    for _, _, values in stacks:
        largest = max(largest, float(np.nanmax(np.abs(values))))
    widest = max((values.shape[1] for _, _, values in stacks), default=0)
    heights = [max(1.0, 0.26 * len(rows)) for _, rows, _ in stacks] + ([0.26 * len(alone)] if alone else [])
    with canvas(
        file, min(14.0, max(6.4, 3.2 + 0.17 * widest)), max(3.6, sum(heights) + 0.75 * len(heights) + 0.9)
    ) as figure:
        shading = Shading(largest)
        layout = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        panels = []
        for place, (stack, rows, values) in enumerate(stacks):
            panels.append(axes := figure.add_subplot(layout[place]))
            _cells(axes, values, shading)
            axes.set_yticks(range(len(rows)), [shown(row) for row in rows], parse_math=False)
            _layer_ticks(axes, values.shape[1])
            axes.set_xlabel(f"layer of {shown(stack)}" if len(stacks) > 1 else "layer", parse_math=False)
        if alone:
            panels.append(axes := figure.add_subplot(layout[-1]))
            _cells(axes, np.array([[value] for value in alone.values()]), shading)
            axes.set_yticks(range(len(alone)), [shown(_short(name)) for name in alone], parse_math=False)
            axes.set_xticks([])
            axes.set_xlabel("outside the layers")
        scale = figure.colorbar(shading.map, ax=panels, fraction=0.04, pad=0.02, aspect=30)
        scale.set_label(f"adds to the change of the loss, nats per {report.data.unit}")
        if panels:
            said = f"{grid_name(prediction.grid)}: {prediction.change.value:+.4g}"
            title(panels[0], f"{said} predicted, {report.measured.value:+.4g} measured")


def _cells(axes: Any, values: Matrix, shading: Shading) -> None:
    masked = np.ma.masked_invalid(values)
    hatch_absent(axes)
    axes.imshow(masked, aspect="auto", cmap=shading.map.cmap, norm=shading.map.norm, interpolation="nearest")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    rows, columns = values.shape
    for edge in range(1, rows):
        axes.axhline(edge - 0.5, color="white", linewidth=0.6)
    for edge in range(1, columns if columns <= 100 else 0):
        axes.axvline(edge - 0.5, color="white", linewidth=0.4)


def _stacks(
    contributions: Mapping[str, float],
) -> tuple[list[tuple[str, list[str], Matrix]], dict[str, float]]:
    """Lay contributions out: each stack with its projections and a matrix (projections, layers); the rest alone."""
    cells: dict[str, dict[tuple[str, int], float]] = {}
    alone: dict[str, float] = {}
    for name, value in contributions.items():
        found = layer_of(name)
        if found is None:
            alone[name] = value
            continue
        stack, number = found
        inner = name[len(stack) + 1 + len(str(number)) :] if stack else name[len(str(number)) :]
        projection = _short(re.sub(r"(?<![^._:/])\d+(?=[._:/])", "*", inner.lstrip("._:/")))
        own = cells.setdefault(stack, {})
        own[projection, number] = own.get((projection, number), 0.0) + value
    laid = []
    for stack, own in cells.items():
        rows = list(dict.fromkeys(projection for projection, _ in own))
        values = np.full((len(rows), max(number for _, number in own) + 1), np.nan)
        for (projection, number), value in own.items():
            values[rows.index(projection), number] = value
        laid.append((stack, rows, values))
    return laid, alone


def _short(name: str) -> str:
    return name.removesuffix(".weight")


def _layer_ticks(axes: Any, layers: int) -> None:
    """Number every layer, or every second, fifth, … so that the numbers do not touch."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000, layers) if layers / s <= 32)
    axes.set_xticks(range(0, layers, step), [str(n) for n in range(0, layers, step)])


def line_search_plot(search: LineSearch, file: str | Path) -> None:
    """Draw loss and slope against α: the chunks searched on, those held out, and where the search ended.

    The band is the interval of α. Raises what `path_plot` raises.
    """
    visited = sorted(search.evaluations, key=lambda e: e.alpha)
    alphas = [e.alpha for e in visited]
    with canvas(file, 6.4, 5.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for axes in (upper, lower):
            axes.axvspan(*search.interval, color=BAND, linewidth=0)
            axes.axvline(search.alpha, color=BLACK, linestyle="--", linewidth=1.1)
            axes.axvline(0.0, color=GREY, linewidth=0.8)
        upper.plot(
            alphas, [e.search_loss for e in visited], "-o", color=BLUE, markersize=4, label="searched on"
        )
        upper.plot(
            alphas, [e.held_out_loss for e in visited], "--s", color=RED, markersize=4, label="held out"
        )
        upper.plot([], [], color=BLACK, linestyle="--", linewidth=1.1, label=f"α = {search.alpha:.3g}")
        upper.fill_between([], [], [], color=BAND, label=f"interval, by {search.interval_from}")
        lower.plot(alphas, [e.slope for e in visited], "-o", color=BLUE, markersize=4)
        lower.axhline(0.0, color=GREY, linewidth=0.8)
        margin = 0.04 * (search.high - search.low)
        lower.set_xlim(search.low - margin, search.high + margin)
        upper.set_ylabel("mean loss, nats")
        lower.set_ylabel("slope of the loss")
        lower.set_xlabel("α: start + α · direction")
        low_high = search.measured_interval
        bounds = "" if low_high is None else f" [{low_high[0]:+.4g}, {low_high[1]:+.4g}]"
        title(
            upper,
            f"{search.advises}: {search.measured:+.4g}{bounds} held out, {search.predicted:+.4g} predicted",
        )
        figure.legend(loc="outside lower center", ncols=4)


def _change(estimate: Estimate) -> str:
    bounds = f" [{estimate.low:+.4g}, {estimate.high:+.4g}]" if math.isfinite(estimate.low) else ""
    return f"{estimate.value:+.4g}{bounds}"
