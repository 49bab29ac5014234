"""One feature through the whole graph: where it is in every other model, link by link. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deltasmith.features.outcome import DESCENT, Descent, EdgeOutcome, Links, Outcome

__all__ = ["Anchor", "Trace", "earliest", "trace"]

_PERSISTED = DESCENT.index(Descent.PERSISTED)


@dataclass(frozen=True, order=True)
class Anchor:
    """A feature of one model: what a card is about."""

    member: str
    feature: int


@dataclass(frozen=True)
class Trace:
    """The partner of one feature in every model that it can be followed to.

    `features` holds them by the model's label, the anchor's own first. `linked` are the models where the partner is
    the same feature by the weak threshold at least; in the others it is merely the nearest.
    """

    anchor: Anchor
    features: Mapping[str, int]
    linked: frozenset[str]


def trace(outcome: Outcome, anchor: Anchor, weak: float) -> Trace:
    """Follow best partners from the anchor along the edges, the nearest models first, while r >= weak."""
    features, linked, queue = {anchor.member: anchor.feature}, {anchor.member}, [anchor.member]
    while queue:
        here = queue.pop(0)
        for other, links in _around(outcome, here):
            at = features[here]
            if other in features or links.best[at] < 0:
                continue
            features[other] = int(links.best[at])
            if links.r[at] >= weak:
                linked.add(other)
                queue.append(other)
    return Trace(anchor, features, frozenset(linked))


def earliest(outcome: Outcome, anchor: Anchor) -> Anchor:
    """Climb to the first model that the feature persists from, so that one lineage has one card."""
    while True:
        above = (e for e in outcome.edges if e.child == anchor.member and _came(e, anchor.feature))
        edge = next(above, None)
        if edge is None:
            return anchor
        anchor = Anchor(edge.parent, int(edge.children.best[anchor.feature]))


def _came(edge: EdgeOutcome, feature: int) -> bool:
    return bool(edge.children.status[feature] == _PERSISTED)


def _around(outcome: Outcome, label: str) -> Iterator[tuple[str, Links]]:
    for edge in outcome.edges:
        if edge.parent == label:
            yield edge.child, edge.parents
        elif edge.child == label:
            yield edge.parent, edge.children
