"""The graph of models that features are followed through: who descends from whom. No files, no arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from deltasmith.errors import RecipeError, printable

__all__ = ["Edge", "Graph", "Node"]


@dataclass(frozen=True)
class Node:
    """One model. Without parents it is a root, with one a fine-tune, with several a merge.

    `base` is the model that a merge's deltas are taken from, if that is in the graph too. `source` is what the user
    named; `shown` what may be written down (no absolute path). `method` names a merge's rule.
    """

    label: str
    source: Any
    shown: str
    parents: tuple[str, ...] = ()
    base: str | None = None
    method: str | None = None

    @property
    def is_merge(self) -> bool:
        """Tell whether several models were merged into this one."""
        return len(self.parents) > 1

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, without the source."""
        return {
            "label": self.label,
            "model": self.shown,
            "parents": list(self.parents),
            "base": self.base,
            "method": self.method,
        }


@dataclass(frozen=True)
class Edge:
    """Features are followed from `parent` to `child`; `kind` is `base` where a merge's base is the parent."""

    parent: str
    child: str
    kind: Literal["parent", "base"] = "parent"


@dataclass(frozen=True)
class Graph:
    """Models in an order in which parents come before children. RecipeError for cycles and unknown parents."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            for label in (*node.parents, *filter(None, [node.base])):
                if label not in seen:
                    raise RecipeError(
                        f"{printable(node.label)!r} descends from {printable(label)!r}, which is no model before it",
                        where="lineage",
                        fix="name every parent as a model, and let no model descend from itself",
                    )
            if node.label in seen:
                raise RecipeError(
                    f"two models are called {printable(node.label)!r}", where="lineage", fix="rename one"
                )
            seen.add(node.label)

    @classmethod
    def sorted(cls, nodes: Sequence[Node]) -> Graph:
        """Order nodes so that parents come first, else as given."""
        left, done, ordered = list(nodes), set[str](), list[Node]()
        while left:
            ready = [n for n in left if {*n.parents, *filter(None, [n.base])} <= done]
            if not ready:
                ordered += left  # __post_init__ says what is wrong
                break
            ordered.append(ready[0])
            done.add(ready[0].label)
            left.remove(ready[0])
        return cls(tuple(ordered))

    @cached_property
    def by_label(self) -> dict[str, Node]:
        """Find nodes by label."""
        return {node.label: node for node in self.nodes}

    @property
    def root(self) -> Node:
        """Return the first model, which no other precedes."""
        return self.nodes[0]

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Return every edge, in the order of the children; a merge's base comes before its parents."""
        return tuple(self._edges())

    @property
    def merges(self) -> tuple[Node, ...]:
        """Return the nodes with several parents."""
        return tuple(node for node in self.nodes if node.is_merge)

    def ancestors(self, label: str) -> tuple[str, ...]:
        """Return every model that `label` descends from, nearest first."""
        found: list[str] = []
        queue = [label]
        while queue:
            node = self.by_label[queue.pop(0)]
            for above in (*node.parents, *filter(None, [node.base])):
                if above not in found:
                    found.append(above)
                    queue.append(above)
        return tuple(found)

    def start_of(self, label: str) -> str | None:
        """Name the model whose dictionary a warm start begins with.

        A fine-tune begins with its parent's. A merge begins with its base's, or with that of the nearest ancestor
        which all its parents share, so that neither parent is favoured; failing both, with its first parent's.
        """
        node = self.by_label[label]
        if not node.is_merge:
            return node.parents[0] if node.parents else node.base
        if node.base is not None:
            return node.base
        shared = [set(self.ancestors(parent)) | {parent} for parent in node.parents]
        common = set.intersection(*shared)
        return next((above for above in self.ancestors(label) if above in common), node.parents[0])

    def common_base(self, label: str) -> str | None:
        """Name the model that features of a merge can be recovered from: the base, or the common ancestor."""
        start = self.start_of(label)
        return None if start in self.by_label[label].parents else start

    def _edges(self) -> Iterator[Edge]:
        for node in self.nodes:
            above = self.common_base(node.label) if node.is_merge else None
            if above is not None:
                yield Edge(above, node.label, "base")
            yield from (Edge(parent, node.label) for parent in node.parents)
