"""Sections of the page on features: what persists on every edge, in every mode, at every threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltasmith.lab.features.figures import MODES, Run, Share
from deltasmith.lab.features.findings import order_of
from deltasmith.lab.features.pooling import mean, pooled, spread
from deltasmith.lab.page_text import table

__all__ = ["edges_section", "leak_section", "order_section", "thresholds_section"]

_NONE = "–"


def edges_section(runs: Sequence[Run], plots: str) -> Iterator[str]:
    """Show persistence on every edge in every mode, its share of the floor, the verdicts and the statuses."""
    yield "## What persists on every edge"
    yield ""
    yield f"![share of features that persist, by edge and mode]({plots}/edges.svg)"
    yield ""
    yield (
        "`kept`: the parent's feature has a mutual best partner of r ≥ 0.8 in the child. `÷ floor`: over what the"
        " floor keeps. In mode shared one dictionary reads all models, so its floor is 100 % by construction, and"
        " the figures are of activations under the base's dictionary. Only the base has floors: edges from a"
        " fine-tune are held against the base's, and in mode warm they are judged more strictly, since what a"
        " fine-tune's spare latents learnt has nothing to begin from in the merge's dictionary."
    )
    yield ""
    head = ["edge"]
    for mode in MODES:
        head += [f"{mode}: kept"] + (["÷ floor"] if mode != "shared" else [])
    rows = []
    for edge in runs[0].edges:
        row = [" → ".join(edge)]
        for mode, role in zip(MODES, ("again", "seed", None), strict=True):
            row.append(str(pooled([run.kept(mode, *edge) for run in runs])))
            if role is not None:
                row.append(_ratio([run.adjusted(mode, *edge, role) for run in runs]))
        rows.append(row)
    yield from table(head, rows)
    yield ""
    yield from _verdicts(runs)
    yield from _fates(runs)


def _verdicts(runs: Sequence[Run]) -> Iterator[str]:
    for mode in ("warm", "independent"):
        silent = [
            f"{parent} → {child} (seed {run.seed})"
            for run in runs
            for parent, child in run.edges
            if run.edge(mode, parent, child)["verdict"] == "no evidence that features changed"
        ]
        if silent:
            yield f"Mode {mode}: **no evidence that features changed** on {', '.join(silent)}."
        else:
            yield f"Mode {mode}: every edge keeps fewer features than its floor, beyond its interval."
    yield ""


def _fates(runs: Sequence[Run]) -> Iterator[str]:
    names = ("persisted", "drifted", "split", "fused", "disappeared")
    rows = []
    for edge in runs[0].edges:
        found = [run.edge("warm", *edge) for run in runs]
        cells = [f"{100 * mean(_value(one, name) for one in found):.1f}" for name in names]
        rows.append((" → ".join(edge), *cells, f"{100 * mean(_value(one, 'emerged') for one in found):.1f}"))
    yield "Statuses in mode warm, in per cent of the parent's testable features; emerged: of the child's."
    yield ""
    yield from table(("edge", *names, "emerged"), rows)
    yield ""


def _value(edge: object, name: str) -> float:
    rates = edge["rates"]  # type: ignore[index]
    return float(rates[name]["value"]) if name in rates else 0.0


def order_section(runs: Sequence[Run]) -> Iterator[str]:
    """Hold the order of the edges against how far the weights moved."""
    groups = [name for name in runs[0].changes(*runs[0].edges[0]) if name != "all"]
    yield "## Order of the edges, and how far the weights moved"
    yield ""
    yield (
        "‖child − parent‖ / ‖parent‖, over all tensors and by group: in models of one layer, embeddings and head"
        " are most of the weights. Edges from the one that keeps least (mode warm) to the one that keeps most."
    )
    yield ""
    rows = []
    for edge in order_of(runs[0], "warm"):
        changes = [run.changes(*edge) for run in runs]
        row = [" → ".join(edge), spread((one["all"] for one in changes), ".3f")]
        row += [spread((one[name] for one in changes), ".3f") for name in groups]
        row += [f"{100 * mean(run.kept(mode, *edge).value for run in runs):.1f}" for mode in MODES]
        rows.append(row)
    yield from table(("edge", "all", *groups, *(f"{mode}: kept" for mode in MODES)), rows)
    yield ""
    first = runs[0]
    same = all(order_of(run, mode) == order_of(run, "warm") for run in runs for mode in MODES)
    changed = [sorted(run.edges, key=lambda edge, run=run: -run.changes(*edge)["all"]) for run in runs]  # type: ignore[misc]
    agrees = all(order == order_of(run, "warm") for order, run in zip(changed, runs, strict=True))
    yield (
        f"The {len(first.edges)} edges {'come' if same else 'do not all come'} in one order in all three"
        f" modes{' and seeds' if len(runs) > 1 else ''}, and {'in' if agrees else 'not in'} the order of the"
        " weights' change, larger change first. An order of neighbours whose intervals overlap is no finding."
    )
    yield ""


def leak_section(runs: Sequence[Run]) -> Iterator[str]:
    """Show what one seed for all dictionaries does."""
    root = runs[0].labels[0]
    yield "## One seed for all dictionaries"
    yield ""
    yield (
        "The paper's dictionaries all begin from one seed. Here the base's and one child's do as well, with the"
        " same order of the text (`one seed`), beside dictionaries of different seeds. `same index`: of the"
        " features that persist, those whose partner has the same number, which says something of the first latents"
        " only."
    )
    yield ""
    rows = []
    for label in runs[0].labels[1:]:
        if (root, label) not in runs[0].edges:
            continue
        same = [run.pair(f"same-{label}") for run in runs]
        other = [run.edge("independent", root, label) for run in runs]
        rows.append(
            (
                f"{root} → {label}",
                str(pooled([run.kept_in(f"same-{label}") for run in runs])),
                f"{100 * mean(float(e['same_index'] or 0) for e in same):.1f}",
                str(pooled([run.kept("independent", root, label) for run in runs])),
                f"{100 * mean(float(e['same_index'] or 0) for e in other):.1f}",
            )
        )
    yield from table(("edge", "one seed: kept", "same index", "two seeds: kept", "same index"), rows)
    yield ""


def thresholds_section(runs: Sequence[Run]) -> Iterator[str]:
    """Show persistence at several thresholds."""
    yield "## The threshold"
    yield ""
    yield "Share of features with a mutual best partner of at least this r, in per cent: warm, then afresh."
    yield ""
    steps = tuple(runs[0].edge("warm", *runs[0].edges[0])["curve"])
    rows = []
    for edge in runs[0].edges:
        row = [" → ".join(edge)]
        for mode in ("warm", "independent"):
            row += [
                f"{100 * mean(run.edge(mode, *edge)['curve'][step]['value'] for run in runs):.1f}"
                for step in steps
            ]
        rows.append(row)
    head = [f"{mode}: r ≥ {step}" for mode in ("warm", "afresh") for step in steps]
    yield from table(("edge", *head), rows)
    yield ""


def _ratio(found: Sequence[Share | None]) -> str:
    kept = [share for share in found if share is not None]
    if not kept:
        return _NONE
    share = pooled(kept)
    return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"
