"""Asks the bundled family's mixtures its test questions: SMILE, and Twin-Merging by gates, by a router, told the task.

python benchmarks/mixtures.py prints the table of docs/upscaling.md, in some ten minutes on one core. The router
learns from 600 prompts a task that are no test items (`lab.tasks`, split `train`). Nothing is tuned.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from deltasmith.evaluate.run import evaluate_model
from deltasmith.lab import BUNDLED_REGIMES, EXPERTS, family_folder
from deltasmith.lab.tasks import held_out
from deltasmith.upscaling.build import Upscaled, upscale

ROWS = (
    ("smile, expert rank 4", {"expert_rank": 4}, "gates"),
    ("smile, expert rank 16", {"expert_rank": 16}, "gates"),
    ("smile, expert rank 64", {"expert_rank": 64}, "gates"),
    ("smile, whole deltas", {"expert_rank": -1}, "gates"),
    ("smile, whole deltas, told the task", {"expert_rank": -1}, "told"),
    ("twin, SMILE's gate", {"preset": "twin"}, "gates"),
    ("twin, trained router", {"preset": "twin"}, "router"),
    ("twin, told the task", {"preset": "twin"}, "told"),
)
EXAMPLES, SEED = 600, 7


def main() -> None:
    prompts = {task: [f"{e.prompt}\n" for e in held_out(task, "train", EXAMPLES, SEED)] for task in EXPERTS}
    print("| | MB |", " | ".join(f"{regime}: {task}" for regime in BUNDLED_REGIMES for task in EXPERTS), "|")
    print("|---" * (2 + len(BUNDLED_REGIMES) * len(EXPERTS)) + "|")
    with tempfile.TemporaryDirectory(prefix="deltasmith-") as root:
        for number, (title, options, decides) in enumerate(ROWS):
            cells = [
                measured(Path(root) / f"{number}-{r}", r, options, decides, prompts) for r in BUNDLED_REGIMES
            ]
            size = cells[0][0]
            scores = [score for _, found in cells for score in found]
            print(
                f"| {title} | {size / 1e6:.1f} |",
                " | ".join(f"{100 * s:.1f}" for s in scores),
                "|",
                flush=True,
            )


def measured(out, regime, options, decides, prompts):
    """Write one mixture of a regime's experts and ask it every task; return its bytes and its scores."""
    given = {"router_data": prompts} if decides == "router" else {}
    if decides != "told":
        made = written(out, regime, **options, **given)
        if made.router is not None:
            print(f"  {regime}: router {made.router.accuracy:.3f}, epoch {made.router.epoch}")
        return made.bytes_written, asked(out, EXPERTS)
    found = []
    for task in EXPERTS:
        made = written(out.with_name(f"{out.name}-{task}"), regime, **options, weights={task: 1.0})
        found += asked(Path(made.out), (task,))
    return made.bytes_written, found


def written(out: Path, regime: str, **options) -> Upscaled:
    folder = family_folder()
    experts = [folder / regime / task for task in EXPERTS]
    return upscale(folder / "base", experts, out, overwrite=True, **options)


def asked(model: Path, tasks) -> list[float]:
    """Return the fraction of right answers, task by task."""
    result = evaluate_model(model, ("family",), threads=1, journal=str(model) + ".journal")
    return [result.evaluation.tasks[task].score for task in tasks]


if __name__ == "__main__":
    main()
