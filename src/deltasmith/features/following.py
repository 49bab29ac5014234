"""`features match`: every edge of a study compared, with its floors and its null; then merges, and the whole graph.

Reads what `features train` wrote; needs neither torch nor the models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, InterruptedRunError, RecipeError, printable
from deltasmith.features.codes import Codes
from deltasmith.features.comparing import Comparison, Passages, compare
from deltasmith.features.edges import edge_outcome, null_of, weight_changes
from deltasmith.features.graph import Edge
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.origins import merge_outcome
from deltasmith.features.outcome import EdgeOutcome, MemberOutcome, MergeOutcome, Outcome
from deltasmith.features.outcome_files import check_out, write_outcome
from deltasmith.features.rates import Persistence, floor_of, persistence_of
from deltasmith.features.study import Member, Study
from deltasmith.features.universal import reachable, universal

__all__ = ["RESAMPLES", "Say", "match"]

RESAMPLES = 300
Say = Callable[[str, int, int], None]
Pair = tuple[str, str]
"""Members by name, parent and child."""


def match(
    study: str | Path | Study,
    *,
    out: str | Path | None = None,
    strong: float = 0.8,
    weak: float = 0.5,
    min_fires: int = 20,
    resamples: int = RESAMPLES,
    seed: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
    say: Say = lambda what, done, of: None,
    stop: Stop | None = None,
) -> Outcome:
    """Match features along every edge of a study, and write features.json and rates.csv.

    They go to `out`, by default the folder `match` in the study; an earlier result there is replaced with `overwrite`.
    `strong` and `weak` are correlations, 0 < weak <= strong <= 1; a feature that fires on fewer than
    `min_fires` held-out tokens is not told of. Intervals come from `resamples` draws of the passages, keyed by `seed`;
    0 draws none. The result does not depend on `threads`. `say(what, done, of)` hears how far it has come.

    Raises:
        DamagedInputError: the study is missing or damaged. RecipeError: numbers that make no sense. RefusedError: an
        earlier result is there, or something else. InterruptedRunError: `stop` was asked.
    """
    opened = study if isinstance(study, Study) else Study.open(study)
    thresholds = Thresholds(strong, weak, min_fires)
    if resamples < 0:
        raise RecipeError(
            f"{resamples} resamples cannot be drawn", fix="choose 0 or more; 300 is the default"
        )
    place = opened.folder / "match" if out is None else Path(out)
    check_out(place, overwrite=overwrite)
    matcher = _Matcher(opened, thresholds, resamples, seed, threads or _available(), say, stop or Stop())
    outcome = matcher.outcome()
    write_outcome(outcome, place, overwrite=overwrite)
    return outcome


def _available() -> int:
    from deltasmith.api import available_threads

    return available_threads()


@dataclass
class _Matcher:
    """Compares pairs of members, each once; the codes of those in use are kept."""

    study: Study
    thresholds: Thresholds
    resamples: int
    seed: int
    threads: int
    say: Say
    stop: Stop
    codes: dict[str, Codes] = field(default_factory=dict)
    compared: dict[Pair, Comparison] = field(default_factory=dict)
    held: dict[Pair, Persistence] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        missing = [node.label for node in self.study.graph.nodes if node.label not in self.study.members]
        if missing or not self.study.graph.edges:
            what = (
                f"there is no dictionary of {printable(missing[0])}"
                if missing
                else "it has no edge to follow"
            )
            where = printable(str(self.study.folder / "study.json"))
            raise DamagedInputError(what, where=where, fix="train the study again")
        self.passages = Passages.of(self.study.held_out.passage, self.seed, self.resamples)

    def outcome(self) -> Outcome:
        """Do everything, in the order in which it is told."""
        graph = self.study.graph
        self._compare()
        edges = tuple(self._edge(edge, at) for at, edge in enumerate(graph.edges))
        self.say("permuting tokens", len(edges), len(edges))
        merges = tuple(self._merge(node.label) for node in graph.merges)
        everywhere = universal(graph, {e: self.compared[e.parent, e.child] for e in graph.edges})
        self._note_the_rest(edges)
        text = (self.study.folder / "study.json").read_bytes()
        members = tuple(self._counted(member) for member in self.study.members.values())
        notes = tuple(dict.fromkeys(self.notes))
        return Outcome(
            self._settings(), hashlib.sha256(text).hexdigest(), members, edges, merges, everywhere, notes
        )

    def _compare(self) -> None:
        """Compare the members of every edge, of every floor, and of a merge's base with the merge's parents."""
        graph = self.study.graph
        followed = [(edge.parent, edge.child) for edge in graph.edges]
        for node in graph.merges:
            base = graph.common_base(node.label)
            followed += [(base, parent) for parent in node.parents] if base is not None else []
        floors = [(pair[0], pair[1]) for edge in graph.edges for pair, _ in self._floors_of(edge)]
        pairs = list(dict.fromkeys([*followed, *floors]))
        for at, pair in enumerate(pairs):
            self.say("matching", at, len(pairs))
            self._check()
            codes = self._codes(pair[0]), self._codes(pair[1])
            found = compare(
                *codes, self.passages, self.thresholds, threads=self.threads, stopped=lambda: self.stop.asked
            )
            self.held[pair] = persistence_of(found, codes[0].fires)
            if pair in followed:
                self.compared[pair] = found
        self.say("matching", len(pairs), len(pairs))

    def _floors_of(self, edge: Edge) -> list[tuple[Pair, Member]]:
        """Find the second dictionaries an edge is held against: its parent's, or else the root's; `again` comes first.

        None where one dictionary reads all models: it would stand against itself.
        """
        if self.study.mode == "shared":
            self.notes.append(_SHARED)
            return []
        root = self.study.graph.root.label
        label = edge.parent if self.study.floors(edge.parent) else root
        members = sorted(self.study.floors(label), key=lambda member: member.role != "again")
        if members and label != edge.parent:
            self.notes.append(
                f"{edge.parent} has no floor of its own: edges from it are compared with that of {label}, "
                f"by shares alone"
            )
        return [((label, member.name), member) for member in members]

    def _edge(self, edge: Edge, at: int) -> EdgeOutcome:
        """Tell of one edge, with its floors and its null."""
        self.say("permuting tokens", at, len(self.study.graph.edges))
        self._check()
        pair = edge.parent, edge.child
        codes = self._codes(edge.parent), self._codes(edge.child)
        floors = [
            (floor_of(member, self.held[pair], self.held[floor], edge.parent), self.held[floor])
            for floor, member in self._floors_of(edge)
        ]
        name = f"{edge.parent}>{edge.child}"
        return edge_outcome(
            edge,
            self.compared[pair],
            codes=codes,
            decoders=(self._decoder(edge.parent), self._decoder(edge.child)),
            floors=floors,
            null=null_of(*codes, self.thresholds, key=(self.seed, name), threads=self.threads),
            thresholds=self.thresholds,
            weight_change=weight_changes(self.study.document).get(pair),
        )

    def _merge(self, label: str) -> MergeOutcome:
        """Tell where the features of a merge come from."""
        graph = self.study.graph
        node, base = graph.by_label[label], graph.common_base(label)
        sources = (*node.parents, *([base] if base is not None else []))
        into = {source: self.compared[source, label] for source in sources}
        lost_in = [self.compared[base, parent] for parent in node.parents] if base is not None else []
        return merge_outcome(node, base, into, lost_in)

    def _codes(self, member: str) -> Codes:
        if member not in self.codes:
            self.codes[member] = self.study.codes(member)
        return self.codes[member]

    def _decoder(self, member: str) -> npt.NDArray[np.float32]:
        decoder = self.study.decoder(member)
        if decoder.ndim != 2 or len(decoder) != self._codes(member).width:
            raise DamagedInputError(
                f"it is of shape {decoder.shape}, and its codes are of {self._codes(member).width} latents",
                where=printable(str(self.study.dictionary(member))),
                fix="train the study again",
            )
        return decoder

    def _check(self) -> None:
        if self.stop.asked:
            raise InterruptedRunError("matching was interrupted", fix="run the same command again")

    def _counted(self, member: Member) -> MemberOutcome:
        fires = self._codes(member.name).fires
        testable, dead = int((fires >= self.thresholds.min_fires).sum()), int((fires == 0).sum())
        return MemberOutcome(member.name, len(fires), testable, len(fires) - testable - dead, dead)

    def _settings(self) -> dict[str, Any]:
        return {
            "strong": self.thresholds.strong,
            "weak": self.thresholds.weak,
            "min_fires": self.thresholds.min_fires,
            "seed": self.seed,
            "resamples": self.passages.resamples,
            "blocks": self.passages.counts.shape[1],
            "mode": self.study.mode,
            "site": self.study.site,
        }

    def _untestable(self, parent: str, child: str) -> str:
        most, least = int(self._codes(parent).fires.max(initial=0)), self.thresholds.min_fires
        if most:
            fix = "lower --min-fires, or train the study with more held-out text"
        else:
            fix = f"train the study longer, with more latents that fire, or look at the quality of {parent}'s"
        return (
            f"{parent} > {child}: no feature of {parent} is tested, as none fires on {least:,} held-out tokens or more "
            f"(the busiest on {most:,}); {fix}"
        )

    def _note_the_rest(self, edges: tuple[EdgeOutcome, ...]) -> None:
        """Note what a reader of the figures must know, and cannot see."""
        if edges[0].hungarian is None:
            self.notes.append("scipy is not installed: the shares were not checked by an assignment")
        for edge in edges:
            if not edge.testable:
                self.notes.append(self._untestable(edge.parent, edge.child))
        if not self.passages.resamples and self.resamples:
            self.notes.append("the held-out text is one passage: there are no intervals")
        if self.study.mode == "warm" and not any(m.role == "again" for m in self.study.members.values()):
            self.notes.append(
                "no dictionary was trained on from its own model's: warm starts persist more than the floor shows"
            )
        apart = [n.label for n in self.study.graph.nodes if n.label not in reachable(self.study.graph)]
        if apart:
            what = "is not" if len(apart) == 1 else "are not"
            root = self.study.graph.root.label
            self.notes.append(
                f"{', '.join(apart)} {what} descended from {root}: universal features leave them out"
            )


_SHARED = (
    "one dictionary reads all models, so its floor is 100 % by construction and stands beside no edge: intervals alone "
    "tell. The rates say how much activations differ under the root's dictionary; nothing new can emerge in it"
)
