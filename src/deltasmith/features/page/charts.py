"""Charts of shares and scores against one coefficient, as SVG: lines with intervals, and stacked areas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltasmith.features.page.escaping import text

__all__ = ["Line", "Scale", "chart", "lines", "stacked"]

_WIDTH, _HEIGHT = 460.0, 240.0
_LEFT, _RIGHT, _TOP, _BASE = 46.0, 12.0, 12.0, 206.0
_TICKS = 8
_FINE = 0.08  # of ticks nearer together than two per cent a decimal is written


@dataclass(frozen=True)
class Line:
    """One line: a value for each point, None where there is none. `low`, `high` bound its band; `kind` is a class."""

    name: str
    kind: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Scale:
    """Where points stand from left to right: numbers to scale, words evenly; and the range of values upwards."""

    xs: tuple[float, ...]
    names: tuple[str, ...]
    low: float
    high: float
    percent: bool

    @classmethod
    def of(cls, points: Sequence[object], low: float, high: float, *, percent: bool) -> Scale:
        """Make the scale of some points."""
        numeric = all(isinstance(p, (int, float)) and math.isfinite(p) for p in points)
        raw = [float(p) if numeric else float(at) for at, p in enumerate(points)]  # type: ignore[arg-type]
        first, last = min(raw), max(raw)
        span = (last - first) or 1.0
        room = _WIDTH - _LEFT - _RIGHT - 16
        xs = tuple(_LEFT + 8 + (x - first) / span * room for x in raw)
        names = tuple(f"{p:g}" if isinstance(p, (int, float)) else str(p) for p in points)
        return cls(xs, names, low, high if high > low else low + 1, percent)

    def y(self, value: float) -> float:
        """Return the height of a value, within the frame."""
        part = (value - self.low) / (self.high - self.low)
        return _BASE - min(max(part, 0.0), 1.0) * (_BASE - _TOP)

    def frame(self) -> str:
        """Draw the grid and the ticks."""
        drawn = []
        digits = 0 if self.high - self.low >= _FINE else 1
        for at in range(5):
            value = self.low + (self.high - self.low) * at / 4
            y = self.y(value)
            shown = f"{100 * value:.{digits}f}" if self.percent else f"{value:.2f}"
            drawn.append(
                f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            drawn.append(
                f'<text class="tick" x="{_LEFT - 6:g}" y="{y + 3.5:.1f}" text-anchor="end">{shown}</text>'
            )
        step = max(1, math.ceil(len(self.xs) / _TICKS))
        for x, name in list(zip(self.xs, self.names, strict=True))[::step]:
            drawn.append(
                f'<text class="tick" x="{x:.1f}" y="{_BASE + 16:g}" text-anchor="middle">{text(name, 12)}</text>'
            )
        return "".join(drawn)


def lines(series: Sequence[Line], scale: Scale, levels: Sequence[tuple[float, str, str]] = ()) -> str:
    """Draw lines with their bands; `levels` are horizontal lines at a value: (value, class, title)."""
    drawn = [
        f'<line class="level {kind}" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{scale.y(value):.1f}" '
        f'y2="{scale.y(value):.1f}"><title>{text(title)}</title></line>'
        for value, kind, title in levels
    ]
    for one in series:
        for run in _runs(one.values):
            if one.low and one.high:
                drawn.append(_band(one, run, scale))
            path = " ".join(f"{scale.xs[at]:.1f},{scale.y(_at(one.values, at)):.1f}" for at in run)
            drawn.append(f'<polyline class="line {one.kind}" points="{path}"/>')
            drawn += [_dot(one, at, scale) for at in run]
    return "".join(drawn)


def stacked(series: Sequence[Line], scale: Scale) -> str:
    """Draw shares one upon the other; points without values leave a gap."""
    drawn = []
    below = [0.0] * len(scale.xs)
    for one in series:
        above = [b + (v or 0.0) for b, v in zip(below, one.values, strict=True)]
        for run in _runs(one.values):
            upper = [f"{scale.xs[at]:.1f},{scale.y(above[at]):.1f}" for at in run]
            lower = [f"{scale.xs[at]:.1f},{scale.y(below[at]):.1f}" for at in reversed(run)]
            title = text(one.name)
            drawn.append(
                f'<polygon class="area {one.kind}" points="{" ".join(upper + lower)}"><title>{title}</title></polygon>'
            )
        below = above
    return "".join(drawn)


def chart(
    caption: str,
    label: str,
    scale: Scale,
    drawn: str,
    legend: Mapping[str, str],
    marks: Sequence[tuple[int, str]] = (),
) -> str:
    """Put a frame, a caption and a legend (class by name) around what was drawn; `marks` are points to point out."""
    keys = "".join(
        f'<span><i class="key {kind}"></i>{text(name, 40)}</span>' for name, kind in legend.items()
    )
    pointed = "".join(
        f'<line class="mark" x1="{scale.xs[at]:.1f}" x2="{scale.xs[at]:.1f}" y1="{_TOP:g}" y2="{_BASE:g}">'
        f"<title>{text(title)}</title></line>"
        for at, title in marks
    )
    return (
        f'<figure class="chart"><figcaption>{text(caption, 300)}</figcaption><div class="keys">{keys}</div>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{text(caption, 300)}; the table has the '
        f'numbers">{scale.frame()}{pointed}{drawn}<text class="axis" x="{(_LEFT + _WIDTH) / 2:g}" y="{_HEIGHT - 2:g}" '
        f'text-anchor="middle">{text(label, 60)}</text></svg></figure>'
    )


def _runs(values: Sequence[float | None]) -> Iterator[list[int]]:
    """Yield the places of values that follow one another without a gap."""
    run: list[int] = []
    for at, value in enumerate(values):
        if value is not None and math.isfinite(value):
            run.append(at)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _band(one: Line, run: Sequence[int], scale: Scale) -> str:
    known = [at for at in run if one.low[at] is not None and one.high[at] is not None]
    upper = [f"{scale.xs[at]:.1f},{scale.y(_at(one.high, at)):.1f}" for at in known]
    lower = [f"{scale.xs[at]:.1f},{scale.y(_at(one.low, at)):.1f}" for at in reversed(known)]
    return f'<polygon class="interval {one.kind}" points="{" ".join(upper + lower)}"/>' if known else ""


def _dot(one: Line, at: int, scale: Scale) -> str:
    value = _at(one.values, at)
    title = text(f"{one.name} at {scale.names[at]}: {_shown(value, scale)}")
    return (
        f'<circle class="dot {one.kind}" cx="{scale.xs[at]:.1f}" cy="{scale.y(value):.1f}" r="3">'
        f"<title>{title}</title></circle>"
    )


def _at(values: Sequence[float | None], at: int) -> float:
    value = values[at]
    assert value is not None
    return value


def _shown(value: float, scale: Scale) -> str:
    return f"{100 * value:.1f} %" if scale.percent else f"{value:.3f}"
