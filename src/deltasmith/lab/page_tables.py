"""The tables and plots of the language models' experiments on the lab's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deltasmith.lab import published
from deltasmith.lab.experiments import curves, emr, merges
from deltasmith.lab.page_text import Lines, brief, table
from deltasmith.lab.rows import Results
from deltasmith.lab.summary import Figure, figure

__all__ = ["curves_section", "emr_section", "merges_section"]

_CURVE_NAMES = {
    "dare": "DARE",
    "magprune": "MAGPRUNE",
    "magnitude": "magnitude",
    "magnitude_rescaled": "magnitude, divided by density",
    "dp": "DP",
    "dp_dpa": "DP + DPA (factors searched)",
}
_LINE_NAMES = {
    "ta": "TA (sum)",
    "ties_noelect": "TIES without election",
    "dare": "DARE without election",
    "della_noelect": "DELLA without election",
    "ta_elect": "TA with election",
    "ties": "TIES",
    "dare_ties": "DARE with election",
    "della": "DELLA",
    "dppa": "DPPA (20 % kept, summed)",
}
_COMBINATIONS = {
    "math+ins": "LM+Math",
    "code+ins": "LM+Code",
    "math+code": "Math+Code",
    "math+code+ins": "LM+Math+Code",
}
_ALL_THREE = "math+code+ins"
_DENSE = 0.04
"""The share of a model of size S outside its decoder linears: 20,064 of 499,296 values."""
_PAPER_LINES = {
    "ta_elect": (published.DELLA_ELECT, "TA"),
    "ties": (published.DELLA_ELECT, "TIES"),
    "dare_ties": (published.DELLA_ELECT, "DARE"),
    "della": (published.DELLA_ELECT, "DELLA"),
    "ta": (published.DELLA_NO_ELECT, "TA"),
    "ties_noelect": (published.DELLA_NO_ELECT, "TIES"),
    "dare": (published.DELLA_NO_ELECT, "DARE"),
    "della_noelect": (published.DELLA_NO_ELECT, "DELLA"),
}
_EMR_NAMES = {
    "base": "pre-trained",
    "experts": "experts, each on its own task",
    "average": "average",
    "ta": "TA, λ tuned",
    "ties": "TIES, tuned",
    "elect": "elect",
    "elect_rescale": "elect + rescale",
    "elect_mask": "elect + mask",
    "emr": "EMR (elect + mask + rescale)",
    "emr_mean": "EMR, rescaler of the released code",
    "emr_l2": "EMR, rescaler by least squares",
}
_EMR_PAPER = {
    "experts": (published.EMR_AVERAGES, "individual"),
    "average": (published.EMR_AVERAGES, "average"),
    "ta": (published.EMR_AVERAGES, "TA"),
    "ties": (published.EMR_AVERAGES, "TIES"),
    "elect": (published.EMR_ABLATION, "elect"),
    "elect_mask": (published.EMR_ABLATION, "elect+mask"),
    "elect_rescale": (published.EMR_ABLATION, "elect+rescale"),
    "emr": (published.EMR_ABLATION, "elect+mask+rescale"),
}


def curves_section(results: Results, plots: Path) -> Lines:
    """Draw one plot a regime and give the figures behind it."""
    lines = [
        "## One expert, pruned",
        "",
        "An expert's delta is pruned at rate p and the model asked its own task; means over the three experts."
        f" DARE and MAGPRUNE with {curves.MASK_SEEDS} mask seeds. MAGPRUNE's window is 0.14, less where"
        " probabilities would leave (0, 1). DP + DPA keeps two nested partitions of half the density each; its two"
        " factors come from the greedy search on validation items, DP + DPA therefore has seen validation items of"
        " the task and the others have not. DP prunes the decoder linears alone, as its released code does:"
        f" embeddings, head and norms, {_DENSE:.0%} of this family's values, stay whole. At p = 0.99 DP therefore"
        " keeps five times what the other methods keep, and its last column is no fair comparison.",
        "",
    ]
    for regime in results.settings["regimes"]:
        found = _curve_figures(results, regime)
        _draw_curves(plots / f"curves-{regime}.svg", regime, found)
        dense = figure(results.where(regime=regime, method="expert").rows)
        lines += [
            f"### {regime} deltas",
            "",
            f"![accuracy against rate, {regime} deltas](lab/curves-{regime}.svg)",
            "",
            f"The experts themselves: {dense}.",
            "",
            *table(
                ("method", *(f"p = {rate}" for rate in curves.RATES)),
                [
                    (
                        name,
                        *(
                            brief(found[method][rate]) if rate in found[method] else ""
                            for rate in curves.RATES
                        ),
                    )
                    for method, name in _CURVE_NAMES.items()
                ],
            ),
            "",
        ]
    return [*lines, *_published_curves()]


def _curve_figures(results: Results, regime: str) -> dict[str, dict[float, Figure]]:
    found: dict[str, dict[float, Figure]] = {}
    for method in _CURVE_NAMES:
        kept = results.where(regime=regime, method=method)
        rates = sorted({float(str(row.keys["rate"])) for row in kept.rows})
        found[method] = {rate: figure(kept.where(rate=rate).rows) for rate in rates}
    return found


def _draw_curves(path: Path, regime: str, found: dict[str, dict[float, Figure]]) -> None:
    from deltasmith.evaluate.plots import curves as draw

    series = []
    for method, name in _CURVE_NAMES.items():
        figures = found[method].values()
        bounds = [f.low for f in figures], [f.high for f in figures]
        series.append((name, list(found[method]), [f.value for f in figures], *bounds))
    draw(
        path,
        series,
        x_label="rate p (fraction removed)",
        y_label="accuracy, per cent",
        title=f"{regime} deltas",
    )


def _published_curves() -> Iterator[str]:
    pruned = published.DELLA_PRUNED
    yield f"The papers: {pruned.citation}, one 13 B expert, score without and with rescaling:"
    yield ""
    yield from table(
        ("rate", *pruned.columns), [(row.method, *map(_cell, row.values)) for row in pruned.rows]
    )
    yield ""
    large = published.DARE_LARGE_DELTAS
    yield f"{large.citation}: {large.title}."
    yield ""
    yield from table(("rate", *large.columns), [(row.method, *map(_cell, row.values)) for row in large.rows])
    yield ""
    yield "DPPA's result tables are not available to us; its abstract's claims are among those at the top."


def merges_section(results: Results, plots: Path) -> Lines:
    """Give DELLA's table in every regime, tuned and at λ = 1, and the paper's own."""
    lines = [
        "## Merging experts: DELLA's table",
        "",
        f"Every line may try {merges.BUDGET} recipes on validation items: λ from {merges.SCALES[0]} to"
        f" {merges.SCALES[-1]} times three settings of its own, or three times as many λ where it has none. Sums and"
        " means share the grid. DPPA here takes three fixed pairs of factors and no search of its own. At λ = 1 the"
        " settings are those of the papers' examples. Means over the tasks merged.",
        "",
    ]
    for regime in results.settings["regimes"]:
        for setting, title in (("tuned", "λ and setting tuned"), ("default", "λ = 1")):
            kept = results.where(regime=regime, setting=setting)
            lines += [f"### {regime} deltas, {title}", ""]
            if setting == "tuned":
                _draw_merges(plots / f"merges-{regime}.svg", regime, results)
                lines += [f"![all three experts merged, {regime} deltas](lab/merges-{regime}.svg)", ""]
            lines += [*_merge_table(kept), ""]
            if setting == "tuned":
                lines += [_edges(kept), ""]
    lines += [f"### The paper: {published.DELLA_ELECT.citation}; without election, Table 4", ""]
    head = ("method", *_COMBINATIONS.values())
    rows = [
        (_LINE_NAMES[line], *(_cell(paper.value(combination, name, "Avg")) for combination in head[1:]))
        for line, (paper, name) in _PAPER_LINES.items()
    ]
    return [*lines, *table(head, rows)]


def _draw_merges(path: Path, regime: str, results: Results) -> None:
    from deltasmith.evaluate.plots import dots

    groups = []
    for setting, said in (("tuned", "λ and setting tuned"), ("default", "λ = 1")):
        kept = results.where(regime=regime, setting=setting, models=_ALL_THREE)
        found = [figure(kept.where(method=line).rows) for line in _LINE_NAMES]
        groups.append((said, [f.value for f in found], [f.low for f in found], [f.high for f in found]))
    title = f"all three experts merged, {regime} deltas"
    dots(
        path,
        list(_LINE_NAMES.values()),
        groups,
        x_label="accuracy, per cent, mean of three tasks",
        title=title,
    )


def _merge_table(kept: Results) -> Iterator[str]:
    rows = []
    for line, name in _LINE_NAMES.items():
        cells = [kept.where(method=line, models=models).rows for models in _COMBINATIONS]
        rows.append((name, *(brief(figure(cell)) for cell in cells)))
    yield from table(("method", *_COMBINATIONS.values()), rows)


def _edges(kept: Results) -> str:
    searches = {
        (row.keys["method"], row.keys["models"], row.keys["train_seed"]): row.keys["at_edge"]
        for row in kept.rows
    }
    at_edge = sorted({str(method) for (method, _, _), edge in searches.items() if edge})
    if not at_edge:
        return f"None of the {len(searches)} searches ended at an end of the grid of λ."
    count = sum(map(bool, searches.values()))
    return f"{count} of {len(searches)} searches ended at an end of the grid of λ ({', '.join(at_edge)})."


def emr_section(results: Results, plots: Path) -> Lines:
    """Give EMR's table and ablation in every regime beside the paper's."""
    regimes = results.settings["regimes"]
    rows = []
    for method in emr.METHODS:
        cells = [brief(figure(results.where(regime=regime, method=method).rows)) for regime in regimes]
        paper, name = _EMR_PAPER.get(method, (None, ""))
        beside = _cell(paper.value("CLIP ViT-B/32", name, "Average")) if paper else ""
        rows.append((_EMR_NAMES[method], *cells, beside))
    return [
        "## EMR",
        "",
        "Mean over the three tasks. Static merges answer every task with one model; the lines with a mask are told"
        " the task and keep one bit per parameter and task. `elect + rescale` multiplies the whole elected vector so"
        " that its L1 norm is the task's.",
        "",
        *table(("method", *(f"{regime} deltas" for regime in regimes), "paper: ViT-B/32, 8 tasks"), rows),
        "",
        f"The paper: {published.EMR_AVERAGES.citation}; ablation: {published.EMR_ABLATION.place}.",
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
