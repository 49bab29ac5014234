"""How far the weights of a model lie from its parent's, beside what became of the features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltasmith import api
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, RecipeError, RefusedError, ResourceError, printable
from deltasmith.features.graph import Graph
from deltasmith.table.names import Depths, layer_of

if TYPE_CHECKING:
    from deltasmith.engine.difference import Difference

__all__ = ["GROUPS", "WeightChange", "relative_changes", "weight_changes"]

GROUPS = ("embeddings", "block", "head")
"""What tensors are counted under: those before the layers, in them, and after them (the final norm among these)."""
_CANNOT = (RefusedError, RecipeError, DamagedInputError, ResourceError)


@dataclass(frozen=True)
class WeightChange:
    """The Frobenius norm of child - parent over that of the parent, over all tensors and per group.

    None where the weights do not line up, or the parent's are zero.
    """

    parent: str
    child: str
    all: float | None
    groups: Mapping[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"parent": self.parent, "child": self.child, "all": self.all, "groups": dict(self.groups)}


def weight_changes(
    graph: Graph, *, threads: int, stop: Stop, say: Callable[[int, int], None] = lambda done, of: None
) -> tuple[tuple[WeightChange, ...], tuple[str, ...]]:
    """Measure every edge, in the graph's order; and note the edges that cannot be measured.

    Parents and children are read as `deltasmith diff` reads them, tile by tile, a recipe before its result is rounded
    to its element type. Tied tensors count once, tensors that only one of the two has do not count.
    """
    edges = graph.edges
    found: dict[tuple[str, str], WeightChange] = {}
    notes: list[str] = []
    for parent in dict.fromkeys(edge.parent for edge in edges):
        children = [edge.child for edge in edges if edge.parent == parent]
        for change, note in _from(graph, parent, children, threads, stop):
            found[parent, change.child] = change
            notes += [note] if note else []
            say(len(found), len(edges))
    return tuple(found[edge.parent, edge.child] for edge in edges), tuple(notes)


def _from(
    graph: Graph, parent: str, children: Sequence[str], threads: int, stop: Stop
) -> Iterator[tuple[WeightChange, str]]:
    """Measure the children of one parent, all in one reading where they line up."""
    sources = [str(graph.by_label[child].source) for child in children]
    try:
        report = api.diff(str(graph.by_label[parent].source), sources, threads=threads, stop=stop)
    except _CANNOT as error:
        if len(children) > 1:  # one of them may be what does not line up
            for child in children:
                yield from _from(graph, parent, [child], threads, stop)
            return
        note = f"the weights of {children[0]} could not be compared with those of {parent}: {printable(error.what)}"
        yield WeightChange(parent, children[0], None, dict.fromkeys(GROUPS)), note
        return
    for at, child in enumerate(children):
        whole, groups = relative_changes(report.tensors, at)
        yield WeightChange(parent, child, whole, groups), ""


def relative_changes(
    tensors: Iterable[Difference], column: int
) -> tuple[float | None, dict[str, float | None]]:
    """Return ‖δ‖ / ‖base‖ of one model over all tensors, and over each group.

    A group without tensors, or of zeros, has None.
    """
    tensors = list(tensors)
    depths = Depths.of(tensor.name for tensor in tensors)
    sums: dict[str, list[tuple[float, float]]] = {name: [] for name in GROUPS}
    for tensor in tensors:
        change = list(tensor.columns.values())[column]
        sums[_group(tensor.name, depths)].append((change.squares, change.base_squares))
    everything = [pair for pairs in sums.values() for pair in pairs]
    return _ratio(everything), {name: _ratio(pairs) for name, pairs in sums.items()}


def _group(name: str, depths: Depths) -> str:
    if layer_of(name) is not None:
        return "block"
    return "embeddings" if depths(name) == 0 else "head"


def _ratio(pairs: Sequence[tuple[float, float]]) -> float | None:
    base = math.fsum(squares for _, squares in pairs)
    return math.sqrt(math.fsum(squares for squares, _ in pairs) / base) if base > 0 else None
