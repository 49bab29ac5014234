"""Figures out of the results of one run: edges, floors, rates, detectors, the sweep. Reading only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError

__all__ = ["FORMAT", "MODES", "RESULTS", "Results", "Run", "Share", "load_features"]

FORMAT = 1
RESULTS = "features.json"
MODES = ("warm", "independent", "shared")


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval over resampled passages."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rate: Mapping[str, float | None]) -> Share:
        """Read a rate; without an interval it is a point."""
        value = float(rate["value"] or 0.0)
        low, high = rate["low"], rate["high"]
        return cls(value, value if low is None else low, value if high is None else high)

    def above(self, other: Share) -> bool:
        """Tell whether the intervals lie apart, this one higher."""
        return self.low > other.high

    def __str__(self) -> str:
        """Write per cent with the interval: `41.0 [38.2, 44.1]`."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Run:
    """One training seed's models and everything that was measured on them."""

    data: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Return the training seed."""
        return int(self.data["seed"])

    def study(self, name: str) -> Mapping[str, Any]:
        """Return a study's digest."""
        found: Mapping[str, Any] = self.data["studies"][name]
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the models of the graph, the root first."""
        return tuple(m["label"] for m in self.study("warm")["members"] if m["role"] == "model")

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Return parent and child of every edge of the graph."""
        return tuple((edge["parent"], edge["child"]) for edge in self.study("warm")["edges"])

    def edge(self, study: str, parent: str, child: str) -> Mapping[str, Any]:
        """Find an edge."""
        for edge in self.study(study)["edges"]:
            if (edge["parent"], edge["child"]) == (parent, child):
                found: Mapping[str, Any] = edge
                return found
        raise DamagedInputError(f"there is no edge {parent} -> {child}", where=study, fix="run the lab again")

    def kept(self, study: str, parent: str, child: str) -> Share:
        """Return the share of the parent's testable features that persisted."""
        return Share.of(self.edge(study, parent, child)["rates"]["persisted"])

    def pair(self, name: str) -> Mapping[str, Any]:
        """Return what became of the base's features in the dictionary of `same-LABEL` or `control`."""
        return self.study(name)

    def kept_in(self, name: str) -> Share:
        """Return the share of the base's testable features that come back there."""
        return Share.of(self.pair(name)["kept"])

    def floor(self, study: str, role: str) -> Share | None:
        """Return how many features of the root come back in a second dictionary of the root; None without one."""
        for edge in self.study(study)["edges"]:
            for floor in edge["floors"]:
                if floor["role"] == role and floor["model"] == self.labels[0]:
                    return Share.of(floor["persisted"])
        return None

    def adjusted(self, study: str, parent: str, child: str, role: str) -> Share | None:
        """Return persistence over the floor of a role."""
        floors = self.edge(study, parent, child)["floors"]
        return next((Share.of(floor["adjusted"]) for floor in floors if floor["role"] == role), None)

    def changes(self, parent: str, child: str) -> Mapping[str, float]:
        """Return the relative change of the weights by group, `all` among them."""
        for change in self.study("warm")["weight_changes"]:
            if (change["parent"], change["child"]) == (parent, child):
                return {"all": change["all"], **change["groups"]}
        return {}

    @property
    def null(self) -> float:
        """Return the largest share that any edge keeps after its tokens are permuted."""
        return max(float(edge["null"]) for name in MODES for edge in self.study(name)["edges"])

    def patterns(self) -> Iterator[Mapping[str, Any]]:
        """Return the case studies."""
        yield from self.data["patterns"]["patterns"]

    @property
    def sweep(self) -> Mapping[str, Any]:
        """Return the sweep of the merge's coefficient."""
        found: Mapping[str, Any] = self.data["sweep"]
        return found


@dataclass(frozen=True)
class Results:
    """All runs, and the settings they share."""

    settings: Mapping[str, Any]
    runs: tuple[Run, ...]


def load_features(path: Path) -> Results:
    """Read what `lab features` wrote; DamagedInputError where the file is anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["experiment"] != "features":
            raise ValueError("another format")
        return Results(document["settings"], tuple(Run(run) for run in document["runs"]))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DamagedInputError(
            f"it holds no results on features ({cause})", where=str(path), fix="run `deltasmith lab features`"
        ) from cause
