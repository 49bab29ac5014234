"""The lineage diagram as SVG: shapes from numbers, colours from the page's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from deltasmith.features.graph import Graph
from deltasmith.features.outcome import EdgeOutcome, MemberOutcome
from deltasmith.features.page.escaping import text
from deltasmith.features.page.flow import Band, Box, Flow, layout
from deltasmith.features.page.markup import amount, percent

__all__ = ["lineage_map"]

_MARGIN = (12.0, 12.0, 26.0, 12.0)  # top, right, bottom, left of the diagram
_LONG = 26
_WIDE = 1300  # a diagram wider than this is not shrunk to the narrowest screens
_SHORT = 12  # names so long can be written large, and the diagram shrunk to a telephone's width


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
    named = max(len(box.label) for box in flow.boxes)
    kind = " wide" if width > _WIDE else " whole" if named <= _SHORT else ""
    return (
        f'<svg class="map{kind}" viewBox="{-left:g} {-top:g} {width:.1f} {height:.1f}" role="group" '
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
