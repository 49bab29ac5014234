"""What our own lab measured, as far as advice uses it: cases by the relative size of their deltas.

`experience.json` is written by `deltasmith lab advise --learn` from the lab's results: three training seeds, three
sizes of deltas, networks of 0.5 M parameters. Everything that advice learns from it is a function of the rows, so that
a check can leave a training seed out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

__all__ = ["OCTAVES", "Experience", "Limits", "MergeCase", "PruneCase", "Start", "bundled", "split"]

OCTAVES = 1.0
"""How far in octaves of relative size a case of the lab may lie from the models it is to speak for."""

_FILE = "experience.json"
_KEEPS, _FAILS = 0.9, 0.2
"""Shares of the expert's score: DPPA's criterion (arXiv 2403.02799), and the lab's own definition of failure."""


@dataclass(frozen=True)
class PruneCase:
    """One expert pruned at rate 0.9: what each method kept of its score, and which were best or level with it."""

    seed: int
    regime: str
    task: str
    relative: float
    q90: float
    kept: Mapping[str, float]
    best: tuple[str, ...]


@dataclass(frozen=True)
class MergeCase:
    """Experts merged with every method tuned: which were best or tied with it, and the settings each search found."""

    seed: int
    regime: str
    models: tuple[str, ...]
    relative: float
    best: tuple[str, ...]
    scales: Mapping[str, float]
    fields: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Limits:
    """Relative sizes between which DARE at rate 0.9 begins to lose: `fine` below, `broken` above."""

    fine: float
    broken: float


@dataclass(frozen=True)
class Start:
    """Starting values: scale, the edit's fields, and from how many cases (0: none, the paper's)."""

    scale: float
    fields: Mapping[str, Any]
    cases: int


@dataclass(frozen=True, eq=False)
class Experience:
    """The lab's cases."""

    prunings: tuple[PruneCase, ...]
    merges: tuple[MergeCase, ...]

    def without(self, seed: int) -> Experience:
        """Return the cases of the other training seeds."""
        return Experience(
            tuple(c for c in self.prunings if c.seed != seed), tuple(c for c in self.merges if c.seed != seed)
        )

    @cached_property
    def limits(self) -> Limits:
        """Return the relative sizes that best split the pruned experts by what DARE kept of them: 0.9 and 0.2."""
        points = [(case.relative, case.kept["dare"]) for case in self.prunings]
        return Limits(split(points, lambda kept: kept >= _KEEPS), split(points, lambda kept: kept >= _FAILS))

    def near(self, relative: float, goal: str) -> tuple[PruneCase, ...] | tuple[MergeCase, ...]:
        """Return the cases within OCTAVES of a relative size; none for a size of zero."""
        if relative <= 0:
            return ()
        if goal == "prune":
            return tuple(c for c in self.prunings if abs(math.log2(c.relative / relative)) <= OCTAVES)
        return tuple(c for c in self.merges if abs(math.log2(c.relative / relative)) <= OCTAVES)

    def start(self, method: str, relative: float, models: int) -> Start | None:
        """Return the geometric mean of the tuned scales and the commonest tuned fields of the cases that are near.

        Cases of as many models count alone where there are any. None without cases.
        """
        near = [c for c in self.merges if c in self.near(relative, "merge") and method in c.scales]
        near = [c for c in near if len(c.models) == models] or near
        if not near:
            return None
        scale = math.exp(sum(math.log(c.scales[method]) for c in near) / len(near))
        texts = Counter(json.dumps(c.fields.get(method, {}), sort_keys=True) for c in near)
        commonest = max(texts, key=lambda text: (texts[text], text))
        return Start(float(f"{scale:.2g}"), json.loads(commonest), len(near))

    def as_json(self) -> dict[str, Any]:
        """Return plain data, readable by `from_json`."""
        return {
            "prunings": [vars(c) | {"best": list(c.best)} for c in self.prunings],
            "merges": [vars(c) | {"best": list(c.best), "models": list(c.models)} for c in self.merges],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Experience:
        """Read what `as_json` returned."""
        return cls(
            tuple(PruneCase(**{**c, "best": tuple(c["best"])}) for c in document["prunings"]),
            tuple(
                MergeCase(**{**c, "best": tuple(c["best"]), "models": tuple(c["models"])})
                for c in document["merges"]
            ),
        )


def split(points: Sequence[tuple[float, float]], good: Callable[[float], bool]) -> float:
    """Return the size below which points are best called good: fewest mistakes, then the widest gap in its middle.

    The middle is the geometric mean of the sizes on both sides. Where the fewest mistakes are made by calling all
    good, or none, the result is infinite, or zero.

    >>> split([(1.0, 0.9), (4.0, 0.1), (2.0, 0.95)], lambda kept: kept > 0.5)
    2.8284271247461903
    """
    ordered = sorted(points)
    cuts = []
    for at in range(len(ordered) + 1):
        wrong = sum(not good(kept) for _, kept in ordered[:at]) + sum(good(kept) for _, kept in ordered[at:])
        below, above = (
            (ordered[at - 1][0] if at else 0.0),
            (ordered[at][0] if at < len(ordered) else math.inf),
        )
        gap = above / below if below > 0 and above < math.inf else 1.0
        cuts.append((wrong, -gap, below, above))
    _, _, below, above = min(cuts)
    return math.sqrt(below * above) if below and above < math.inf else (0.0 if not below else math.inf)


@cache
def bundled() -> Experience:
    """Return what the lab has measured, from the file beside this module."""
    text = (Path(__file__).parent / _FILE).read_text(encoding="utf-8")
    return Experience.from_json(json.loads(text))
