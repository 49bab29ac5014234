"""Turns results.json into the tables of README.md; python benchmarks/report.py does it again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from methods import MERGES, Merge

__all__ = ["BUDGET_MIB", "PLAN_SECONDS", "fill", "fill_between", "tables"]

BUDGET_MIB = 512
PLAN_SECONDS = 3.0
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"

Runs = list[dict[str, float]]


def tables(results: dict[str, Any]) -> str:
    """Return the Markdown of one measurement: machine, merges against floor and mergekit, single cases."""
    parts = [
        _machine(results),
        _floor_table(results["merges"]),
        _rival_table(results["merges"]),
        _others(results),
    ]
    return "\n\n".join(part for part in parts if part)


def fill(readme: Path, text: str) -> None:
    """Put `text` between the two markers of the page."""
    fill_between(readme, _BEGIN, _END, text)


def fill_between(readme: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between two lines of a page."""
    before, _, rest = readme.read_text().partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise SystemExit(f"{readme.name}: no line {begin!r} followed by {end!r}")
    readme.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _machine(results: dict[str, Any]) -> str:
    machine, ours, theirs = results["machine"], results["versions"], results["rival_versions"]
    lines = [
        f"{results['date']}, commit {results['commit']}. {machine['processor']}, {machine['cores']} cores,"
        f" {machine['memory_gib']} GiB, {machine['kernel']}; load before the run {machine['load_before']}.",
        f"Ours: {_listed(ours)}.",
    ]
    if theirs:
        lines.append(f"mergekit: {_listed(theirs)}; options `{results['rival_options']}`.")
    return "\n".join(lines)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _floor_table(merges: dict[str, Any]) -> str:
    """Compare with the floor: medians of wall seconds."""
    rows = []
    for merge in MERGES:
        if merge.name not in merges:
            continue
        found = merges[merge.name]
        floor, wall = _wall(found["floor"]), _wall(found["deltasmith"])
        rows.append(
            [
                merge.title,
                f"{floor:.2f}",
                f"{wall:.2f} ({_range(found['deltasmith'])})",
                f"{wall / floor:.2f}",
                _wall_verdict(merge, wall / floor),
                f"{_cpu(found['deltasmith']):.2f}",
                _within_budget([found["first"], *found["deltasmith"]]),
                f"{found['first']['wall_seconds']:.1f}",
            ]
        )
    heads = [
        "merge",
        "floor s",
        "deltasmith s (range)",
        "× floor",
        "expected",
        "CPU-s",
        f"peak MiB (≤ {BUDGET_MIB})",
        "first run s",
    ]
    return _table(heads, rows)


def _rival_table(merges: dict[str, Any]) -> str:
    """Compare with mergekit: medians, and how many times more it takes."""
    rows = []
    for merge in MERGES:
        runs = merges.get(merge.name, {}).get("mergekit")
        if not runs:
            continue
        ours = merges[merge.name]["deltasmith"]
        times = _cpu(runs) / _cpu(ours)
        rows.append(
            [
                merge.title,
                f"{_wall(runs):.1f}",
                f"{_wall(runs) / _wall(ours):.1f}",
                f"{_cpu(runs):.1f}",
                f"{times:.1f}",
                ""
                if merge.cpu_factor is None
                else f"≥ {merge.cpu_factor:g}: {_met(times >= merge.cpu_factor)}",
                _memory(runs),
                str(len(runs)),
            ]
        )
    heads = ["merge", "mergekit s", "× ours", "CPU-s", "× ours", "expected", "peak MiB", "runs"]
    return _table(heads, rows)


def _others(results: dict[str, Any]) -> str:
    rows = []
    if giant := results.get("giant"):
        ours = giant["deltasmith"]
        expected = f"≤ {BUDGET_MIB} MiB: {_met(_peak(ours) <= BUDGET_MIB)}"
        title = f"TIES on one tensor of 2³¹ elements (floor {_wall(giant['floor']):.1f} s)"
        rows.append([title, f"{_wall(ours):.1f}", f"{_cpu(ours):.1f}", _memory(ours), expected])
    if plan := results.get("plan"):
        verdict = f"≤ {PLAN_SECONDS:g} s: {_met(_wall(plan) <= PLAN_SECONDS)}"
        rows.append(
            ["plan of 22,213 tensors", f"{_wall(plan):.2f}", f"{_cpu(plan):.2f}", _memory(plan), verdict]
        )
    for name, runs in results.get("start", {}).items():
        rows.append([f"`{name} --help`", f"{_wall(runs):.2f}", f"{_cpu(runs):.2f}", _memory(runs), ""])
    return _table(["case", "s", "CPU-s", "peak MiB", "expected"], rows)


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])


def _wall(runs: Runs) -> float:
    return median(run["wall_seconds"] for run in runs)


def _cpu(runs: Runs) -> float:
    return median(run["cpu_seconds"] for run in runs)


def _peak(runs: Runs) -> float:
    """Return the largest peak of all runs in MiB: a budget is a bound, so a median would hide a breach."""
    return max(run["peak_anonymous_bytes"] for run in runs) / (1 << 20)


def _memory(runs: Runs) -> str:
    return f"{_peak(runs):.0f}"


def _within_budget(runs: Runs) -> str:
    return _memory(runs) if _peak(runs) <= BUDGET_MIB else f"**{_memory(runs)}**"


def _range(runs: Runs) -> str:
    walls = [run["wall_seconds"] for run in runs]
    return f"{min(walls):.2f}–{max(walls):.2f}"


def _wall_verdict(merge: Merge, ratio: float) -> str:
    if merge.at_most is None:
        return ""
    if merge.stretch is not None and ratio <= merge.stretch:
        return f"≤ {merge.at_most:g}: met, and ≤ {merge.stretch:g}"
    return f"≤ {merge.at_most:g}: {_met(ratio <= merge.at_most)}"


def _met(holds: bool) -> str:
    return "met" if holds else "**not met**"


def main() -> None:
    here = Path(__file__).parent
    fill(here / "README.md", tables(json.loads((here / "results.json").read_text())))


if __name__ == "__main__":
    main()
