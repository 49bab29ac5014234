"""One feature through the whole graph: where it is in every other model, link by link. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltasmith.errors import DamagedInputError, printable
from deltasmith.features.outcome import DESCENT, Descent, EdgeOutcome, Links, Outcome
from deltasmith.features.pattern_records import Patterns
from deltasmith.features.study import Study

__all__ = ["Anchor", "Trace", "check_detectors", "check_links", "earliest", "trace"]

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


def check_links(study: Study, outcome: Outcome, place: Path) -> None:
    """Raise DamagedInputError unless every edge is one of the study and links features that there are."""
    sizes = {label: study.codes(label).width for label in study.graph.by_label}
    told = {(edge.parent, edge.child) for edge in outcome.edges}
    sound = told == {(edge.parent, edge.child) for edge in study.graph.edges} and all(
        _within(edge.parents, sizes[edge.parent], sizes[edge.child])
        and _within(edge.children, sizes[edge.child], sizes[edge.parent])
        for edge in outcome.edges
    )
    universal, merges = outcome.universal, outcome.merges
    sound = sound and all(label in sizes for label in universal.members)
    sound = sound and all(
        bool(((column >= 0) & (column < sizes[label])).all())
        for label, column in zip(universal.members, universal.features.T, strict=True)
    )
    sound = sound and all(
        (parent, merge.label) in told and merge.label in sizes for merge in merges for parent in merge.parents
    )
    if not (sound and all(len(m.origin) == len(m.inherited_from) == sizes[m.label] for m in merges)):
        raise DamagedInputError(
            "what was matched does not fit the study",
            where=printable(str(place)),
            fix="match the study again",
        )


def check_detectors(patterns: Patterns, sizes: Mapping[str, int], place: Path) -> None:
    """Raise DamagedInputError where a pattern's feature is none of the model's. `sizes` counts each model's latents."""
    for member in (member for one in patterns.found for member in one.members if member.label in sizes):
        if not all(0 <= detector.latent < sizes[member.label] for detector in member.detectors):
            raise DamagedInputError(
                f"a pattern names a feature that {printable(member.label)} does not have",
                where=printable(str(place)),
                fix="search again",
            )


def _within(links: Links, own: int, other: int) -> bool:
    return len(links.best) == own and all(
        bool(((places >= -1) & (places < other)).all()) for places in (links.best, links.second)
    )
