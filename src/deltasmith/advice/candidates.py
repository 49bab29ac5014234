"""The methods that can be recommended: what each is in a recipe, and the papers' own starting values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DROPPING", "MERGES", "PRUNINGS", "Candidate", "recipe_of"]


@dataclass(frozen=True)
class Candidate:
    """One method: `edit` of every model and `merge`, starting values where nothing better is known, and their source.

    Candidates stand in the order of their number of settings, fewest first: where evidence says that several are
    equally good, the first is taken.
    """

    name: str
    title: str
    merge: str
    scale: float
    source: str
    edit: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


_TASK = "Ilharco et al. 2022, arXiv 2212.04089; 0.4 as TIES' authors use it untuned"
_TIES = "Yadav et al. 2023, arXiv 2306.01708: 0.2 kept, scale 1"
_DARE = "Yu et al. 2023, arXiv 2311.03099: scale searched in 0.5 to 1"
_DELLA = "Deep et al. 2024, arXiv 2406.11617, examples"
_DPPA = "Zhu et al. 2024, arXiv 2403.02799, released code's start"

MERGES: Mapping[str, Candidate] = {
    c.name: c
    for c in (
        Candidate("average", "mean of the deltas", "mean", 1.0, "Wortsman et al. 2022, arXiv 2203.05482"),
        Candidate("ta", "task arithmetic", "sum", 0.4, _TASK),
        Candidate("ta_elect", "election of signs, nothing trimmed", "elect", 1.0, _TIES),
        Candidate("tsv", "TSV-Merge", "tsv", 1.0, "Gargiulo et al. 2024, arXiv 2412.00081: scale 1 untuned"),
        Candidate("ties_noelect", "trimmed sum", "sum", 0.4, _TIES, "keep_largest", {"density": 0.2}),
        Candidate("ties", "TIES", "elect", 1.0, _TIES, "keep_largest", {"density": 0.2}),
        Candidate("dare", "DARE, summed", "sum", 0.5, _DARE, "drop", {"density": 0.5}),
        Candidate("dare_ties", "DARE with election", "elect", 1.0, _DARE, "drop", {"density": 0.5}),
        Candidate(
            "della_noelect",
            "DELLA, summed",
            "sum",
            0.5,
            _DELLA,
            "drop_by_rank",
            {"density": 0.7, "window": 0.14},
        ),
        Candidate("della", "DELLA", "elect", 1.0, _DELLA, "drop_by_rank", {"density": 0.7, "window": 0.14}),
        Candidate("dppa", "DPPA, summed", "sum", 0.5, _DPPA, "amplify_partitions", {"factors": [1.8, 1.0]}),
    )
}
"""What several models can be merged by; the names are the lab's."""

PRUNINGS: Mapping[str, Candidate] = {
    c.name: c
    for c in (
        Candidate("dare", "DARE", "sum", 1.0, _DARE, "drop", {"density": 0.1}),
        Candidate(
            "magnitude", "the largest of the whole model", "sum", 1.0, _TIES, "keep_largest", {"density": 0.1}
        ),
        Candidate("dp", "dynamic pruning (DP)", "sum", 1.0, _DPPA, "dynamic_prune", {"density": 0.1}),
        Candidate(
            "magprune", "MAGPRUNE", "sum", 1.0, _DELLA, "drop_by_rank", {"density": 0.1, "window": 0.14}
        ),
    )
}
"""What nine tenths of one model's delta can be removed by; the names are the lab's."""

DROPPING = ("dare", "dare_ties", "della", "della_noelect", "magprune")
"""Candidates that drop at random and divide what stays."""


def recipe_of(
    candidate: Candidate,
    base: str,
    models: Sequence[tuple[str, str]],
    scale: float,
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the recipe that carries out a candidate on models given as (label, path)."""
    entries: list[dict[str, Any]] = []
    for label, path in models:
        entry: dict[str, Any] = {"model": path, "label": label}
        if candidate.edit is not None:
            entry["edits"] = [{candidate.edit: dict(fields)}]
        entries.append(entry)
    return {"base": base, "models": entries, "merge": candidate.merge, "scale": scale}
