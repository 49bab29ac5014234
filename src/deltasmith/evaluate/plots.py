"""Pictures of results: curves with intervals, and dots with intervals. Needs matplotlib (`deltasmith[plot]`).

The same input gives the same bytes of SVG: no date, no random ids, no setting of the user's own matplotlib. Series
differ by colour (after Okabe and Ito, told apart by the colour-blind), marker and line, so that grey print will do.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deltasmith.errors import MissingExtraError, RecipeError, printable
from deltasmith.evaluate.saving import write_whole

if TYPE_CHECKING:
    from deltasmith.evaluate.verdicts import Comparison

__all__ = ["COLOURS", "Curve", "Dots", "Panel", "canvas", "comparison", "curves", "dots", "panels"]

Values = Sequence[float]
Curve = tuple[str, Values, Values, Values, Values]
"""Label, x, mean, low and high; NaN leaves a point or an interval out."""
Dots = tuple[str, Values, Values, Values]
"""Label, and a mean, low and high for every row of a panel; NaN leaves a dot or an interval out."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#000000", "#777777")
"""After Okabe and Ito: told apart by the colour-blind."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES: tuple[Any, ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (7, 2)),
    (0, (1, 1)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (3, 3)),
)
_BANDS = 3  # more shaded bands than these hide each other; bars stand side by side
_LONGEST = 40  # characters of a name
_SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: small, searchable, and the reader's own font
    "svg.hashsalt": "deltasmith",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """Rows from top to bottom, and for each of them the dots of several groups."""

    rows: Sequence[str]
    groups: Sequence[Dots]
    x_label: str


def curves(
    path: Path | str,
    series: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    x_scale: Literal["linear", "log"] = "linear",
    y_from: float | None = None,
) -> None:
    """Draw lines with markers and intervals: shaded up to three series, bars beyond; .png or .svg.

    On a log scale x must be positive; what lies below `y_from` is cut off. Up to eight series can be told apart in
    grey. Raises MissingExtraError without matplotlib, RecipeError for another kind of file, ResourceError where it
    cannot be written.
    """
    names = [one[0] for one in series]
    rows = math.ceil(len(names) / _columns(names))
    with canvas(path, 6.2, 3.9 + 0.2 * max(0, rows - 3)) as figure:
        axes = figure.add_subplot()
        handles = []
        for number, (_, xs, means, lows, highs) in enumerate(series):
            look = _look(number)
            if len(series) <= _BANDS:
                axes.fill_between(xs, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
            else:
                _whiskers(axes, xs, lows, highs, look["color"])
            (line,) = axes.plot(xs, means, linestyle=_LINES[number % len(_LINES)], linewidth=1.3, **look)
            handles.append(line)
        if x_scale == "log":
            _log_scale(axes)
        if y_from is not None:
            axes.set_ylim(bottom=y_from)
        _name(axes, x_label, y_label, title)
        _legend(figure, handles, names)


def _log_scale(axes: Any) -> None:
    """Spread x by its logarithm, with ticks at 1, 2 and 5 times powers of ten in plain figures."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def dots(
    path: Path | str,
    rows: Sequence[str],
    groups: Sequence[Dots],
    *,
    x_label: str,
    title: str = "",
) -> None:
    """Draw, for each row, the dots and intervals of several groups under each other; .png or .svg.

    Raises what `curves` raises.
    """
    panels(path, [Panel(rows, groups, x_label)], title=title)


def panels(path: Path | str, parts: Sequence[Panel], *, title: str = "") -> None:
    """Draw several panels of dots under each other, each with a scale of its own, and one legend."""
    names = list(dict.fromkeys(group[0] for part in parts for group in part.groups))
    heights = [len(part.rows) * max(0.34, 0.14 * (len(part.groups) + 1)) + 0.3 for part in parts]
    legend = 0.24 * math.ceil(len(names) / _columns(names)) + 0.1 if len(names) > 1 else 0.0
    with canvas(path, 6.2, sum(heights) + 0.45 * len(parts) + legend + (0.3 if title else 0)) as figure:
        grid = figure.add_gridspec(len(parts), 1, height_ratios=heights)
        found: dict[str, Any] = {}
        for place, part in enumerate(parts):
            axes = figure.add_subplot(grid[place])
            for name, handle in _dot_panel(axes, part, names).items():
                found.setdefault(name, handle)
            _name(axes, part.x_label, "", title if place == 0 else "")
        _legend(figure, [found[name] for name in names], names)


def comparison(path: Path | str, found: Comparison) -> None:
    """Draw a comparison: shares of right in per cent with their average, other scores each on a scale of its own."""
    shares = [row for row in found.rows if row.proportion] + ([found.average] if found.average else [])
    others = [row for row in found.rows if not row.proportion]
    parts = [Panel([row.name for row in shares], _groups(found.models, shares, 100.0), "per cent")]
    parts += [
        Panel([row.name], _groups(found.models, [row], 1.0), f"{row.metric}, {_way(row.higher_is_better)}")
        for row in others
    ]
    panels(
        path,
        parts if shares else parts[1:],
        title=f"Scores with {100 * found.level:.3g} % intervals (unpaired)",
    )


def _way(up: bool) -> str:
    return "higher is better" if up else "lower is better"


def _groups(models: Sequence[str], rows: Sequence[Any], unit: float) -> list[Dots]:
    return [
        (
            name,
            [unit * row.scores[model].value for row in rows],
            [unit * row.scores[model].interval[0] for row in rows],
            [unit * row.scores[model].interval[1] for row in rows],
        )
        for model, name in enumerate(models)
    ]


def _dot_panel(axes: Any, part: Panel, names: Sequence[str]) -> dict[str, Any]:
    """Draw one panel; return the handle of each group for the legend."""
    handles = {}
    step = min(0.18, 0.74 / max(1, len(part.groups)))
    for place, (name, means, lows, highs) in enumerate(part.groups):
        look = _look(names.index(name))
        ys = [row + (place - (len(part.groups) - 1) / 2) * step for row in range(len(part.rows))]
        _bars(axes, ys, lows, highs, look["color"])
        (handles[name],) = axes.plot(means, ys, linestyle="none", **look)
    for edge in range(1, len(part.rows)):
        axes.axhline(edge - 0.5, color="#BBBBBB", linewidth=0.5)
    axes.set_yticks(range(len(part.rows)), [_shown(row) for row in part.rows], parse_math=False)
    axes.set_ylim(len(part.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return handles


def _bars(axes: Any, ys: Values, lows: Values, highs: Values, colour: str) -> None:
    """Draw intervals as lines across, at heights `ys`."""
    axes.plot(_ends(lows, highs), _thrice(ys), color=colour, linewidth=1.4, solid_capstyle="butt")


def _whiskers(axes: Any, xs: Values, lows: Values, highs: Values, colour: str) -> None:
    """Draw intervals as upright lines, at places `xs`."""
    axes.plot(_thrice(xs), _ends(lows, highs), color=colour, linewidth=1.0, solid_capstyle="butt")


def _thrice(places: Values) -> list[float]:
    return [float(place) for place in places for _ in range(3)]


def _ends(lows: Values, highs: Values) -> list[float]:
    """Return low, high and a gap of each interval: one line with gaps makes a file a third of the size."""
    return [end for low, high in zip(lows, highs, strict=True) for end in (low, high, math.nan)]


def _look(number: int) -> dict[str, Any]:
    """Return colour and marker; from the ninth on the markers are hollow."""
    colour = COLOURS[number % len(COLOURS)]
    hollow = number // len(COLOURS) % 2
    return {
        "color": colour,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 5.5,
        "markerfacecolor": "white" if hollow else colour,
    }


def _name(axes: Any, x_label: str, y_label: str, title: str) -> None:
    axes.set_xlabel(_shown(x_label), parse_math=False)
    axes.set_ylabel(_shown(y_label), parse_math=False)
    if title:
        axes.set_title(printable(title, 90), loc="left", parse_math=False)


def _columns(names: Sequence[str]) -> int:
    """Return how many entries fit side by side under a picture."""
    widest = max((len(_shown(name)) for name in names), default=1)
    return max(1, min(len(names), 4, 80 // (widest + 8)))


def _legend(figure: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    if len(names) < 2:
        return
    blank = [f"series {number}" for number in range(len(names))]
    legend = figure.legend(handles, blank, loc="outside lower center", ncols=_columns(names))
    # Names are set afterwards: matplotlib leaves out those that begin with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(_shown(name))


def _shown(name: str) -> str:
    return printable(" ".join(name.split(" ")), _LONGEST)


@contextmanager
def canvas(path: Path | str, width: float, height: float) -> Iterator[Any]:
    """Yield an empty matplotlib figure of this size in inches, and write it at the end: .png or .svg.

    Nothing is written after an error. The same drawing gives the same bytes. Raises what `curves` raises.
    """
    target = Path(path)
    kind = target.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise RecipeError(f"a picture cannot be written as {target.name}", fix="name it .svg or .png")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise MissingExtraError(
            "drawing needs matplotlib, which is not installed", fix='pip install "deltasmith[plot]"'
        ) from cause
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in any script
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        data = io.BytesIO()
        figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write_whole(target, data.getvalue())
