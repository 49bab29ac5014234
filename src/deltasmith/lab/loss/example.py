"""The worked example: one report of `deltasmith loss` on the bundled family, kept as JSON, drawn on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltasmith.lab import family_folder
from deltasmith.lab.made import made

__all__ = ["EDITS", "EXAMPLE", "draw_example", "run_example"]

EXAMPLE = "loss-example.json"
EDITS = [{"keep_largest": {"density": 0.3}}]
"""TIES' trim of the expert in word problems: it loses a quarter of its answers."""


def run_example(out: Path) -> None:
    """Analyse the example as the command does, and write the report to the file `out`."""
    from deltasmith.analysis.run import loss

    family = family_folder()
    models = [{"model": str(family / "small" / "math"), "label": "math", "edits": EDITS}]
    recipe = {"base": str(family / "base"), "models": models, "dtype": "float32"}
    report = loss(recipe, data=family / "items" / "math.jsonl", limit=100, threads=1)
    text = json.dumps({"made": made(), **report.as_json()}, indent=1, ensure_ascii=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")


def draw_example(file: Path, plots: Path) -> None:
    """Draw the report in `file`: the loss along the path, and the heatmap of layers and projections."""
    from deltasmith.analysis.plots import heatmap, path_plot

    report = _report(json.loads(file.read_text(encoding="utf-8")))
    path_plot(report, plots / "path.png")
    heatmap(report, None, plots / "heatmap.png")


def _report(found: dict[str, Any]) -> Any:
    from deltasmith.analysis.report import DataUsed, Estimate, LossReport, Prediction
    from deltasmith.analysis.rules import Grid

    def read(part: dict[str, float]) -> Estimate:
        return Estimate(part["value"], part["low"], part["high"])

    predictions = tuple(
        Prediction(
            Grid(one["rule"], one["steps"]),
            read(one["change"]),
            one["error"],
            one["verdict"],
            one["contributions"]["tensor"],
        )
        for one in found["predictions"]
    )
    return LossReport(
        start=found["start"],
        end=found["end"],
        data=DataUsed(**found["data"]),
        start_loss=read(found["start_loss"]),
        end_loss=read(found["end_loss"]),
        base_loss=found["base_loss"],
        measured=read(found["measured"]),
        verdict=found["verdict"],
        margin=found["margin"],
        margin_reason=found["margin_reason"],
        predictions=predictions,
        along=tuple((one["t"], one["loss"]) for one in found["along"]),
    )
