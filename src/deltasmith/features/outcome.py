"""What following features found, as plain records: statuses, rates with their floors, and the way to JSON and back.

Numbers of latents are indices into the dictionary of the member named. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltasmith.errors import RecipeError, printable

__all__ = [
    "DESCENT",
    "FATE",
    "ORIGIN",
    "Cosines",
    "Descent",
    "EdgeOutcome",
    "Fate",
    "Floor",
    "Links",
    "MemberOutcome",
    "MergeOutcome",
    "Origin",
    "Outcome",
    "Rate",
    "Universal",
    "Verdict",
]


class Fate(StrEnum):
    """What became of a parent's feature in a child."""

    PERSISTED = "persisted"  # mutual best, r >= strong
    DRIFTED = "drifted"  # its best partner has weak <= r < strong (or is not mutual), one to one
    SPLIT = "split"  # not persisted, and two or more children of weak <= r whose best parent it is
    FUSED = (
        "fused"  # not persisted, its best child (weak <= r) has two or more parents for which it is the best
    )
    DISAPPEARED = "disappeared"  # no child with weak <= r
    UNEXERCISED = "unexercised"  # fires, but too rarely on the held-out tokens to tell
    DEAD = "dead"  # never fires on them


class Descent(StrEnum):
    """Where a child's feature comes from in one parent; the mirror of `Fate`."""

    PERSISTED = "persisted"
    DRIFTED = "drifted"
    SPLIT = "split"  # one of several that a parent's feature split into
    FUSED = "fused"  # several of the parent's features became this one
    EMERGED = "emerged"  # no parent's feature with weak <= r
    UNEXERCISED = "unexercised"
    DEAD = "dead"


class Origin(StrEnum):
    """Where a merge's feature comes from. The first that holds, in this order.

    A feature *comes from* a model when it persists on the edge from there, and a base's feature is *lost* in a parent
    where it disappeared there.
    """

    RECOVERED = "recovered"  # comes from the base, and is lost in at least one parent
    CONSENSUS = "consensus"  # comes from every parent
    INHERITED = "inherited"  # comes from some parents, not from all: `MergeOutcome.inherited_from` says which
    BASE = "base"  # comes from the base, and from no parent: it drifted, split or fused there
    DRIFTED = "drifted"  # comes from none, but has a partner of weak <= r in a parent or the base
    NOVEL = "novel"  # none has a partner of weak <= r
    UNEXERCISED = "unexercised"
    DEAD = "dead"


FATE: tuple[Fate, ...] = tuple(Fate)
DESCENT: tuple[Descent, ...] = tuple(Descent)
ORIGIN: tuple[Origin, ...] = tuple(Origin)
"""Arrays of statuses hold places in these."""

Verdict = Literal["fewer than the floor", "no evidence that features changed", "no floor"]


@dataclass(frozen=True)
class Rate:
    """A share, with its 95 % interval over resampled passages (None where there are fewer than two)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Links:
    """For every feature on one side of an edge its best partners on the other: arrays of (features,).

    `best` and `second` are int32 indices (-1: none fires together with it at all), `r` and `second_r` float32.
    `status` int8 holds places in FATE (the parent's side) or DESCENT (the child's side). `cosine` float32 is that
    of the two decoder directions, of feature and best partner; nan where there is no partner.
    """

    status: npt.NDArray[np.int8]
    best: npt.NDArray[np.int32]
    r: npt.NDArray[np.float32]
    second: npt.NDArray[np.int32]
    second_r: npt.NDArray[np.float32]
    cosine: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cosines:
    """Decoder directions of the pairs that persisted, and of all mutual best pairs."""

    persisted_median: float | None
    mutual_median: float | None
    share_above_07: float | None
    """Of the testable features, the share with any child of decoder cosine >= 0.7: what weights alone would keep."""


@dataclass(frozen=True)
class Floor:
    """How many features of the parent's model come back in a second dictionary of that same model."""

    member: str
    role: Literal["again", "seed"]
    model: str
    """The model it was measured on: the edge's parent, or the root where the parent has no floor of its own."""
    persisted: Rate
    adjusted: Rate
    """The edge's persistence over this."""
    fewer: int
    """Of the parent's features, how many persist in the floor and not on the edge; 0 where the model is another."""
    more: int
    """The reverse."""
    p_value: float | None
    """Of the sign test of `fewer` against `more`; None where the floor is another model's."""
    rates: Mapping[str, Rate] = field(default_factory=dict)
    """What stands beside every rate of the edge: by Fate, `emerged`, `mutual_R` for each R of the curve, `any_match`,
    `firing_weighted`."""


@dataclass(frozen=True)
class EdgeOutcome:
    """One edge. Shares are of the parent's testable features unless said otherwise."""

    parent: str
    child: str
    kind: Literal["parent", "base"]
    testable: int
    counts: Mapping[str, int]
    """Of the parent's features, by Fate."""
    child_counts: Mapping[str, int]
    """Of the child's features, by Descent."""
    rates: Mapping[str, Rate]
    """By Fate, of the testable features; `emerged`: of the child's testable ones."""
    floors: tuple[Floor, ...]
    null: float
    """Share of features whose best r reaches the strong threshold after the child's tokens are permuted."""
    null_quantile: float
    """The 99.9th percentile of the best r then."""
    curve: Mapping[str, Rate]
    """Share of features with a mutual best partner at r >= 0.5, 0.7, 0.8, 0.9."""
    any_match: Rate
    """Share with any partner at r >= strong, mutual or not."""
    firing_weighted: Rate
    """The share that persisted, each feature weighted by how often it fires."""
    hungarian: float | None
    """Share with r >= strong under the assignment that maximises the sum of r (within the graph of r >= weak); None
    where scipy is missing."""
    pw_mcc: float
    """Mean of the best r over the testable features of both sides (pairwise mean maximum correlation)."""
    same_index: float | None
    """Of the persisted features, the share whose partner has the same index."""
    cosines: Cosines
    weight_change: float | None
    """Relative change of the weights, |child - parent| / |parent| over all tensors, where it was recorded."""
    verdict: Verdict
    parents: Links
    children: Links


@dataclass(frozen=True, eq=False)
class MergeOutcome:
    """What became of features at a merge."""

    label: str
    base: str | None
    parents: tuple[str, ...]
    counts: Mapping[str, int]
    """Of the merge's features, by Origin; `inherited:LABEL` for each parent besides."""
    rates: Mapping[str, Rate]
    """The same over the merge's testable features."""
    lost: Mapping[str, int]
    """By parent: its features that disappeared in the merge."""
    lost_rates: Mapping[str, Rate]
    lost_everywhere: int
    """Of the base's features: gone in a parent, and gone in the merge."""
    origin: npt.NDArray[np.int8]
    """Of every feature of the merge, a place in ORIGIN."""
    inherited_from: npt.NDArray[np.int32]
    """Bit i: it comes from parent i."""


@dataclass(frozen=True, eq=False)
class Universal:
    """The root's features that persist along every edge of the graph, compared from the root, `members` in order.

    `features` (found, members) int32: the index of each in every member.
    """

    share: Rate
    members: tuple[str, ...]
    features: npt.NDArray[np.int32]


@dataclass(frozen=True)
class MemberOutcome:
    """One model's features on the held-out tokens."""

    label: str
    latents: int
    testable: int
    unexercised: int
    dead: int


@dataclass(frozen=True)
class Outcome:
    """All that `features match` found in a study."""

    settings: Mapping[str, Any]
    study: str
    """sha256 of study.json: what this belongs to."""
    members: tuple[MemberOutcome, ...]
    edges: tuple[EdgeOutcome, ...]
    merges: tuple[MergeOutcome, ...]
    universal: Universal
    notes: tuple[str, ...] = ()

    def edge(self, parent: str, child: str) -> EdgeOutcome:
        """Find an edge; RecipeError where there is none from this parent to this child."""
        for edge in self.edges:
            if (edge.parent, edge.child) == (parent, child):
                return edge
        there = ", ".join(f"{e.parent} → {e.child}" for e in self.edges)
        raise RecipeError(
            f"there is no edge from {printable(parent, 80)!r} to {printable(child, 80)!r}",
            fix=f"there are {printable(there, 1000)}",
        )
