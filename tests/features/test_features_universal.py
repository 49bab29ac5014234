"""Universal features: followed edge by edge, and every way must lead to the same place."""

from __future__ import annotations

from typing import Any

import numpy as np

from deltasmith.features.comparing import Comparison
from deltasmith.features.graph import Edge, Graph, Node
from deltasmith.features.outcome import FATE, Fate
from deltasmith.features.universal import reachable, universal

KEPT, GONE, RARE = (FATE.index(f) for f in (Fate.PERSISTED, Fate.DISAPPEARED, Fate.UNEXERCISED))
GRAPH = Graph(
    (
        Node("base", None, "base"),
        Node("lua", None, "lua", ("base",)),
        Node("stories", None, "stories", ("base",)),
        Node("merged", None, "merged", ("lua", "stories"), "base"),
    )
)


def compared(child_of: list[Any], fate: list[Any] | None = None) -> Comparison:
    """Make a comparison in which features of the parent persist as given; one row, or one for each resample."""
    partners = np.atleast_2d(np.array(child_of, np.int32))
    fates = np.where(partners >= 0, KEPT, GONE) if fate is None else np.atleast_2d(np.array(fate))
    empty = np.zeros((len(partners), 9), np.int8)
    return Comparison(
        None, None, fates.astype(np.int8), empty, partners, empty.astype(np.int32), np.zeros((1, 5))
    )  # type: ignore[arg-type]


def edges(**changed: Comparison) -> dict[Edge, Comparison]:
    same = [0, 1, 2, 3]
    found = {
        "lua": compared([1, 0, 2, 3]),  # lua has the first two under each other's index
        "stories": compared(same),
        "base": compared(same),
        "lua_merged": compared([1, 0, 2, 3]),
        "stories_merged": compared(same),
    } | changed
    places = {
        "lua": Edge("base", "lua"),
        "stories": Edge("base", "stories"),
        "base": Edge("base", "merged", "base"),
        "lua_merged": Edge("lua", "merged"),
        "stories_merged": Edge("stories", "merged"),
    }
    return {places[name]: comparison for name, comparison in found.items()}


def test_features_are_followed_by_their_partners_and_not_by_index() -> None:
    found = universal(GRAPH, edges())
    assert found.members == ("base", "lua", "stories", "merged")
    assert found.features.tolist() == [[0, 1, 0, 0], [1, 0, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]
    assert found.share.value == 1


def test_a_feature_that_is_lost_on_any_edge_is_not_universal() -> None:
    for name in ("lua", "stories", "base"):
        assert universal(
            GRAPH, edges(**{name: compared([-1, 1, 2, 3] if name != "lua" else [-1, 0, 2, 3])})
        ).features[:, 0].tolist() == [1, 2, 3]


def test_ways_that_lead_to_different_features_are_none() -> None:
    found = universal(GRAPH, edges(stories_merged=compared([0, 1, 3, 2])))
    assert found.features[:, 0].tolist() == [0, 1]
    found = universal(GRAPH, edges(base=compared([1, 0, 2, 3])))
    assert found.features[:, 0].tolist() == [2, 3]


def test_the_share_is_of_the_features_that_can_be_told_of() -> None:
    rare = compared([1, 0, 2, 3], [KEPT, KEPT, GONE, RARE])
    found = universal(GRAPH, edges(lua=rare))
    assert found.features[:, 0].tolist() == [0, 1]
    assert found.share.value == 2 / 3


def test_resamples_follow_their_own_partners() -> None:
    two = edges(lua=compared([[1, 0, 2, 3], [1, 0, -1, 3]]))
    doubled = {
        edge: c if len(c.fate) == 2 else compared(np.repeat(c.child_of, 2, axis=0).tolist())
        for edge, c in two.items()
    }
    found = universal(GRAPH, doubled)
    assert found.features[:, 0].tolist() == [0, 1, 2, 3]
    assert found.share.value == 1


def test_what_does_not_descend_from_the_root_is_left_out() -> None:
    graph = Graph((Node("a", None, "a"), Node("b", None, "b"), Node("m", None, "m", ("a", "b"))))
    assert reachable(graph) == ("a", "m")
    found = universal(graph, {Edge("a", "m"): compared([0, 1]), Edge("b", "m"): compared([1, 0])})
    assert found.members == ("a", "m")
    assert found.features.tolist() == [[0, 0], [1, 1]]
