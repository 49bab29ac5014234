"""Sweeps and patterns as the page reads them, made up."""

from __future__ import annotations

import math
from pathlib import Path

from deltasmith.features.outcome import Outcome, Rate
from deltasmith.features.pattern_records import Patterns, write_patterns
from deltasmith.features.patterns import find, study_hash
from deltasmith.features.study import Score, Study
from deltasmith.features.sweep_records import (
    Baseline,
    Choice,
    Kept,
    Origins,
    ParentModel,
    Sweep,
    SweepPoint,
    write_sweep,
)


def made_patterns(study: Study, outcome: Outcome, path: Path) -> Patterns:
    """Search the study, and write what was found."""
    found = find(study, {"assignment": r"\bx\s*=", "the end": "end"}, outcome=outcome)
    write_patterns(path, found)
    return found


def made_sweep(study: Study, path: Path, axis: str = "t") -> Sweep:
    """Write a sweep whose shares rise and fall smoothly; one point could not be computed."""
    values = tuple(round(at / 10, 1) for at in range(11))
    refused = SweepPoint(1.0, {}, None, None, {}, None, {}, {}, None, None, "the merge <b>overflows</b>")
    points = (*(_point(t) for t in values[:-1]), refused)
    sweep = Sweep(
        study_hash(study), study.site, "slerp.yaml", axis, values, "base",
        (ParentModel("lua", "lua", True), ParentModel("stories", "stories", True)),
        {"strong": 0.8, "weak": 0.5, "min_fires": 20}, 100, ("english", "lua"), {"english": "stories", "lua": "lua"},
        {
            "base": Baseline({"english": Score(3.0, 0.42, 2000), "lua": Score(3.4, 0.2, 2000)}, 0.17, None),
            "lua": Baseline({"english": Score(3.3, 0.36, 2000), "lua": Score(2.4, 0.49, 2000)}, 0.3, None),
            "stories": Baseline({"english": Score(2.0, 0.52, 2000), "lua": Score(3.5, 0.21, 2000)}, 0.26, None),
        },
        points, Choice(0.8, 8, 0.46), Choice(0.5, 5, 0.41), ("a note of the sweep",),
    )  # fmt: skip
    write_sweep(path, sweep)
    return sweep


def _point(t: float) -> SweepPoint:
    kept = {
        "base": _kept(0.4 + 0.4 * math.sin(math.pi * (0.2 + 0.6 * t))),
        "lua": _kept(0.3 + 0.65 * (1 - t)),
        "stories": _kept(0.3 + 0.65 * t),
    }
    shares = {
        "recovered": 0.1,
        "consensus": 0.5,
        "inherited:lua": 0.2 * (1 - t),
        "inherited:stories": 0.2 * t,
    }
    shares |= {"inherited": 0.2, "base": 0.1, "drifted": 0.06, "novel": 0.04}
    origins = Origins(58, {}, {name: Rate(value) for name, value in shares.items()})
    scores = {
        "english": Score(3.2 - 1.1 * t**2, 0.36 + 0.15 * t**2, 2000),
        "lua": Score(3.5 - 1.0 * (1 - t) ** 0.7, 0.21 + 0.27 * (1 - t) ** 0.7, 2000),
    }
    kept_gain = {
        "english": (scores["english"].accuracy - 0.42) / 0.1,
        "lua": (scores["lua"].accuracy - 0.2) / 0.29,
    }
    return SweepPoint(
        t, scores, 0.2, 3.0, kept, origins, kept_gain, dict(kept_gain), 0.4, min(kept_gain.values())
    )


def _kept(persisted: float) -> Kept:
    rest = 1 - persisted
    shares = {"persisted": persisted, "drifted": 0.5 * rest, "split": 0.05 * rest, "fused": 0.05 * rest}
    shares["disappeared"] = 1 - sum(shares.values())
    rates = {
        name: Rate(value, max(0.0, value - 0.03), min(1.0, value + 0.03)) for name, value in shares.items()
    }
    return Kept(58, {name: round(58 * value) for name, value in shares.items()}, rates)
