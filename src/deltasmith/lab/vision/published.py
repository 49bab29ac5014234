"""The papers' eight-task numbers for CLIP ViT-B/32, by the names of our methods. Cells live in lab.published."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from deltasmith.lab.published import EMR_AVERAGES, EMR_TASKS, FUSION_BENCH_CLIP, Published

__all__ = ["AVERAGES", "METHODS", "TASK_ROWS", "papers_vision"]

_MODEL = "CLIP ViT-B/32"

METHODS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "FusionBench": MappingProxyType(
            {
                "base": "pre trained",
                "experts": "fine tuned",
                "average": "average",
                "regmean": "RegMean",
                "ta": "TA",
                "ties_sum": "TIES",
                "iso_c": "Iso C",
            }
        ),
        "EMR paper": MappingProxyType(
            {
                "experts": "individual",
                "average": "average",
                "regmean": "RegMean",
                "ta": "TA",
                "ties": "TIES",
                "emr": "EMR",
            }
        ),
    }
)
"""Our name of a method → its name in each source; FusionBench's TIES adds up what agrees."""

TASK_ROWS: Mapping[str, Published] = MappingProxyType(
    {"FusionBench": FUSION_BENCH_CLIP, "EMR paper": EMR_TASKS}
)
"""The tables that have a column for each task, by source."""


def papers_vision(source: str) -> dict[str, dict[str, float]]:
    """Return the published rows of a source by our method names: accuracy in per cent by task, and "Average".

    The EMR paper has every task for EMR alone, and averages for the rest.
    """
    found: dict[str, dict[str, float]] = {}
    tables = (TASK_ROWS[source], EMR_AVERAGES) if source == "EMR paper" else (TASK_ROWS[source],)
    for ours, theirs in METHODS[source].items():
        for table in tables:
            row = next((r for r in table.rows if (r.models, r.method) == (_MODEL, theirs)), None)
            if row is not None:
                cells = zip(table.columns, row.values, strict=True)
                found[ours] = {column: value for column, value in cells if value is not None}
                break
    return found


def _averages() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for source in METHODS:
        for method, cells in papers_vision(source).items():
            found.setdefault(method, {})[source] = cells["Average"]
    return found


AVERAGES: Mapping[str, Mapping[str, float]] = MappingProxyType(_averages())
"""Mean accuracy over the eight tasks, in per cent: method → source → value."""
