"""The lineage diagram and the small charts as SVG: shapes from numbers, colours from the page's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from deltasmith.features.graph import Graph
from deltasmith.features.outcome import EdgeOutcome, MemberOutcome, Rate
from deltasmith.features.page.escaping import text
from deltasmith.features.page.flow import Band, Box, Flow, layout
from deltasmith.features.page.markup import amount, percent

__all__ = ["curve", "lineage_map"]

_MARGIN = (12.0, 12.0, 26.0, 12.0)  # top, right, bottom, left of the diagram
_LONG = 26
_WIDE = 1300  # a diagram wider than this is not shrunk to the narrowest screens


def lineage_map(
    graph: Graph,
    edges: Sequence[EdgeOutcome],
    members: Mapping[str, MemberOutcome],
    links: Mapping[tuple[str, str, str], str],
) -> str:
    """Draw models as bars and features as bands between them. `links` are galleries by parent, child and status."""
    flow = layout(graph, edges)
    top, right, bottom, left = _MARGIN
    width, height = flow.width + left + right, flow.height + top + bottom
    bands = "".join(_band(band, links.get((band.parent, band.child, band.status))) for band in flow.bands)
    boxes = "".join(_box(box, flow, members.get(box.label)) for box in flow.boxes)
    captions = "".join(_caption(edge, flow.middles[edge.parent, edge.child]) for edge in edges)
    wide = " wide" if width > _WIDE else ""
    return (
        f'<svg class="map{wide}" viewBox="{-left:g} {-top:g} {width:.1f} {height:.1f}" role="group" '
        'aria-label="Features flow from each model to those that descend from it; the tables have the numbers">'
        f"<defs>{_fade('fade-disappeared', 'disappeared', 1, 0)}{_fade('fade-emerged', 'emerged', 0, 1)}</defs>"
        f"<g>{bands}</g><g>{boxes}</g><g>{captions}</g></svg>"
    )


def _fade(name: str, status: str, first: int, last: int) -> str:
    stops = "".join(
        f'<stop class="stop-{status}" offset="{at}" stop-opacity="{opacity * 0.85:g}"/>'
        for at, opacity in ((0, first), (1, last))
    )
    return f'<linearGradient id="{name}">{stops}</linearGradient>'


def _band(band: Band, link: str | None) -> str:
    path = _outline(band.points)
    title = f"{band.parent} → {band.child}: {amount(band.count)} {band.status}"
    shape = (
        f'<path class="band s-{band.status}" data-status="{band.status}" d="{path}">'
        f"<title>{text(title)}</title></path>"
    )
    return f'<a href="#{link}" aria-label="{text(title)}">{shape}</a>' if link else shape


def _outline(points: Sequence[tuple[float, float, float]]) -> str:
    """Go along the upper edge and back along the lower one, in curves that leave and arrive level."""
    upper = [(x, y) for x, y, _ in points]
    lower = [(x, y) for x, _, y in reversed(points)]
    return f"M{_curves(upper)}L{_curves(lower)}Z"


def _curves(points: Sequence[tuple[float, float]]) -> str:
    drawn = [f"{points[0][0]:.1f},{points[0][1]:.1f}"]
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (x + to_x) / 2
        drawn.append(f"C{middle:.1f},{y:.1f} {middle:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}")
    return "".join(drawn)


def _box(box: Box, flow: Flow, member: MemberOutcome | None) -> str:
    last = box.x + box.width >= flow.width
    anchor, x = ("end", box.x + box.width) if last and box.x else ("start", box.x)
    if not last and box.x:
        anchor, x = "middle", box.x + box.width / 2
    label = box.label if len(box.label) <= _LONG else f"{box.label[:_LONG]}…"
    below = f"{amount(member.testable)} testable features" if member else ""
    return (
        f'<rect class="bar" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="4">'
        f"<title>{text(box.label)}</title></rect>"
        f'<text class="name" x="{x:.1f}" y="{box.y - 22:.1f}" text-anchor="{anchor}">{text(label)}</text>'
        f'<text class="sub" x="{x:.1f}" y="{box.y - 7:.1f}" text-anchor="{anchor}">{below}</text>'
    )


def _caption(edge: EdgeOutcome, at: tuple[float, float]) -> str:
    floor = edge.floors[0].persisted.value if edge.floors else None
    beside = f"floor {percent(floor)}" if floor is not None else "no floor"
    return (
        f'<text class="share" x="{at[0]:.1f}" y="{at[1] - 1:.1f}" text-anchor="middle">'
        f"{percent(edge.rates['persisted'].value)}</text>"
        f'<text class="sub halo" x="{at[0]:.1f}" y="{at[1] + 14:.1f}" text-anchor="middle">{beside}</text>'
    )


def curve(points: Mapping[str, Rate], floor: float | None, strong: float) -> str:
    """Draw the share with a mutual partner against the threshold, with intervals, and the floor as a line."""
    width, height, left, base = 210.0, 120.0, 30.0, 98.0
    xs = sorted(float(name) for name in points)
    low, high = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1

    def x(threshold: float) -> float:
        return left + 8 + (threshold - low) / (high - low) * (width - left - 20)

    def y(value: float) -> float:
        return base - min(max(value, 0.0), 1.0) * (base - 10)

    placed = [(x(float(name)), rate) for name, rate in points.items() if rate.value == rate.value]
    line = " ".join(f"{at:.1f},{y(rate.value):.1f}" for at, rate in placed)
    marks = "".join(
        (
            f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{y(rate.low):.1f}" y2="{y(rate.high):.1f}"/>'
            if rate.low is not None and rate.high is not None
            else ""
        )
        + f'<circle cx="{at:.1f}" cy="{y(rate.value):.1f}" r="3"><title>{percent(rate.value)}</title></circle>'
        for at, rate in placed
    )
    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{width}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{left - 5}" y="{y(v) + 3:.1f}" text-anchor="end">{100 * v:.0f}</text>'
        for v in (0.0, 0.5, 1.0)
    )
    ticks = "".join(
        f'<text class="tick" x="{x(at):.1f}" y="{base + 14}" text-anchor="middle">{at:g}</text>' for at in xs
    )
    mark = f'<line class="strong" x1="{x(strong):.1f}" x2="{x(strong):.1f}" y1="10" y2="{base}"/>'
    rule = (
        ""
        if floor is None
        else f'<line class="floor" x1="{left}" x2="{width}" y1="{y(floor):.1f}" y2="{y(floor):.1f}"/>'
    )
    inside = mark if low <= strong <= high else ""
    return (
        f'<svg class="curve" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="Share with a mutual partner by '
        f'threshold">{grid}{ticks}{inside}{rule}<polyline points="{line}"/>{marks}</svg>'
    )
