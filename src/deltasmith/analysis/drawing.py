"""What the pictures of the analysis share: colours, the shading of changes, intervals, titles. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltasmith.analysis.rules import RULES, Grid
from deltasmith.errors import printable
from deltasmith.evaluate.plots import COLOURS

if TYPE_CHECKING:
    from deltasmith.analysis.report import Estimate

__all__ = [
    "BAND",
    "BLACK",
    "BLUE",
    "GREY",
    "LONG_RANGE",
    "ORANGE",
    "RED",
    "Shading",
    "bar",
    "grid_name",
    "hatch_absent",
    "look_of",
    "shown",
    "title",
]

BLUE, RED, GREEN, PURPLE, ORANGE, _, BLACK, GREY = COLOURS
BAND = "#EEEEEE"
"""Of the margin, and of intervals."""
LONG_RANGE = 20.0
"""Where the largest change is so many margins, changes are spread by their logarithms."""
_LONGEST = 40
_LOOKS = ((RED, "s"), (GREEN, "^"), (PURPLE, "D"), (BLACK, "v"), (ORANGE, "P"))
_PLAIN = (GREY, "o")


class Shading:
    """Colours from blue over white to orange, white at 0; by logarithms if the range is long."""

    def __init__(self, largest: float, margin: float | None = None) -> None:
        """Reach from -largest to largest, and bend to logarithms at the margin if one is given and small."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize, SymLogNorm

        largest = largest or 1.0
        colours = LinearSegmentedColormap.from_list("harm", [BLUE, "#FFFFFF", RED])
        norm: Any = Normalize(-largest, largest)
        self.long = bool(margin) and largest > LONG_RANGE * (margin or 0)
        if margin and self.long:
            norm = SymLogNorm(linthresh=margin, vmin=-largest, vmax=largest, base=10)
        self.largest = largest
        self.map: Any = ScalarMappable(norm=norm, cmap=colours)

    def ink(self, value: float) -> str:
        """Return black or white, whichever is read better on the value's colour."""
        red, green, blue, _ = self.map.to_rgba(value)
        return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def bar(axes: Any, x: float, estimate: Estimate, colour: str) -> None:
    """Draw an interval as an upright line; none where there is none."""
    axes.plot([x, x], [estimate.low, estimate.high], color=colour, linewidth=1.4, solid_capstyle="butt")


def look_of(rule: str) -> tuple[str, str]:
    """Return a rule's colour and marker, by its place among the rules; those beyond the last look share one.

    >>> look_of("left")[1], look_of("simpson")[1]
    ('s', 'o')
    """
    at = RULES.index(rule) if rule in RULES else len(_LOOKS)
    return _LOOKS[at] if at < len(_LOOKS) else _PLAIN


def hatch_absent(axes: Any) -> None:
    """Hatch what no cell of a matrix will cover."""
    axes.patch.set(facecolor="white", edgecolor="#AAAAAA", hatch="////", linewidth=0)


def grid_name(grid: Grid) -> str:
    """Name a grid in words: `left, 5 steps`."""
    return f"{grid.rule}, {grid.steps} step{'s' * (grid.steps != 1)}"


def title(axes: Any, text: str) -> None:
    """Write a line over a picture, as it stands: a `$` in a name is no formula."""
    axes.set_title(printable(text, 110), loc="left", parse_math=False, fontsize=9.5)


def shown(name: str) -> str:
    """Return a name that cannot disturb a picture: printable, and not too long."""
    return printable(name, _LONGEST)
