"""DELLA's table: TA, TIES, DARE and DELLA on every combination of experts, with and without election.

Every line has the same search budget on the validation items: the grid of `SCALES` times three settings of the
method, or a grid of scales three times as fine where a method has no setting. Beside the tuned figures stand those
of λ = 1 with the settings of the papers' examples. Paper: Deep et al. 2024, arXiv 2406.11617, Tables 1 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from deltasmith.lab.bench import Bench
from deltasmith.lab.rows import Row

__all__ = ["BUDGET", "LINES", "MASK_SEEDS", "SCALES", "Best", "Line", "run", "tune"]

SCALES = (0.06, 0.1, 0.17, 0.28, 0.46, 0.75, 1.2, 2.0)
"""λ: wide enough for sums of large deltas (0.1) and for means over experts, which need K times more."""
FINE = tuple(
    round(SCALES[0] * (SCALES[-1] / SCALES[0]) ** (step / (3 * len(SCALES) - 1)), 3)
    for step in range(3 * len(SCALES))
)
BUDGET = len(FINE)
MASK_SEEDS = 5


@dataclass(frozen=True)
class Line:
    """One line of the table: the recipe's fields for each setting to try, the first being the papers' example."""

    name: str
    settings: tuple[Mapping[str, Any], ...]
    random: bool = False

    @property
    def trials(self) -> tuple[Mapping[str, Any], ...]:
        """Return everything the search tries, `BUDGET` recipes' fields."""
        scales = FINE if len(self.settings) == 1 else SCALES
        return tuple({**fields, "scale": scale} for fields in self.settings for scale in scales)

    @property
    def default(self) -> Mapping[str, Any]:
        """Return the papers' example at λ = 1."""
        return {**self.settings[0], "scale": 1.0}


def _edited(edit: str, merge: str, fields: Sequence[Mapping[str, float]]) -> tuple[Mapping[str, Any], ...]:
    return tuple({"edit": {edit: dict(one)}, "merge": merge} for one in fields)


_KEPT = ({"density": 0.2}, {"density": 0.5}, {"density": 0.1})
_DROPPED = ({"density": 0.7}, {"density": 0.5}, {"density": 0.1})
_RANKED = (
    {"density": 0.7, "window": 0.14},
    {"density": 0.5, "window": 0.4},
    {"density": 0.1, "window": 0.14},
)
LINES = (
    Line("ta", ({"merge": "sum"},)),
    Line("ties_noelect", _edited("keep_largest", "sum", _KEPT)),
    Line("dare", _edited("drop", "sum", _DROPPED), random=True),
    Line("della_noelect", _edited("drop_by_rank", "sum", _RANKED), random=True),
    Line("ta_elect", ({"merge": "elect"},)),
    Line("ties", _edited("keep_largest", "elect", _KEPT)),
    Line("dare_ties", _edited("drop", "elect", _DROPPED), random=True),
    Line("della", _edited("drop_by_rank", "elect", _RANKED), random=True),
    Line(
        "dppa",
        tuple(
            {"edit": {"amplify_partitions": {"factors": f}}, "merge": "sum"}
            for f in ([1.8, 1.0], [1.0, 1.0], [1.4, 1.4])
        ),
    ),
)


@dataclass(frozen=True)
class Best:
    """What a search has found: the fields, their validation mean, and whether λ lies at an end of its grid."""

    fields: Mapping[str, Any]
    value: float
    at_edge: bool


def run(bench: Bench) -> Iterator[Row]:
    """Tune every line on every combination of two or more experts, then ask it the test items."""
    sizes = range(2, len(bench.tasks) + 1)
    for tasks in (group for size in sizes for group in combinations(bench.tasks, size)):
        for line in LINES:
            best = tune(bench, line, tasks)
            note = {"validation": round(best.value, 4), "at_edge": best.at_edge}
            yield from _rows(bench, line, tasks, "tuned", best.fields, note)
            yield from _rows(bench, line, tasks, "default", line.default, {})


def tune(bench: Bench, line: Line, tasks: Sequence[str]) -> Best:
    """Try everything the line may try, with mask seed 0; of equal means the first tried wins."""
    values = [bench.mean(_model(bench, tasks, fields, 0), tasks, "validation") for fields in line.trials]
    best = max(range(len(values)), key=values.__getitem__)
    scale = line.trials[best]["scale"]
    return Best(line.trials[best], values[best], scale in (SCALES[0], SCALES[-1]))


def _model(bench: Bench, tasks: Sequence[str], fields: Mapping[str, Any], mask_seed: int) -> dict[str, Any]:
    recipe = bench.recipe(tasks, merge=fields["merge"], scale=fields["scale"], seed=mask_seed)
    if "edit" in fields:
        for model in recipe["models"]:
            model["edits"] = [fields["edit"]]
    return bench.merged(recipe)


def _rows(
    bench: Bench,
    line: Line,
    tasks: Sequence[str],
    setting: str,
    fields: Mapping[str, Any],
    note: Mapping[str, Any],
) -> Iterator[Row]:
    flat = " ".join(
        f"{key}={value}" for edit in fields.get("edit", {}).values() for key, value in edit.items()
    )
    keys = {**bench.keys, "models": "+".join(tasks)}
    keys |= {"method": line.name, "setting": setting, "scale": fields["scale"], "fields": flat, **note}
    for mask_seed in range(MASK_SEEDS if line.random else 1):
        marks = bench.marks(_model(bench, tasks, fields, mask_seed), tasks, "test")
        for task in tasks:
            yield Row({**keys, "mask_seed": mask_seed}, task, marks[task])
