"""The eight-task table on the lab's page, beside the published ones."""

from __future__ import annotations

from pathlib import Path

from deltasmith.lab.page_text import Lines, brief, table
from deltasmith.lab.rows import Results, Row, grouped
from deltasmith.lab.summary import figure
from deltasmith.lab.vision import TASKS
from deltasmith.lab.vision.published import AVERAGES

__all__ = ["NAMES", "vision_section"]

NAMES = {
    "base": "pre-trained",
    "experts": "experts, each on its own task",
    "average": "average",
    "regmean": "RegMean",
    "ta": "TA",
    "ties": "TIES",
    "ties_sum": "TIES, adding up",
    "dare": "DARE",
    "della": "DELLA",
    "tsv": "TSV",
    "iso_c": "Iso-C",
    "emr": "EMR (knows the task)",
}
_SETTINGS = {"tuned": "tuned", "default": "λ = 1", "papers": "λ = 0.3"}


def vision_section(results: Results, plots: Path) -> Lines:
    """Give the accuracy of every method on every task, and the published averages."""
    rows = []
    for (method, setting), group in grouped(results.rows, _line).items():
        cells = [f"{figure([r for r in group if r.task == task]).value:.1f}" for task in TASKS]
        published = "; ".join(f"{value:.1f} ({source})" for source, value in AVERAGES.get(method, {}).items())
        fixed = method in ("base", "experts", "average", "emr")
        said = "" if fixed else _SETTINGS[setting]
        rows.append((NAMES.get(method, method), said, *cells, brief(figure(group)), published))
    head = ("method", "setting", *TASKS, "mean", "ViT-B/32 in print")
    seeds = ", ".join(map(str, results.settings["train_seeds"]))
    return [
        "## Eight vision tasks",
        "",
        "A ViT of 0.2 M parameters, pre-trained on one picture of every class and on four more alphabets, its heads"
        " then frozen, and fine-tuned into an expert for each task (mean abs δ about 0.008). Trunks are merged; a"
        " task's pictures go through its own head."
        " MNIST, turned and inverted MNIST, scikit-learn's digits, and four alphabets of Omniglot. How much"
        " the base learns and which alphabets were settled by the accuracy of base and experts under seed 0, before"
        " anything was merged. Every tuned line"
        f" may try {results.settings['budget']} recipes on validation pictures; training seeds {seeds}. The last"
        " column is the published mean of eight other tasks on CLIP ViT-B/32.",
        "",
        *table(head, rows, left=2),
    ]


def _line(row: Row) -> tuple[str, str]:
    return str(row.keys["method"]), str(row.keys["setting"])
