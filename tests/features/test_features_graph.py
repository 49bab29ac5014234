"""Who descends from whom, where a dictionary begins, and what is no graph."""

from __future__ import annotations

import pytest
from made_studies import GRAPH

from deltasmith.errors import RecipeError
from deltasmith.features.graph import Edge, Graph, Node


def node(label: str, *parents: str, base: str | None = None) -> Node:
    return Node(label, label, label, parents, base)


def test_edges_of_the_papers_graph() -> None:
    assert GRAPH.edges == (
        Edge("base", "lua"),
        Edge("base", "stories"),
        Edge("base", "merged", "base"),
        Edge("lua", "merged"),
        Edge("stories", "merged"),
    )
    assert [merge.label for merge in GRAPH.merges] == ["merged"]
    assert GRAPH.root.label == "base"


def test_a_merge_begins_with_what_its_parents_share() -> None:
    graph = Graph((node("r"), node("a", "r"), node("b", "a"), node("c", "a"), node("m", "b", "c")))
    assert graph.start_of("m") == "a"
    assert graph.common_base("m") == "a"
    assert graph.start_of("b") == "a"
    assert graph.start_of("r") is None


def test_a_merge_of_parent_and_child_has_no_base_apart_from_them() -> None:
    graph = Graph((node("r"), node("a", "r"), node("m", "r", "a")))
    assert graph.start_of("m") == "r"
    assert graph.common_base("m") is None
    assert Edge("r", "m", "base") not in graph.edges


def test_a_named_base_wins_over_a_nearer_ancestor() -> None:
    graph = Graph((node("r"), node("a", "r"), node("b", "a"), node("c", "a"), node("m", "b", "c", base="r")))
    assert graph.start_of("m") == "r"


def test_sorted_puts_parents_first_and_keeps_the_order_else() -> None:
    graph = Graph.sorted([node("m", "b", "a"), node("b", "r"), node("r"), node("a", "r")])
    assert [n.label for n in graph.nodes] == ["r", "b", "a", "m"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("a", "b"), node("b", "a")], "descends from"),
        ([node("a", "a")], "descends from"),
        ([node("a", "elsewhere")], "'elsewhere'"),
        ([node("a"), node("a")], "two models"),
    ],
)
def test_what_is_no_graph_is_refused(nodes: list[Node], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Graph.sorted(nodes)
