"""The root's features that every model has: followed edge by edge, not by their numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from deltasmith.features.comparing import Comparison
from deltasmith.features.graph import Edge, Graph
from deltasmith.features.outcome import Universal
from deltasmith.features.rates import rate_of, share_of

__all__ = ["reachable", "universal"]

Indices = npt.NDArray[np.int32]


def reachable(graph: Graph) -> tuple[str, ...]:
    """Return the root and every model that descends from it, in the order of the graph."""
    root = graph.root.label
    return tuple(n.label for n in graph.nodes if n.label == root or root in graph.ancestors(n.label))


def universal(graph: Graph, edges: Mapping[Edge, Comparison]) -> Universal:
    """Follow the root's testable features along every edge on a way from the root, to the same feature everywhere.

    A feature is universal if it persists along each of these edges, the edge from a merge's base to the merge among
    them, and if at a merge all ways lead to one feature there. Edges from models that do not descend from the root
    are left out. Under every resample partners and statuses are those of that resample.
    """
    members = reachable(graph)
    testable = next(found.testable for edge, found in edges.items() if edge.parent == members[0])
    home = np.arange(testable.shape[1], dtype=np.int32)
    at: dict[str, Indices] = {members[0]: np.where(testable, home, np.int32(-1))}
    for label in members[1:]:
        ways = [
            _along(found, at[e.parent]) for e, found in edges.items() if e.child == label and e.parent in at
        ]
        here = ways[0]
        for way in ways[1:]:
            here = np.where(way == here, here, np.int32(-1))
        at[label] = here
    everywhere = np.stack([at[label] for label in members]).min(axis=0) >= 0
    found = np.flatnonzero(everywhere[0])
    features = np.stack([at[label][0][found] for label in members], axis=1).astype(np.int32)
    return Universal(rate_of(share_of(everywhere, testable)), members, features)


def _along(found: Comparison, features: Indices) -> Indices:
    """Go along an edge: (1 + resamples, root's features) of the parent -> those of the child, -1 where it ends."""
    safe = np.maximum(features, 0).astype(np.int64)
    goes_on = (features >= 0) & np.take_along_axis(found.persisted, safe, axis=1)
    return np.where(goes_on, np.take_along_axis(found.child_of, safe, axis=1), np.int32(-1))
