"""Results on features as a run would leave them, from studies of planted features and a sweep made up."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deltasmith.features.following import match
from deltasmith.features.patterns import find
from deltasmith.lab.features.digest import compared_roots, digest_of, rounded
from features.made_studies import made_study

LEARNT = ("lua", "stories")


def _rate(value: float) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.02), "high": min(1.0, value + 0.02)}


def swept() -> dict[str, Any]:
    """Five values of t: most of the base is kept in the middle, and each end keeps its own."""
    points = []
    for at, (base, lua, stories, in_lua, in_stories) in enumerate(
        ((0.3, 1.0, 0.3, 0.5, 0.2), (0.6, 0.9, 0.4, 0.48, 0.25), (0.9, 0.6, 0.6, 0.4, 0.4), (0.7, 0.4, 0.9, 0.2, 0.5),
         (0.5, 0.3, 1.0, 0.1, 0.6))
    ):  # fmt: skip
        recovered = {"english": None, "lua": in_lua, "stories": in_stories}
        points.append(
            {
                "value": at / 4,
                "refused": "",
                "scores": {d: {"loss": 3.0, "accuracy": 0.2 + (recovered[d] or 0) / 4} for d in recovered},
                "kept": {
                    name: {"rates": {"persisted": _rate(share)}}
                    for name, share in (("base", base), ("lua", lua), ("stories", stories))
                },
                "recovered": recovered,
                "smallest_recovered": min(in_lua, in_stories),
            }
        )
    scores = {domain: {"loss": 3.0, "accuracy": 0.2} for domain in ("english", *LEARNT)}
    return {
        "axis": "t",
        "root": "base",
        "parents": [{"label": "lua"}, {"label": "stories"}],
        "experts": {"english": None, "lua": "lua", "stories": "stories"},
        "baselines": {"base": {"scores": scores}},
        "points": points,
        "best_mean": {"value": 1.0, "at": 4, "score": 0.3},
        "best_smallest": {"value": 0.5, "at": 2, "score": 0.4},
    }


@cache
def _run_text() -> str:
    with TemporaryDirectory() as folder:
        studies = {
            "warm": made_study(Path(folder) / "warm"),
            "independent": made_study(Path(folder) / "alone", mode="independent", floors=("base~seed1",)),
            "shared": made_study(Path(folder) / "shared", mode="shared", floors=()),
        }
        outcomes = {name: match(study, resamples=20) for name, study in studies.items()}
        found = {name: {"seconds": 1.0, **digest_of(studies[name], outcomes[name])} for name in studies}
        same = compared_roots(studies["warm"], studies["warm"], 20)
        patterns = find(
            studies["warm"],
            {"variable assignment": r"(=)", "Python exceptions": r"\b(def)\b"},
            outcome=outcomes["warm"],
        )
        for label in ("lua", "stories", "merged"):
            found[f"same-{label}"] = same
        run = {
            "seed": 0,
            "sizes": {"latents": 80, "k": 3, "steps": 100, "batch": 8},
            "facts": facts(),
            "studies": found,
            "patterns": {"patterns": patterns.as_json()["patterns"]},
            "sweep": swept(),
        }
        return json.dumps(rounded(run))


def facts() -> dict[str, Any]:
    text = {"characters": 1_000_000, "documents": 3, "sha256": "0" * 64}
    return {
        "vocab": 2048,
        "t": 0.5,
        "shape": {"hidden": 128, "inner": 256, "heads": 4, "kv_heads": 2, "context": 256},
        "schedules": {"base": {"steps": 10, "batch": 16}, "branch": {"steps": 5, "batch": 8}},
        "texts": {
            domain: {"train": text, "features": text} for domain in ("english", "python", "lua", "stories")
        },
    }


def run_data(seed: int = 0) -> dict[str, Any]:
    """Return one run's data, to be changed at will."""
    return {**copy.deepcopy(json.loads(_run_text())), "seed": seed}


def saved(path: Path, *runs: dict[str, Any], preset: str | None = None) -> Path:
    """Write results as `lab features` does."""
    settings = {"made": "today", "site": "x:in", "preset": preset}
    document = {"format": 1, "experiment": "features", "settings": settings, "runs": list(runs)}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
