"""Which features fire where a pattern matches the text: plain records, and their JSON. Nothing is searched here.

    {"format": 1, "study": SHA256, "patterns": [
      {"name", "expression", "matches", "tokens", "by_domain": {DOMAIN: TOKENS}, "members": [
        {"label", "detectors": [
          {"latent", "marking": MARKING, "along": [
            {"parent", "child", "kind", "side": "parent" | "child", "status", "partner", "r", "second", "second_r",
             "cosine", "marking": MARKING | null}]}]}]}]}

MARKING is {"r", "fires", "hits", "precision", "recall", "f1"}. `side` tells which end of the edge the detector is on:
for "parent" its status is a Fate and the partner is in the child, for "child" it is a Descent and the partner is in
the parent; the partner's marking says how well it finds the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from deltasmith.errors import DamagedInputError, printable
from deltasmith.evaluate.saving import write_whole
from deltasmith.formats.json_file import read_json_object

__all__ = [
    "FILE",
    "FORMAT",
    "Along",
    "Detector",
    "Found",
    "Marking",
    "MemberDetectors",
    "Patterns",
    "read_patterns",
    "write_patterns",
]

FORMAT = 1
FILE = "patterns.json"
"""Beside features.json, in the folder of a match."""


@dataclass(frozen=True)
class Marking:
    """How well a feature's activations tell the tokens that a pattern marks from all others.

    `r` is their correlation with the mark (0 or 1), zeros included; `hits` of the `fires` tokens that it fires on are
    marked: precision hits / fires, recall hits / marked tokens, and f1 their harmonic mean. 0 where it never fires.
    """

    r: float
    fires: int
    hits: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Along:
    """What became of a detector along one edge: its nearest partner, below the thresholds too (-1: none at all)."""

    parent: str
    child: str
    kind: Literal["parent", "base"]
    side: Literal["parent", "child"]
    """The end that the detector is on."""
    status: str
    partner: int
    r: float
    second: int
    second_r: float
    cosine: float | None
    marking: Marking | None
    """The partner's on the same pattern."""


@dataclass(frozen=True)
class Detector:
    """One feature of a member, and how well it finds the pattern."""

    latent: int
    marking: Marking
    along: tuple[Along, ...] = ()


@dataclass(frozen=True)
class MemberDetectors:
    """The features of one model that follow a pattern best, best first; none where no feature does better than 0."""

    label: str
    detectors: tuple[Detector, ...]


@dataclass(frozen=True)
class Found:
    """One pattern: how often it matched, how many tokens that marked, and who fires there."""

    name: str
    expression: str
    matches: int
    tokens: int
    by_domain: Mapping[str, int]
    """Marked tokens of each corpus."""
    members: tuple[MemberDetectors, ...]


@dataclass(frozen=True)
class Patterns:
    """All patterns that were searched for in a study."""

    study: str
    """sha256 of study.json: what this belongs to."""
    found: tuple[Found, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"format": FORMAT, "study": self.study, "patterns": [asdict(found) for found in self.found]}


def write_patterns(path: Path, patterns: Patterns) -> None:
    """Write the JSON file whole or not at all; the same bytes for the same findings."""
    text = json.dumps(patterns.as_json(), indent=1, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def read_patterns(path: str | Path) -> Patterns:
    """Read what `write_patterns` wrote; DamagedInputError where it is something else."""
    fix = "run `deltasmith features match --find` again"
    document = read_json_object(path, fix=fix)
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}")
        return Patterns(str(document["study"]), tuple(_found(item) for item in document["patterns"]))
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise DamagedInputError(
            f"these are no found patterns ({printable(str(cause), 80)})",
            where=printable(str(path)),
            fix=fix,
        ) from cause


def _found(item: Mapping[str, Any]) -> Found:
    members = tuple(
        MemberDetectors(member["label"], tuple(_detector(d) for d in member["detectors"]))
        for member in item["members"]
    )
    return Found(**{**item, "by_domain": dict(item["by_domain"]), "members": members})


def _detector(item: Mapping[str, Any]) -> Detector:
    along = tuple(
        Along(**{**edge, "marking": None if edge["marking"] is None else Marking(**edge["marking"])})
        for edge in item["along"]
    )
    return Detector(item["latent"], Marking(**item["marking"]), along)
