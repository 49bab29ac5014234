"""Sections of the page on features: the merge, its coefficient, and the case studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltasmith.lab.features.figures import Run, Share
from deltasmith.lab.features.findings import DETECTS
from deltasmith.lab.features.pooling import mean, pooled
from deltasmith.lab.page_text import table

__all__ = ["cases_section", "merge_section", "sweep_section"]

_NONE = "–"


def merge_section(runs: Sequence[Run]) -> Iterator[str]:
    """Show where the merge's features come from, and what is universal."""
    yield "## The merge"
    yield ""
    yield (
        "Where the merge's features come from (mode warm, per cent of its testable features; the first that holds"
        " counts). Recovered: it comes from the base and is lost in a fine-tune. Consensus: from both fine-tunes."
        " Inherited: from one."
    )
    yield ""
    first = runs[0].study("warm")["merges"][0]
    rows = []
    for name in first["rates"]:
        found = [Share.of(run.study("warm")["merges"][0]["rates"][name]) for run in runs]
        rows.append((name, str(pooled(found))))
    rows += [
        (
            f"lost in the merge, of {parent}",
            str(pooled([Share.of(r.study("warm")["merges"][0]["lost_rates"][parent]) for r in runs])),
        )
        for parent in first["lost_rates"]
    ]
    yield from table(("origin", "share"), rows)
    yield ""
    yield from _returns(runs)
    everywhere = [Share.of(run.study("warm")["universal"]["share"]) for run in runs]
    alone = [Share.of(run.study("independent")["universal"]["share"]) for run in runs]
    yield (
        f"Universal, persisting along every edge from the base on: {pooled(everywhere)} per cent of the base's"
        f" testable features in mode warm, {pooled(alone)} afresh."
    )
    yield ""


def _returns(runs: Sequence[Run]) -> Iterator[str]:
    yield (
        "Base's features by the fine-tunes they persist in, and how many of each group persist in the merge: a"
        " feature that drifts beyond r = 0.8 in a fine-tune can be back in the merge, which lies between the two."
    )
    yield ""
    rows = []
    for at, group in enumerate(runs[0].study("warm")["returns"][0]["groups"]):
        groups = [run.study("warm")["returns"][0]["groups"][at] for run in runs]
        count, back = sum(one["features"] for one in groups), sum(one["in_merge"] for one in groups)
        share = f"{100 * back / count:.1f}" if count else _NONE
        rows.append((" and ".join(group["kept_in"]) or "neither", str(count), str(back), share))
    yield from table(("persists in", "features", "of them in the merge", "per cent"), rows)
    yield ""


def sweep_section(runs: Sequence[Run], plots: str) -> Iterator[str]:
    """Show features and accuracy along the merge's coefficient."""
    sweep = runs[0].sweep
    names = [parent["label"] for parent in sweep["parents"]]
    yield "## Along the merge's t"
    yield ""
    yield f"![features kept and next-token accuracy along t]({plots}/sweep.svg)"
    yield ""
    domains = [domain for domain, expert in sweep["experts"].items() if expert]
    yield (
        f"SLERP from {names[0]} (t = 0) to {names[1]} (t = 1), every merge read by the base's dictionary; no"
        " dictionary is trained. Accuracy is of next tokens on held-out text; recovered is (merge − base) /"
        " (fine-tune − base)."
    )
    yield ""
    rows = []
    for at, point in enumerate(sweep["points"]):
        points = [run.sweep["points"][at] for run in runs]
        row = [str(point["value"])]
        row += [
            f"{100 * mean(float(p['kept'][label]['rates']['persisted']['value']) for p in points):.1f}"
            for label in (sweep["root"], *names)
        ]
        row += [f"{100 * mean(p['scores'][domain]['accuracy'] for p in points):.1f}" for domain in domains]
        row += [f"{mean(p['scores'][domain]['loss'] for p in points):.3f}" for domain in domains]
        row += [f"{100 * mean(p['recovered'][domain] or 0.0 for p in points):.0f}" for domain in domains]
        rows.append(row)
    head = ["t", *(f"kept of {label}" for label in (sweep["root"], *names))]
    for what in ("accuracy", "loss", "recovered"):
        head += [f"{domain}: {what}" for domain in domains]
    yield from table(head, rows, left=0)
    yield ""
    for run in runs:
        best, smallest = run.sweep["best_mean"], run.sweep["best_smallest"]
        if best and smallest:
            yield (
                f"Seed {run.seed}: the mean accuracy is best at t = {best['value']}, the smallest recovered share at"
                f" t = {smallest['value']} ({100 * smallest['score']:.0f} %)."
            )
    yield ""


def cases_section(runs: Sequence[Run]) -> Iterator[str]:
    """Show the features that follow patterns of the text."""
    yield "## Case studies, found by patterns"
    yield ""
    yield (
        "A regular expression marks tokens of the held-out text; shown is the base's feature whose activations"
        " follow the mark best (r with the mark, F1 of firing there), and its nearest partner in each child (mode"
        f" warm, r of the two features). Below an F1 of {DETECTS} it is no detector of the pattern, and what became"
        " of it says nothing of that."
    )
    yield ""
    children = [child for parent, child in runs[0].edges if parent == runs[0].labels[0]]
    rows = []
    for run in runs:
        for pattern in run.patterns():
            detectors = next(m["detectors"] for m in pattern["members"] if m["label"] == run.labels[0])
            seed = [str(run.seed)] if len(runs) > 1 else []
            if not detectors:
                rows.append(
                    [
                        *seed,
                        pattern["name"],
                        str(pattern["tokens"]),
                        "no feature",
                        *[_NONE] * (1 + len(children)),
                    ]
                )
                continue
            best = detectors[0]
            along = {step["child"]: step for step in best["along"] if step["parent"] == run.labels[0]}
            cells = [f"{along[child]['status']} ({along[child]['r']:.2f})" for child in children]
            marking = best["marking"]
            row = [
                pattern["name"],
                str(pattern["tokens"]),
                f"{marking['r']:.2f}",
                f"{marking['f1']:.2f}",
                *cells,
            ]
            rows.append([*seed, *row])
    seed = ["seed"] if len(runs) > 1 else []
    head = [*seed, "pattern", "tokens", "r", "F1", *(f"in {child}" for child in children)]
    yield from table(head, rows, left=len(seed) + 1)
    yield ""
