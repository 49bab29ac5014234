"""Pictures of sweeps: a line with intervals, or a surface of cells. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.analysis.drawing import (
    BAND,
    BLACK,
    BLUE,
    GREY,
    LONG_RANGE,
    ORANGE,
    Shading,
    bar,
    grid_name,
    hatch_absent,
    look_of,
    shown,
    title,
)
from deltasmith.errors import RecipeError
from deltasmith.evaluate.plots import canvas

if TYPE_CHECKING:
    from deltasmith.analysis.objective import Matrix
    from deltasmith.analysis.sweep_records import Sweep, SweepPoint

__all__ = ["sweep_plot"]

_SIGNS = {"competitive": "=", "decreased": "▲", "improved": "▼", "undecided": "?"}
_MARKERS = {"competitive": "o", "decreased": "^", "improved": "v", "undecided": "o"}
_MEANING = "= competitive   ▲ decreased (loss up)   ▼ improved (loss down)   ? undecided"
_LONGEST, _WIDEST = 24, 60  # characters of a value under an axis, and of all of them side by side
_TOLD = 60  # cells of a surface that get their numbers


def sweep_plot(sweep: Sweep, file: str | Path) -> None:
    """Draw a sweep: of one axis as a line with its interval, of two as a surface with contours at the margin.

    Markers tell the class of each point. Raises RecipeError for three axes or more, and what `path_plot` raises.
    """
    if len(sweep.axes) == 1:
        _line(sweep, file)
    elif len(sweep.axes) == 2:
        _surface(sweep, file)
    else:
        raise RecipeError(
            f"a sweep of {len(sweep.axes)} axes cannot be drawn", fix="sweep one or two, or read the table"
        )


def _line(sweep: Sweep, file: str | Path) -> None:
    (axis,) = sweep.axes
    numeric = axis.numeric
    xs: list[float] = (
        [float(v) for v in axis.values] if numeric else [float(i) for i in range(len(axis.values))]
    )
    order = sorted(range(len(sweep.points)), key=lambda i: xs[i])
    points, xs = [sweep.points[i] for i in order], [xs[i] for i in order]
    with canvas(file, 6.4, 4.4) as figure:
        axes = figure.add_subplot()
        axes.axhspan(-sweep.margin, sweep.margin, color=BAND, linewidth=0, label="margin")
        axes.axhline(0.0, color=GREY, linewidth=0.8)
        for grid in sweep.grids:
            colour, marker = look_of(grid.rule)
            found = [
                {p.grid: p.change.value for p in point.predictions}.get(grid, math.nan) for point in points
            ]
            look = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 0.9}
            axes.plot(xs, found, linestyle="--" if numeric else "", label=grid_name(grid), **look)
        if any(point.expected is not None for point in points):
            found = [math.nan if point.expected is None else point.expected for point in points]
            look = {"color": ORANGE, "linewidth": 1.2, "marker": "" if numeric else "_"}
            axes.plot(xs, found, linestyle=":" if numeric else "", label="expected, second order", **look)
        if numeric:
            axes.plot(xs, [p.measured.value for p in points], color=BLUE, linewidth=1.3)
        _measured(axes, xs, points)
        largest = max((abs(p.measured.value) for p in points if not p.refused), default=0.0)
        if sweep.margin and largest > LONG_RANGE * sweep.margin:
            axes.set_yscale("symlog", linthresh=sweep.margin, linscale=0.7)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.4g}" if value else "0")
        if not numeric:
            _name_values(axes, xs, [str(axis.values[i]) for i in order])
        axes.set_xlabel(shown(axis.name), parse_math=False)
        axes.set_ylabel(f"change of the loss, nats per {sweep.data.unit}")
        title(axes, f"{shown(sweep.end)}, from {shown(sweep.start)}")
        figure.legend(loc="outside lower center", ncols=3)


def _measured(axes: Any, xs: Sequence[float], points: Sequence[SweepPoint]) -> None:
    """Draw what was measured at each point, with its interval and a marker that tells its class."""
    for x, point in zip(xs, points, strict=True):
        bar(axes, x, point.measured, BLUE)
    for verdict, marker in _MARKERS.items():
        own = [
            (x, p.measured.value)
            for x, p in zip(xs, points, strict=True)
            if p.verdict == verdict and not p.refused
        ]
        look: dict[str, Any] = {"color": BLUE, "linestyle": "", "marker": marker, "markersize": 7}
        if verdict == "undecided":
            look["markerfacecolor"] = "white"
        if own:
            axes.plot(*zip(*own, strict=True), label=f"measured: {verdict}", **look)


def _surface(sweep: Sweep, file: str | Path) -> None:
    first, second = sweep.axes
    values = sweep.surface().T  # the first axis runs to the right, the second upwards
    rows, columns = values.shape
    with canvas(
        file, min(14.0, max(6.4, 2.4 + 0.62 * columns)), min(10.0, max(4.0, 1.9 + 0.44 * rows))
    ) as figure:
        axes = figure.add_subplot()
        largest = np.abs(values[np.isfinite(values)]).max(initial=sweep.margin)
        shading = Shading(float(largest), sweep.margin)
        hatch_absent(axes)
        axes.imshow(
            np.ma.masked_invalid(values),
            origin="lower",
            aspect="auto",
            cmap=shading.map.cmap,
            norm=shading.map.norm,
            interpolation="nearest",
        )
        _borders(axes, values, sweep.margin)
        told = values.size <= _TOLD
        for at, point in enumerate(sweep.points):
            x, y = divmod(at, len(second.values))
            ink = "black" if point.refused else shading.ink(point.measured.value)
            text = _cell_text(point, sweep.margin, told=told)
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=ink, linespacing=1.0)
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(-0.5, rows - 0.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        _name_values(axes, *_sparse(first.values, 24))
        places, names = _sparse(second.values, 40)
        axes.set_yticks(places, [shown(name) for name in names], parse_math=False)
        axes.set_xlabel(shown(first.name), parse_math=False)
        axes.set_ylabel(shown(second.name), parse_math=False)
        scale = figure.colorbar(shading.map, ax=axes, fraction=0.05, pad=0.02)
        _bar_ticks(scale, shading, sweep.margin)
        scale.set_label(f"change of the loss, nats per {sweep.data.unit}")
        title(
            axes,
            f"{shown(sweep.end)}, from {shown(sweep.start)}; lines where the margin, {sweep.margin:.2g}, is crossed",
        )
        figure.supxlabel(_MEANING, fontsize=8.5)


def _borders(axes: Any, values: Matrix, margin: float) -> None:
    """Draw lines between cells on different sides of the margins: a contour that claims nothing between points."""
    sides = np.where(values > margin, 1, np.where(values < -margin, -1, 0))
    rows, columns = values.shape
    for y in range(rows):
        for x in range(columns):
            if x + 1 < columns and sides[y, x] != sides[y, x + 1]:
                axes.plot([x + 0.5] * 2, [y - 0.5, y + 0.5], color=BLACK, linewidth=1.4)
            if y + 1 < rows and sides[y, x] != sides[y + 1, x]:
                axes.plot([x - 0.5, x + 0.5], [y + 0.5] * 2, color=BLACK, linewidth=1.4)


def _cell_text(point: SweepPoint, margin: float, *, told: bool) -> str:
    """Write a cell's class and, where there is room, its change, to about a tenth of the margin."""
    if point.refused:
        return "×"
    sign = _SIGNS[point.verdict]
    if not told:
        return sign
    value = point.measured.value
    digits = min(6, max(0, 1 - math.floor(math.log10(margin)))) if margin else 4
    text = f"{value:+.{digits if abs(value) < 10 else 1}f}"
    return f"{sign}\n{text if float(text) else '0'}"


def _bar_ticks(scale: Any, shading: Shading, margin: float) -> None:
    """Name the margins and powers of ten on a bar that is spread by logarithms; leave a linear one as it is."""
    if not shading.long:
        return
    least, most = math.ceil(math.log10(margin * 2)), math.floor(math.log10(shading.largest))
    powers = [10.0**e for e in range(least, most + 1)]
    ends = [margin, *powers]
    ticks = [*(-v for v in reversed(ends)), 0.0, *ends]
    scale.set_ticks(ticks, labels=[f"{tick:+.2g}" if tick else "0" for tick in ticks])
    scale.minorticks_off()


def _name_values(axes: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Write values under an axis, aslant where they would touch."""
    short = [shown(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…") for name in names]
    aslant = sum(map(len, short)) > _WIDEST
    axes.set_xticks(places, short, parse_math=False)
    for label in axes.get_xticklabels() if aslant else ():
        label.set(rotation=30, ha="right", rotation_mode="anchor")


def _sparse(values: Sequence[object], most: int) -> tuple[list[int], list[str]]:
    """Choose so many ticks that they can be read."""
    step = -(-len(values) // most)
    places = list(range(0, len(values), step))
    return places, [f"{v:g}" if isinstance(v, float) else str(v) for v in values[::step]]
