"""Where everything in the lineage diagram is: boxes of models in columns, bands of features between. Numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from deltasmith.features.graph import Edge, Graph
from deltasmith.features.outcome import EdgeOutcome

__all__ = ["STATUSES", "Band", "Box", "Flow", "layout"]

STATUSES = ("persisted", "drifted", "split", "fused", "disappeared", "emerged")
"""The bands of an edge from top to bottom; the last two end, or begin, in between."""
_FLOWING = STATUSES[:4]
_COLUMN = 400.0  # from one column to the next
_BAR = 14.0
_TALL = 360.0  # the height of the tallest column's bars
_LABEL = 44.0  # room above a bar for the model's name
_APART = 26.0  # between the bars of a column
_PORT = 10.0  # between the edges at one bar
_STUB = 74.0  # how far a band reaches that ends or begins in between
_SWEEPS = 6

Place = str | tuple[str, str, int]
"""A model, or the point where a long edge passes a column."""


@dataclass(frozen=True)
class Box:
    """One model's bar: its upper left corner and size."""

    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Band:
    """The features of one status along one edge, from left to right.

    `points` are (x, top, bottom) of the band where it leaves, passes and arrives; two or more.
    """

    parent: str
    child: str
    status: str
    count: int
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Flow:
    """The whole diagram; `middles` is where an edge's own caption stands."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    bands: tuple[Band, ...]
    middles: Mapping[tuple[str, str], tuple[float, float]]


def layout(graph: Graph, edges: Sequence[EdgeOutcome]) -> Flow:
    """Place any directed graph without cycles: a column for each step from the roots, few crossings, bands to scale.

    Every edge compares all of its parent's features, so a bar is as tall as the edges at its busier side together.
    """
    return _Layout(graph, {(e.parent, e.child): e for e in edges}).flow()


class _Layout:
    def __init__(self, graph: Graph, edges: Mapping[tuple[str, str], EdgeOutcome]) -> None:
        self.graph, self.edges = graph, edges
        self.depth = _depths(graph)
        self.routes = {(e.parent, e.child): self._route(e) for e in graph.edges}
        self.columns = _ordered(self._columns(), list(self.routes.values()))
        self.scale = self._scale()
        self.tops: dict[Place, float] = {}

    def flow(self) -> Flow:
        heights = [sum(map(self._room, column)) + _APART * (len(column) - 1) for column in self.columns]
        height = max(heights)
        for column, taken in zip(self.columns, heights, strict=True):
            y = (height - taken) / 2
            for place in column:
                self.tops[place] = y + (_LABEL if isinstance(place, str) else 0.0)
                y += self._room(place) + _APART
        boxes = tuple(
            Box(n.label, self._x(n.label), self.tops[n.label], _BAR, self._thickness(n.label))
            for n in self.graph.nodes
        )
        starts, ends = self._ports()
        bands: list[Band] = []
        middles = {}
        for key, route in self.routes.items():
            found, middles[key] = self._edge(key, route, starts[key], ends[key])
            bands += found
        width = _COLUMN * (len(self.columns) - 1) + _BAR
        return Flow(width, height, boxes, tuple(bands), middles)

    def _x(self, place: Place) -> float:
        return _COLUMN * self._depth(place)

    def _depth(self, place: Place) -> int:
        return self.depth[place] if isinstance(place, str) else place[2]

    def _route(self, edge: Edge) -> tuple[Place, ...]:
        between = range(self.depth[edge.parent] + 1, self.depth[edge.child])
        return (edge.parent, *((edge.parent, edge.child, at) for at in between), edge.child)

    def _columns(self) -> list[list[Place]]:
        columns: list[list[Place]] = [[] for _ in range(max(self.depth.values()) + 1)]
        for node in self.graph.nodes:
            columns[self.depth[node.label]].append(node.label)
        for route in self.routes.values():
            for place in route[1:-1]:
                column = columns[self._depth(place)]
                column.insert((len(column) + 1) // 2, place)
        return columns

    def _leaving(self, key: tuple[str, str]) -> list[int]:
        counts = self.edges[key].counts
        return [counts.get(status, 0) for status in STATUSES[:5]] + [0]

    def _arriving(self, key: tuple[str, str]) -> list[int]:
        counts = self.edges[key].child_counts
        return [counts.get(status, 0) for status in _FLOWING] + [0, counts.get("emerged", 0)]

    def _counted(self, place: Place) -> tuple[int, int]:
        """Return how many features are to be drawn at a place, and how many edges' ports."""
        if not isinstance(place, str):
            key = place[:2]
            return max(sum(self._leaving(key)[:4]), sum(self._arriving(key)[:4])), 1
        out = [key for key in self.routes if key[0] == place]
        into = [key for key in self.routes if key[1] == place]
        leaving = sum(sum(self._leaving(key)) for key in out), len(out)
        return max(leaving, (sum(sum(self._arriving(key)) for key in into), len(into)))

    def _scale(self) -> float:
        most = max(sum(self._counted(place)[0] for place in column) for column in self.columns)
        return _TALL / max(most, 1)

    def _thickness(self, place: Place) -> float:
        count, ports = self._counted(place)
        return max(count * self.scale + _PORT * max(ports - 1, 0), 8.0 if isinstance(place, str) else 0.0)

    def _room(self, place: Place) -> float:
        return self._thickness(place) + (_LABEL if isinstance(place, str) else 0.0)

    def _ports(self) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
        """Return the height at which each edge leaves its parent's bar and reaches its child's, uncrossed."""
        starts, ends = {}, {}
        for node in self.graph.nodes:
            out = [key for key in self.routes if key[0] == node.label]
            y = self.tops[node.label]
            for key in sorted(out, key=lambda key: self.tops[self.routes[key][1]]):
                starts[key] = y
                y += sum(self._leaving(key)) * self.scale + _PORT
            into = [key for key in self.routes if key[1] == node.label]
            y = self.tops[node.label]
            for key in sorted(into, key=lambda key: self.tops[self.routes[key][-2]]):
                ends[key] = y
                y += sum(self._arriving(key)) * self.scale + _PORT
        return starts, ends

    def _edge(
        self, key: tuple[str, str], route: tuple[Place, ...], start: float, end: float
    ) -> tuple[list[Band], tuple[float, float]]:
        left, right = self._x(route[0]) + _BAR, self._x(route[-1])
        bands, passing = [], [self.tops[place] for place in route[1:-1]]
        leaving, arriving = self._leaving(key), self._arriving(key)
        first = (start, end)
        for status, out, into in zip(STATUSES, leaving, arriving, strict=True):
            above, below = out * self.scale, into * self.scale
            points = [(left, start, start + above)]
            for at, place in enumerate(route[1:-1]):
                thick = (above + below) / 2
                points += [
                    (self._x(place), passing[at], passing[at] + thick),
                    (self._x(place) + _BAR, passing[at], passing[at] + thick),
                ]
                passing[at] += thick if status in _FLOWING else 0.0
            points.append((right, end, end + below))
            if status == "disappeared":
                points = [points[0], (left + _STUB, start + 14, start + 14 + above)]
            elif status == "emerged":
                points = [(right - _STUB, end + 14, end + 14 + below), points[-1]]
            if out or into:
                bands.append(Band(*key, status, max(out, into), tuple(points)))
            start, end = start + above, end + below
        flowing = sum(leaving[:4]) * self.scale, sum(arriving[:4]) * self.scale
        middle = (first[0] + flowing[0] / 2 + first[1] + flowing[1] / 2) / 2
        if len(route) > 2:
            place = route[len(route) // 2]
            return bands, (self._x(place) + _BAR / 2, self.tops[place] + self._thickness(place) / 2)
        return bands, ((left + right) / 2, middle)


def _depths(graph: Graph) -> dict[str, int]:
    """Return of every model the longest way to it from a root."""
    depth: dict[str, int] = {}
    for node in graph.nodes:
        above = [edge.parent for edge in graph.edges if edge.child == node.label]
        depth[node.label] = max((depth[parent] + 1 for parent in above), default=0)
    return depth


def _ordered(columns: list[list[Place]], routes: Sequence[Sequence[Place]]) -> list[list[Place]]:
    """Order each column by the mean place of what its members are joined to (Sugiyama's barycentres), to and fro."""
    joined: dict[Place, set[Place]] = {}
    for route in routes:
        for one, other in pairwise(route):
            joined.setdefault(one, set()).add(other)
            joined.setdefault(other, set()).add(one)
    for sweep in range(_SWEEPS):
        order = range(1, len(columns)) if sweep % 2 == 0 else range(len(columns) - 2, -1, -1)
        for at in order:
            beside = columns[at - 1] if sweep % 2 == 0 else columns[at + 1]
            where = {place: number / max(len(beside) - 1, 1) for number, place in enumerate(beside)}
            columns[at].sort(key=lambda place: _mean(joined.get(place, set()), where))
    return columns


def _mean(around: set[Place], where: Mapping[Place, float]) -> float:
    known = sorted(where[place] for place in around if place in where)
    return sum(known) / len(known) if known else 0.5
