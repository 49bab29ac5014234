"""What following features along one parameter of a merge has found: plain records, and their JSON. Nothing is computed.

    {"format": 1, "study": SHA256, "site", "recipe", "axis": NAME, "values": [VALUE, ...],
     "root": LABEL, "parents": [{"label", "model", "in_study"}], "thresholds": {"strong", "weak", "min_fires"},
     "resamples", "domains": [DOMAIN], "experts": {DOMAIN: LABEL | null},
     "baselines": {LABEL: BASELINE}, "points": [POINT], "best_mean": CHOICE, "best_smallest": CHOICE, "notes": [TEXT]}
    BASELINE: {"scores": {DOMAIN: SCORE}, "fvu", "kept": KEPT | null}     what the root's features became there
    POINT:    {"value", "scores": {DOMAIN: SCORE}, "fvu", "l0", "kept": {LABEL: KEPT}, "origins": ORIGINS | null,
               "recovered": {DOMAIN: SHARE | null}, "recovered_loss": {DOMAIN: SHARE | null},
               "mean_accuracy", "smallest_recovered": SHARE | null, "refused": TEXT}
    SCORE:    {"loss", "accuracy", "tokens"}
    KEPT:     {"testable", "counts": {FATE: COUNT}, "rates": {FATE: RATE}}
    ORIGINS:  {"testable", "counts": {ORIGIN: COUNT}, "rates": {ORIGIN: RATE}}
    RATE:     {"value", "low", "high"}                                    low and high null without intervals
    CHOICE:   {"value", "at": INDEX, "score"} | null

Every code is of the root's dictionary, so features have the root's numbers everywhere; they are matched by their
activations all the same. `kept` are the features of a model (the root, each parent), by what became of them in the
merge (`outcome.Fate`); `origins` the merge's features, by `outcome.Origin`, with `inherited:LABEL` besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltasmith.analysis.sweep_axes import Value
from deltasmith.errors import DamagedInputError, printable
from deltasmith.evaluate.saving import write_whole
from deltasmith.features.outcome import Rate
from deltasmith.features.study import Score
from deltasmith.formats.json_file import read_json_object

__all__ = [
    "FORMAT",
    "Baseline",
    "Choice",
    "Kept",
    "Origins",
    "ParentModel",
    "Sweep",
    "SweepPoint",
    "point_of",
    "read_sweep",
    "sweep_of",
    "write_sweep",
]

FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """What became of one model's features in another, under the root's dictionary."""

    testable: int
    counts: Mapping[str, int]
    """Of all its features, by Fate."""
    rates: Mapping[str, Rate]
    """By Fate, of its testable features; `persisted` is the share with a mutual best partner of r >= strong."""


@dataclass(frozen=True)
class Origins:
    """Where the merge's features come from, under the root's dictionary."""

    testable: int
    counts: Mapping[str, int]
    """Of all its features, by Origin, and `inherited:LABEL` for each parent besides."""
    rates: Mapping[str, Rate]
    """The same, of its testable features."""


@dataclass(frozen=True)
class ParentModel:
    """A model that the recipe merges."""

    label: str
    """That of the study where it is a model of it, else the recipe's."""
    model: str
    """What may be written down of its source."""
    in_study: bool


@dataclass(frozen=True)
class Baseline:
    """How the root, or a parent, does by itself; `kept` are the root's features in it, None of the root."""

    scores: Mapping[str, Score]
    fvu: float | None
    """What the root's dictionary leaves unexplained of its activations."""
    kept: Kept | None


@dataclass(frozen=True)
class SweepPoint:
    """The merge at one value. Where it cannot be computed, `refused` says why, and there are no figures."""

    value: Value
    scores: Mapping[str, Score]
    """By domain of the held-out text."""
    fvu: float | None
    """What the root's dictionary leaves unexplained of the merge's activations, as a share of their variance."""
    l0: float | None
    kept: Mapping[str, Kept]
    """By the model whose features are followed: the root, and each parent."""
    origins: Origins | None
    """None where fewer than two models are merged."""
    recovered: Mapping[str, float | None]
    """By domain: (accuracy - root's) / (expert's - root's); None where no parent is better than the root."""
    recovered_loss: Mapping[str, float | None]
    """By domain: (root's loss - loss) / (root's - expert's); None where the expert's loss is not lower."""
    mean_accuracy: float | None
    """Over the domains that have an expert; over all domains where none has one."""
    smallest_recovered: float | None
    """The smallest of `recovered`."""
    refused: str = ""


@dataclass(frozen=True)
class Choice:
    """A value that some measure prefers: the first where several do equally well."""

    value: Value
    at: int
    """The index of the point."""
    score: float


@dataclass(frozen=True)
class Sweep:
    """Features along one parameter of a merge, all points on the same text, under the same dictionary."""

    study: str
    """sha256 of study.json."""
    site: str
    recipe: str
    axis: str
    values: tuple[Value, ...]
    root: str
    parents: tuple[ParentModel, ...]
    thresholds: Mapping[str, float]
    resamples: int
    domains: tuple[str, ...]
    experts: Mapping[str, str | None]
    """By domain the most accurate parent, if it is more accurate than the root beyond chance; else None."""
    baselines: Mapping[str, Baseline]
    """By label: the root, and each parent."""
    points: tuple[SweepPoint, ...]
    best_mean: Choice | None
    """The value of the best mean accuracy. It may leave one domain behind: look at `best_smallest` too."""
    best_smallest: Choice | None
    """The value that maximises the smallest recovered fraction; None where no domain has an expert."""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"format": FORMAT, **asdict(self)}


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Write the JSON file whole or not at all; the same bytes for the same findings."""
    text = json.dumps(sweep.as_json(), indent=1, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def read_sweep(path: str | Path) -> Sweep:
    """Read what `write_sweep` wrote; DamagedInputError where it is something else."""
    fix = "give a file that `deltasmith features sweep` wrote, or run it again"
    document = read_json_object(path, fix=fix)
    try:
        if document.pop("format") != FORMAT:
            raise ValueError("another format")
        return sweep_of(document)
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise DamagedInputError(
            f"this is no sweep of features ({printable(str(cause), 80)})",
            where=printable(str(path)),
            fix=fix,
        ) from cause


def sweep_of(document: Mapping[str, Any]) -> Sweep:
    """Return the record of plain data without its format; KeyError, TypeError or ValueError for anything else."""
    read = {
        **document,
        "values": tuple(document["values"]),
        "parents": tuple(ParentModel(**parent) for parent in document["parents"]),
        "domains": tuple(document["domains"]),
        "baselines": {
            label: Baseline(_scores(b["scores"]), b["fvu"], None if b["kept"] is None else _kept(b["kept"]))
            for label, b in document["baselines"].items()
        },
        "points": tuple(point_of(point) for point in document["points"]),
        "best_mean": None if document["best_mean"] is None else Choice(**document["best_mean"]),
        "best_smallest": None if document["best_smallest"] is None else Choice(**document["best_smallest"]),
        "notes": tuple(document["notes"]),
    }
    return Sweep(**read)


def point_of(item: Mapping[str, Any]) -> SweepPoint:
    """Return the record of one point's plain data."""
    origins = item["origins"]
    return SweepPoint(
        **{
            **item,
            "scores": _scores(item["scores"]),
            "kept": {label: _kept(kept) for label, kept in item["kept"].items()},
            "origins": None if origins is None else Origins(**{**origins, "rates": _rates(origins["rates"])}),
        }
    )


def _scores(item: Mapping[str, Any]) -> dict[str, Score]:
    return {domain: Score(**score) for domain, score in item.items()}


def _kept(item: Mapping[str, Any]) -> Kept:
    return Kept(**{**item, "rates": _rates(item["rates"])})


def _rates(item: Mapping[str, Any]) -> dict[str, Rate]:
    return {name: Rate(**rate) for name, rate in item.items()}
