"""A small chart for every edge: what persists at other thresholds than one, beside the floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltasmith.features.outcome import EdgeOutcome, Rate
from deltasmith.features.page.escaping import text
from deltasmith.features.page.markup import percent

__all__ = ["curve", "floor_curve"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _BASE = 210.0, 120.0, 30.0, 10.0, 98.0


def floor_curve(rates: Mapping[str, Rate]) -> dict[str, Rate]:
    """Pick, of a floor's rates, those that stand beside the curve of an edge, by threshold."""
    return {name.removeprefix("mutual_"): rate for name, rate in rates.items() if name.startswith("mutual_")}


def curve(edge: EdgeOutcome, strong: float) -> str:
    """Draw the share with a mutual partner against the threshold, with intervals; every floor as a dashed line."""
    xs = sorted(float(name) for name in edge.curve)
    frame = _Frame(xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1)
    floors = "".join(
        f'<polyline class="floor at-{min(at, 1)}" points="{frame.line(floor_curve(floor.rates))}">'
        f"<title>{text(floor.member)}</title></polyline>"
        for at, floor in enumerate(edge.floors)
        if floor_curve(floor.rates)
    )
    own = f'<polyline class="own" points="{frame.line(edge.curve)}"/>'
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="Share with a mutual '
        f'partner by threshold">{frame.grid(xs, strong)}{floors}{own}{frame.marks(edge.curve)}</svg>'
    )


@dataclass(frozen=True)
class _Frame:
    low: float
    high: float

    def x(self, threshold: float) -> float:
        return _LEFT + 8 + (threshold - self.low) / (self.high - self.low) * (_WIDTH - _LEFT - 20)

    def y(self, value: float) -> float:
        return _BASE - min(max(value, 0.0), 1.0) * (_BASE - _TOP)

    def placed(self, rates: Mapping[str, Rate]) -> list[tuple[float, Rate]]:
        known = sorted(
            (float(name), rate.value, rate) for name, rate in rates.items() if rate.value == rate.value
        )
        return [(self.x(at), rate) for at, _, rate in known]

    def line(self, rates: Mapping[str, Rate]) -> str:
        return " ".join(f"{x:.1f},{self.y(rate.value):.1f}" for x, rate in self.placed(rates))

    def marks(self, rates: Mapping[str, Rate]) -> str:
        drawn = []
        for x, rate in self.placed(rates):
            if rate.low is not None and rate.high is not None:
                ends = f'y1="{self.y(rate.low):.1f}" y2="{self.y(rate.high):.1f}"'
                drawn.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
            title = f"<title>{percent(rate.value)}</title>"
            drawn.append(f'<circle cx="{x:.1f}" cy="{self.y(rate.value):.1f}" r="3">{title}</circle>')
        return "".join(drawn)

    def grid(self, xs: list[float], strong: float) -> str:
        drawn = [
            f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH:g}" y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>'
            f'<text class="tick" x="{_LEFT - 5:g}" y="{self.y(v) + 3:.1f}" text-anchor="end">{100 * v:.0f}</text>'
            for v in (0.0, 0.5, 1.0)
        ]
        drawn += [
            f'<text class="tick" x="{self.x(at):.1f}" y="{_BASE + 14:g}" text-anchor="middle">{at:g}</text>'
            for at in xs
        ]
        if self.low <= strong <= self.high:
            x = f"{self.x(strong):.1f}"
            drawn.append(f'<line class="strong" x1="{x}" x2="{x}" y1="{_TOP:g}" y2="{_BASE:g}"/>')
        return "".join(drawn)
