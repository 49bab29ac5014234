"""Which features are shown: galleries by what became of them, in a stated order, under one cap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from deltasmith.features.outcome import (
    DESCENT,
    FATE,
    ORIGIN,
    Descent,
    EdgeOutcome,
    Fate,
    MergeOutcome,
    Origin,
    Outcome,
)
from deltasmith.features.page.tracing import Anchor, earliest
from deltasmith.features.pattern_records import Patterns
from deltasmith.kernels.bits import uniform_bits

__all__ = ["Gallery", "chosen", "galleries", "of_patterns"]

Places = npt.NDArray[np.int64]
Fires = Mapping[str, npt.NDArray[np.int64]]
_RANDOM = 0x6665_6174  # "feat": the key of the random sample, besides the seed
_DEEP = 400
"""So many candidates of a gallery are looked at; more than any page shows."""


@dataclass(frozen=True)
class Gallery:
    """Features of one kind: `total` of them exist, `anchors` are some, the first to be shown first.

    `edge` names the parent, the child and the status where the gallery is that of a band in the lineage map.
    """

    group: str
    title: str
    about: str
    total: int
    anchors: tuple[Anchor, ...]
    edge: tuple[str, str, str] | None = None


def galleries(outcome: Outcome, fires: Fires, seed: int) -> tuple[Gallery, ...]:
    """List the galleries of a study. `fires` counts the tokens that each latent of each model fires on."""
    found = [*_of_graph(outcome, fires, seed)]
    for merge in outcome.merges:
        found += _of_merge(outcome, merge, fires)
    for edge in outcome.edges:
        found += _of_edge(edge, fires)
    return tuple(_each_once(outcome, one) for one in found)


def of_patterns(outcome: Outcome, patterns: Sequence[Patterns]) -> tuple[Gallery, ...]:
    """List a gallery for every pattern: the features that follow it best, of each model in turn."""
    models = {label for edge in outcome.edges for label in (edge.parent, edge.child)}
    found = []
    for one in (one for each in patterns for one in each.found):
        known = [member for member in one.members if member.label in models]
        most = max((len(member.detectors) for member in known), default=0)
        anchors = [
            Anchor(member.label, member.detectors[at].latent)
            for at in range(most)
            for member in known
            if at < len(member.detectors)
        ]
        gallery = _each_once(outcome, Gallery("Patterns", one.name, "", len(anchors), tuple(anchors)))
        about = (
            f"Features that fire best where {one.expression} matches, first the best of each model: "
            f"{one.matches} matches, {one.tokens} tokens. {len(anchors)} features of {len(known)} models; those that "
            f"persist from one model to the next share a card, which leaves {len(gallery.anchors)}."
        )
        found.append(replace(gallery, about=about, total=len(gallery.anchors)))
    return tuple(found)


def _each_once(outcome: Outcome, one: Gallery) -> Gallery:
    return replace(one, anchors=tuple(dict.fromkeys(earliest(outcome, anchor) for anchor in one.anchors)))


def chosen(found: Sequence[Gallery], cap: int) -> tuple[Gallery, ...]:
    """Deal features out to the galleries in turns until `cap` different ones are shown."""
    taken: dict[Anchor, None] = {}
    kept: list[list[Anchor]] = [[] for _ in found]
    for turn in range(max((len(one.anchors) for one in found), default=0)):
        for one, mine in zip(found, kept, strict=True):
            if turn < len(one.anchors) and (one.anchors[turn] in taken or len(taken) < cap):
                taken[one.anchors[turn]] = None
                mine.append(one.anchors[turn])
    return tuple(replace(one, anchors=tuple(mine)) for one, mine in zip(found, kept, strict=True))


def _of_graph(outcome: Outcome, fires: Fires, seed: int) -> Iterator[Gallery]:
    universal = outcome.universal
    root = universal.members[0]
    least = np.full(len(universal.features), np.inf)
    for edge in (e for e in outcome.edges if e.parent in universal.members):
        column = universal.features[:, universal.members.index(edge.parent)]
        least = np.minimum(least, edge.parents.r[column])
    order = np.argsort(-least, kind="stable")
    yield Gallery(
        "Whole graph",
        "Universal",
        f"Features of {root} that persist along every edge; first those whose weakest correlation is highest.",
        len(order),
        _anchors(root, universal.features[order, universal.members.index(root)]),
    )
    drifted = [(edge, at) for edge in outcome.edges for at in _having(edge, Fate.DRIFTED)]
    drifted.sort(key=lambda pair: float(pair[0].parents.r[pair[1]]))
    yield Gallery(
        "Whole graph",
        "Largest drift",
        "Features whose partner fires on many of the same tokens but not on most; first those that moved furthest.",
        len(drifted),
        tuple(Anchor(edge.parent, int(at)) for edge, at in drifted[:_DEEP]),
    )
    live = np.flatnonzero(fires[root] > 0)
    drawn = live[np.argsort(uniform_bits(seed & (2**64 - 1) ^ _RANDOM, 0, len(live)), kind="stable")]
    yield Gallery(
        "Whole graph",
        "Random sample",
        f"Live features of {root} drawn by the study's seed: what most features look like.",
        len(live),
        _anchors(root, drawn),
    )


def _of_merge(outcome: Outcome, merge: MergeOutcome, fires: Fires) -> Iterator[Gallery]:
    def gallery(title: str, about: str, places: Places) -> Gallery:
        ordered = _often(places, fires[merge.label])
        return Gallery(
            f"Merge: {merge.label}",
            title,
            f"{about} First those that fire most.",
            len(places),
            _anchors(merge.label, ordered),
        )

    def of(origin: Origin) -> Places:
        return np.flatnonzero(merge.origin == ORIGIN.index(origin))

    if merge.base is not None:
        about = f"Features of {merge.base} that disappeared in a parent and are back in {merge.label}."
        yield gallery("Recovered", about, of(Origin.RECOVERED))
    yield _lost(outcome, merge, fires)
    yield gallery("Novel in merge", "Features that no parent and no base has.", of(Origin.NOVEL))
    inherited = of(Origin.INHERITED)
    for at, parent in enumerate(merge.parents):
        places = inherited[(merge.inherited_from[inherited] >> at) & 1 == 1]
        others = " and ".join(p for p in merge.parents if p != parent)
        about = f"Features that come from {parent}, and not also from {others}."
        yield gallery(f"From {parent}", about, places)
    yield gallery("Consensus", "Features that come from every parent.", of(Origin.CONSENSUS))


def _lost(outcome: Outcome, merge: MergeOutcome, fires: Fires) -> Gallery:
    """Take from each parent in turn what disappeared in the merge."""
    each = [
        _anchors(parent, _often(_having(outcome.edge(parent, merge.label), Fate.DISAPPEARED), fires[parent]))
        for parent in merge.parents
    ]
    turns = (mine[at] for at in range(max(map(len, each))) for mine in each if at < len(mine))
    return Gallery(
        f"Merge: {merge.label}",
        "Lost in merge",
        f"Features of the parents with no partner in {merge.label}. First those that fire most.",
        sum(merge.lost.values()),
        tuple(turns),
    )


def _of_edge(edge: EdgeOutcome, fires: Fires) -> Iterator[Gallery]:
    group = f"{edge.parent} → {edge.child}"
    gone = _often(_having(edge, Fate.DISAPPEARED), fires[edge.parent])
    yield Gallery(
        group,
        "Disappeared",
        f"Features of {edge.parent} with no partner in {edge.child}. First those that fire most.",
        edge.counts[Fate.DISAPPEARED],
        _anchors(edge.parent, gone),
        (edge.parent, edge.child, "disappeared"),
    )
    fresh = np.flatnonzero(edge.children.status == DESCENT.index(Descent.EMERGED))
    yield Gallery(
        group,
        "Emerged",
        f"Features of {edge.child} with no partner in {edge.parent}. First those that fire most.",
        edge.child_counts[Descent.EMERGED],
        _anchors(edge.child, _often(fresh, fires[edge.child])),
        (edge.parent, edge.child, "emerged"),
    )


def _having(edge: EdgeOutcome, fate: Fate) -> Places:
    return np.flatnonzero(edge.parents.status == FATE.index(fate))


def _often(places: Places, fires: npt.NDArray[np.int64]) -> Places:
    return places[np.argsort(-fires[places], kind="stable")]


def _anchors(label: str, places: npt.NDArray[np.integer]) -> tuple[Anchor, ...]:
    return tuple(Anchor(label, int(at)) for at in places[:_DEEP])
