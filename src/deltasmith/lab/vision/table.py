"""The eight-task table: one trunk for all tasks by every method, against the base and the experts.

Needs torch. Every tuned
line may try the same number of settings on the validation pictures; beside it stand λ = 1 and the λ = 0.3 that
the published tables use, with the first setting of the line. Compare `deltasmith.lab.vision.published`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deltasmith.errors import MissingExtraError
from deltasmith.lab.made import made
from deltasmith.lab.rows import Results, Row, grouped
from deltasmith.lab.vision import TASKS
from deltasmith.lab.vision.bench import VisionBench, open_bench, write_grams
from deltasmith.lab.vision.published import AVERAGES
from deltasmith.lab.vision.train import build_family
from deltasmith.table.checkpoint import Floats

__all__ = [
    "BUDGET",
    "FINE",
    "LINES",
    "MASK_SEEDS",
    "SCALES",
    "Line",
    "make_table",
    "render",
    "rows_of",
    "run",
]

Fields = Mapping[str, Any]

SCALES = (0.1, 0.15, 0.2, 0.3, 0.5, 0.9, 1.6, 2.8)
"""λ: fine where sums of eight deltas do best (0.2), wide enough for means of those that agree, which need more."""
FINE = tuple(round(0.1 * 28 ** (step / 23), 3) for step in range(24))
"""The same range in 24 steps, for methods without a setting of their own."""
BUDGET = len(FINE)
MASK_SEEDS = 5
_PAPERS = 0.3


@dataclass(frozen=True)
class Line:
    """One method: the recipe keys of every setting it may try, the first being the papers'.

    `scaled` lines try every setting with every λ; the others are only what their settings say.
    """

    name: str
    settings: tuple[Fields, ...]
    random: bool = False
    scaled: bool = True

    @property
    def trials(self) -> tuple[Fields, ...]:
        """Return everything the search tries, `BUDGET` settings."""
        if not self.scaled:
            return self.settings
        scales = FINE if len(self.settings) == 1 else SCALES
        return tuple({**fields, "scale": scale} for fields in self.settings for scale in scales)

    @property
    def fixed(self) -> Mapping[str, Fields]:
        """Return what is not tuned: `default` is λ = 1, `papers` λ = 0.3."""
        if not self.scaled:
            return {"default": self.settings[0]}
        return {name: {**self.settings[0], "scale": s} for name, s in (("default", 1.0), ("papers", _PAPERS))}


_KEPT = (0.2, 0.5, 0.1)
LINES = (
    Line("ta", ({"preset": "task_arithmetic"},)),
    Line("ties", tuple({"preset": "ties", "density": density} for density in _KEPT)),
    # The published re-runs add up what agrees, where the paper averages it.
    Line(
        "ties_sum",
        tuple(
            {"edit": {"keep_largest": {"density": density}}, "merge": {"elect_sum": {"zero": "majority"}}}
            for density in _KEPT
        ),
    ),
    Line("dare", tuple({"preset": "dare", "density": density} for density in (0.5, 0.7, 0.1)), random=True),
    Line(
        "della",
        tuple(
            {"preset": "della", "density": density, "window": window}
            for density, window in ((0.7, 0.14), (0.5, 0.4), (0.1, 0.14))
        ),
        random=True,
    ),
    Line("tsv", ({"preset": "tsv"},)),
    Line("iso_c", ({"preset": "iso_c"},)),
    Line(
        "regmean",
        # 0.9 is RegMean's own factor; the damping only keeps inputs that never occur from deciding anything.
        tuple(
            {"merge": {"regmean": {"off_diagonal": factor, "damping": damping}}}
            for damping, factor in product((1e-4, 1e-3, 1e-2), (0.9, 0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0))
        ),
        scaled=False,
    ),
)


def rows_of(bench: VisionBench, lines: Sequence[Line]) -> Iterator[Row]:
    """Show the test pictures of every task to the base, the experts, EMR's task models and every line."""
    base = bench.tensors("base")
    yield from _rows(bench, {"method": "base", "setting": "default"}, dict.fromkeys(bench.tasks, base))
    experts = {task: bench.tensors("experts", task) for task in bench.tasks}
    yield from _rows(bench, {"method": "experts", "setting": "default"}, experts)
    average = bench.merged(bench.recipe(preset="average"))
    yield from _rows(bench, {"method": "average", "setting": "default"}, dict.fromkeys(bench.tasks, average))
    emr = {task: bench.merged(bench.recipe(preset="emr", task=task)) for task in bench.tasks}
    yield from _rows(bench, {"method": "emr", "setting": "default"}, emr)
    with TemporaryDirectory() as folder:
        grams = {
            task: str(write_grams(bench, task, Path(folder, f"{task}.safetensors"))) for task in bench.tasks
        }
        for line in lines:
            yield from _line(bench, line, grams)


def _line(bench: VisionBench, line: Line, grams: Mapping[str, str]) -> Iterator[Row]:
    trials = line.trials
    values = [bench.mean(_model(bench, fields, grams, 0), "validation") for fields in trials]
    best = max(range(len(values)), key=values.__getitem__)
    edge = trials[best].get("scale") in (SCALES[0], SCALES[-1])
    note = {"validation": round(values[best], 4), "at_edge": edge, "trials": len(trials)}
    yield from _setting(bench, line, grams, "tuned", trials[best], note)
    for setting, fields in line.fixed.items():
        yield from _setting(bench, line, grams, setting, fields, {})


def _setting(
    bench: VisionBench, line: Line, grams: Mapping[str, str], setting: str, fields: Fields, note: Fields
) -> Iterator[Row]:
    numbers = " ".join(f"{key}={value}" for key, value in _numbers(fields) if key != "scale")
    keys = {"method": line.name, "setting": setting, "scale": fields.get("scale"), "fields": numbers, **note}
    for mask_seed in range(MASK_SEEDS if line.random else 1):
        merged = _model(bench, fields, grams, mask_seed)
        yield from _rows(bench, keys, dict.fromkeys(bench.tasks, merged), mask_seed)


def _numbers(fields: Fields) -> Iterator[tuple[str, float]]:
    """Find the numbers in the keys of a recipe, however deep."""
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif not isinstance(value, str):
            yield key, value


def _model(bench: VisionBench, fields: Fields, grams: Mapping[str, str], mask_seed: int) -> dict[str, Floats]:
    recipe = bench.recipe(**fields, seed=mask_seed)
    if "regmean" in fields.get("merge", ()):
        recipe["models"] = [{**model, "statistics": grams[model["label"]]} for model in recipe["models"]]
    return bench.merged(recipe)


def _rows(
    bench: VisionBench, keys: Fields, models: Mapping[str, Mapping[str, Floats]], mask_seed: int = 0
) -> Iterator[Row]:
    which = {"train_seed": bench.train_seed, "mask_seed": mask_seed}
    # One model for all tasks is shown all pictures; task models only their own.
    for task, tensors in models.items():
        yield Row({**which, **keys}, task, bench.marks(tensors, (task,), "test")[task])


def run(
    data: Path,
    families: Sequence[Path],
    out: Path,
    say: Callable[[str], None] = print,
    lines: Sequence[Line] = LINES,
) -> Results:
    """Make the table for every family and write all rows to `out`, which grows with every family done."""
    settings: dict[str, Any] = {"made": made(), "tasks": list(TASKS), "budget": BUDGET}
    settings |= {"mask_seeds": MASK_SEEDS, "train_seeds": []}
    rows: list[Row] = []
    results = Results("vision", settings, ())
    for family in families:
        bench = open_bench(family, data)
        settings["train_seeds"].append(bench.train_seed)
        say(f"training seed {bench.train_seed}")
        for row in rows_of(bench, lines):
            rows.append(row)
            if row.task == TASKS[-1]:
                say("  {method} {setting} mask {mask_seed}".format(**row.keys))
        results = Results("vision", settings, tuple(rows))
        results.save(out)
    return results


def render(results: Results) -> str:
    """Lay the results out as text: per cent right by method, setting and task, beside the papers' averages."""
    head = f"{'method':10s} {'setting':8s}" + "".join(f"{task[:14]:>15s}" for task in TASKS)
    lines = [f"{head}{'mean':>7s}  ViT-B/32 (source)"]
    for (method, setting), rows in grouped(
        results.rows, lambda row: (row.keys["method"], row.keys["setting"])
    ).items():
        shares = [100 * np.mean([row.accuracy for row in rows if row.task == task]) for task in TASKS]
        papers = ", ".join(
            f"{value:.1f} ({source})" for source, value in AVERAGES.get(str(method), {}).items()
        )
        cells = "".join(f"{share:15.1f}" for share in shares)
        lines.append(f"{method:10s} {setting:8s}{cells}{np.mean(shares):7.1f}  {papers}")
    return "\n".join(lines)


def make_table(
    data: Path, family: Path, out: Path, seeds: Sequence[int], device: str, say: Callable[[str], None]
) -> str:
    """Train the seeds that `family` lacks, make the table of all, write its rows to `out`, and lay it out as text.

    Raises MissingExtraError without torch, DamagedInputError where pictures are missing.
    """
    try:
        import torch
    except ModuleNotFoundError as cause:
        fix = "run: pip install 'deltasmith[vision]'"
        raise MissingExtraError("the vision family needs torch", fix=fix) from cause
    torch.set_num_threads(1)  # sums in another order could turn a close call
    folders = [family / f"seed{seed}" for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        if not (folder / "RECORD.json").exists():
            say(f"training seed {seed}")
            build_family(data, folder, seed, say, device=device)
    return render(run(data, folders, out, say))
