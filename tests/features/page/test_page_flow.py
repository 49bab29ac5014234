"""Boxes and bands of the lineage diagram: to scale, in order, apart, for any graph without cycles."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from deltasmith.features.graph import Graph, Node
from deltasmith.features.outcome import EdgeOutcome, Outcome
from deltasmith.features.page.charts import Line, Scale, lines, stacked
from deltasmith.features.page.curves import curve
from deltasmith.features.page.drawing import lineage_map
from deltasmith.features.page.flow import Band, Flow, layout
from deltasmith.features.study import Study

DEEP = Graph(
    (
        Node("a", None, "a"),
        Node("b", None, "b", ("a",)),
        Node("c", None, "c", ("b",)),
        Node("d", None, "d", ("a",)),
        Node("m", None, "m", ("c", "d"), "a", "ties"),
        Node("alone", None, "alone"),
        Node("n", None, "n", ("m", "alone")),
    )
)


def edges_of(graph: Graph, like: EdgeOutcome) -> list[EdgeOutcome]:
    return [replace(like, parent=e.parent, child=e.child, kind=e.kind) for e in graph.edges]


@pytest.fixture(scope="module")
def flow(study: Study, outcome: Outcome) -> Flow:
    return layout(study.graph, outcome.edges)


def band(flow: Flow, parent: str, child: str, status: str) -> Band:
    return next(b for b in flow.bands if (b.parent, b.child, b.status) == (parent, child, status))


def test_bands_are_as_thick_as_they_are_many(flow: Flow, outcome: Outcome) -> None:
    scales = []
    for edge in outcome.edges:
        _, top, bottom = band(flow, edge.parent, edge.child, "persisted").points[0]
        scales.append((bottom - top) / edge.counts["persisted"])
        _, top, bottom = band(flow, edge.parent, edge.child, "disappeared").points[0]
        scales.append((bottom - top) / edge.counts["disappeared"])
        _, top, bottom = band(flow, edge.parent, edge.child, "emerged").points[-1]
        scales.append((bottom - top) / edge.child_counts["emerged"])
    assert scales == pytest.approx([scales[0]] * len(scales))


def test_what_is_not_there_has_no_band(flow: Flow, outcome: Outcome) -> None:
    assert outcome.edge("base", "lua").counts["drifted"] == 0
    assert not [b for b in flow.bands if (b.child, b.status) == ("lua", "drifted")]


def test_bands_begin_and_end_at_their_bars(flow: Flow) -> None:
    boxes = {box.label: box for box in flow.boxes}
    for one in flow.bands:
        parent, child = boxes[one.parent], boxes[one.child]
        if one.status != "emerged":
            x, top, bottom = one.points[0]
            assert x == parent.x + parent.width
            assert parent.y - 1e-6 <= top <= bottom <= parent.y + parent.height + 1e-6
        if one.status != "disappeared":
            x, top, bottom = one.points[-1]
            assert x == child.x
            assert child.y - 1e-6 <= top <= bottom <= child.y + child.height + 1e-6


def test_a_long_edge_passes_between_the_models_of_the_column(flow: Flow) -> None:
    boxes = {box.label: box for box in flow.boxes}
    middle = band(flow, "base", "merged", "persisted").points[1]
    assert middle[0] == boxes["lua"].x == boxes["stories"].x
    assert boxes["lua"].y + boxes["lua"].height < middle[1] < middle[2] < boxes["stories"].y


@pytest.mark.parametrize("graph", [DEEP, Graph(DEEP.nodes[:2])])
def test_any_graph_has_a_place_for_everything(graph: Graph, outcome: Outcome) -> None:
    found = edges_of(graph, outcome.edges[0])
    flow = layout(graph, found)
    boxes = {box.label: box for box in flow.boxes}
    assert list(boxes) == [node.label for node in graph.nodes]
    for edge in graph.edges:
        assert boxes[edge.parent].x < boxes[edge.child].x
        assert (edge.parent, edge.child) in flow.middles
    for one in flow.boxes:
        assert one.x >= 0
        assert one.x + one.width <= flow.width + 1e-6
        assert one.y >= 0
        assert one.y + one.height <= flow.height + 1e-6
        for other in flow.boxes:
            if other.label > one.label and other.x == one.x:
                assert one.y + one.height < other.y or other.y + other.height < one.y


def test_an_edge_without_any_features_is_drawn_all_the_same(outcome: Outcome) -> None:
    graph = Graph(DEEP.nodes[:2])
    nothing = replace(edges_of(graph, outcome.edges[0])[0], counts={}, child_counts={})
    flow = layout(graph, [nothing])
    assert flow.bands == ()
    assert all(math.isfinite(box.y) and box.height > 0 for box in flow.boxes)


def test_the_drawing_is_well_formed_and_inert(study: Study, outcome: Outcome) -> None:
    label = '<b onclick="x">&\u202e'
    graph = Graph(tuple(replace(n, label=label) if n.label == "base" else
                        replace(n, parents=tuple(label if p == "base" else p for p in n.parents),
                                base=label if n.base else None) for n in study.graph.nodes))  # fmt: skip
    edges = [replace(e, parent=label if e.parent == "base" else e.parent) for e in outcome.edges]
    drawn = lineage_map(graph, edges, {}, {(label, "lua", "disappeared"): "g3"})
    tree = ET.fromstring(drawn)
    assert [a.get("href") for a in tree.iter("a")] == ["#g3"]
    assert not [
        e for e in tree.iter() if e.tag in ("b", "script") or "onclick" in e.attrib or "style" in e.attrib
    ]
    assert "75.9 %" in [t.text for t in tree.iter("text")]


def test_the_curve_has_a_point_for_each_threshold_and_a_line_for_each_floor(outcome: Outcome) -> None:
    edge = outcome.edges[1]
    tree = ET.fromstring(curve(edge, 0.8))
    circles = list(tree.iter("circle"))
    assert len(circles) == 4
    heights = [float(c.get("cy", "nan")) for c in circles]
    assert heights == sorted(heights)
    own, floors = [p for p in tree.iter("polyline") if p.get("class") == "own"], list(tree.iter("polyline"))
    assert (len(own), len(floors) - 1) == (1, len(edge.floors))
    assert [p.findtext("title") for p in floors[:2]] == ["base~again", "base~seed1"]
    assert min(float(point.split(",")[1]) for point in floors[0].get("points", "").split()) == 10.0  # 100 %


def test_points_without_values_leave_a_gap() -> None:
    scale = Scale.of([0.0, 0.5, 1.0, 1.5], 0, 1, percent=True)
    line = Line("x", "c0", [0.1, None, 0.3, 0.4], [0.0, None, 0.2, 0.3], [0.2, None, 0.4, 0.5])
    drawn = ET.fromstring(f"<g>{lines([line], scale)}</g>")
    assert [len(p.get("points", "").split()) for p in drawn.iter("polyline")] == [1, 2]
    assert len(list(drawn.iter("circle"))) == 3
    areas = ET.fromstring(f"<g>{stacked([line, line], scale)}</g>")
    assert len(list(areas.iter("polygon"))) == 4


def test_stacked_shares_lie_upon_each_other() -> None:
    scale = Scale.of(["add", "ties"], 0, 1, percent=True)
    assert scale.names == ("add", "ties")
    first, second = (Line(name, "c0", [0.25, 0.5]) for name in "ab")
    below, above = ET.fromstring(f"<g>{stacked([first, second], scale)}</g>")
    top_of_first = below.get("points", "").split()[:2]
    bottom_of_second = above.get("points", "").split()[:1:-1]
    assert top_of_first == bottom_of_second
    assert scale.y(0) > scale.y(0.5) > scale.y(1)
