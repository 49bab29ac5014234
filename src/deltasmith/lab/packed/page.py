"""The page `docs/packed.md`: tables and plots of packed deltas, written between two marks of a page by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.plots import Curve
from deltasmith.lab.claims import Claim
from deltasmith.lab.packed.claims import judged_packed
from deltasmith.lab.packed.points import GROUPS, POINTS
from deltasmith.lab.page_text import brief, table
from deltasmith.lab.rows import Results, Row, grouped, load_results
from deltasmith.lab.summary import Figure, figure

__all__ = ["BUNDLED", "SEEDS", "write_packed_page"]

BUNDLED, SEEDS = "packed.json", "packed-seeds.json"
"""Result files: of the bundled family, and of several training seeds."""
_BEGIN, _END = "<!-- packed -->", "<!-- /packed -->"
_HEAD = "# Packed deltas in the lab\n\n"
_PLOTTED = {
    "residual": "BitDelta, 1–4 times",
    "blocks": "magnitude blocks",
    "low_rank": "low rank",
    "claq": "CLAQ of δ",
    "claq_weight": "CLAQ of W",
    "dare": "DARE, sparse",
    "magnitude": "largest, sparse",
    "budget": "--budget",
    "lossless": "lossless",
}
_TRAINED = {"bitdelta": "BitDelta, distilled", "bitdelta:scale=row": "same, by row"}
_LOWEST = 55.0
"""Per cent where the plots begin: below it nothing is worth its bytes."""
_MARKS = {"reproduced": "✓", "contradicted": "✗", "undecided": "·"}
_MERGES = {
    "base": "base",
    "experts": "the experts, each on its own task",
    "average": "average",
    "ta": "task arithmetic, tuned",
    "ties": "TIES, tuned",
    "elect": "EMR's unified vector alone",
    "emr": "EMR (told the task)",
    "emr_l2": "EMR, rescaler by least squares (told)",
    "emr_packed": "EMR as `pack` writes it, in 16 bits (told)",
    "bitdelta": "each expert in BitDelta (told)",
    "claq:bits=2": "each expert in CLAQ, 2 bits (told)",
    "linears": "experts' linears, all else the base's (told): SMILE's ceiling",
}
_CODECS = {
    "bitdelta": "BitDelta",
    "bitdelta:scale=row": "BitDelta, a scale per row",
    "residual_bits:passes=2": "residual bits, 2 passes",
}
_DATA = {"none": "as packed", "general": "general text", "task": "the task's own problems"}


def write_packed_page(folder: Path, page: Path) -> list[Path]:
    """Write the results in `folder` into `page`, between its marks, and the plots into `lab/` beside it.

    Text outside the marks stays; a page that does not exist begins with a title. Same results, same bytes. Raises
    DamagedInputError where `folder` holds no results, or the page one mark without the other.
    """
    found = {name: load_results(path) for name in (BUNDLED, SEEDS) if (path := folder / name).is_file()}
    if not found:
        raise DamagedInputError("it holds no results", where=str(folder), fix="run `deltasmith lab packed`")
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{_HEAD}{_BEGIN}\n{_END}\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise DamagedInputError(f"it has no {_BEGIN} … {_END}", where=str(page), fix="put the marks back")
    plots = page.parent / "lab"
    plots.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(_sections(found, plots)).strip()
    page.write_text(f"{before}{begin}\n\n{lines}\n\n{end}{after}", encoding="utf-8")
    return [page, *sorted(plots.glob("packed-*.svg"))]


def _sections(found: Mapping[str, Results], plots: Path) -> Iterator[str]:
    made = dict.fromkeys(f"{_families(r)}: {r.settings['made']}" for r in found.values())
    yield f"Made: {'; '.join(made)}."
    yield ""
    yield from _claims(found)
    yield from _curves(found, plots)
    yield from _merges(found)
    yield from _distilled(found)


def _families(results: Results) -> str:
    seeds = results.settings["train_seeds"]
    return "the bundled family" if len(seeds) == 1 else f"training seeds {', '.join(map(str, seeds))}"


def _claims(found: Mapping[str, Results]) -> Iterator[str]:
    asked = [(results, claim) for results in found.values() for claim in judged_packed(results)]
    columns = [(results, regime) for results in found.values() for regime in results.settings["regimes"]]
    yield "## What reproduced and what did not"
    yield ""
    yield (
        "Each question is whether a difference is above zero: figures are that difference in points, its 95 % interval,"
        " and p after Holm's correction over the questions to one column. ✓ reproduced, ✗ the other way, · undecided"
        " (the interval holds zero or p > 0.05). Of one family the intervals span items and draws, and say what holds"
        " of this family; of several training seeds they span these too, and say what would hold of another."
    )
    yield ""
    by_text: dict[tuple[str, str], dict[tuple[int, str], str]] = {}
    for results, claim in asked:
        by_text.setdefault((claim.source, claim.text), {})[id(results), claim.regime] = _measured(claim)
    rows = [(*key, *(cells[id(r), regime] for r, regime in columns)) for key, cells in by_text.items()]
    yield from table(
        ("source", "claim", *(f"{_families(r)}: {regime}" for r, regime in columns)), rows, left=2
    )
    yield ""


def _measured(claim: Claim) -> str:
    found = claim.measured
    p = f"p {min(claim.p_value, 1.0):.2g}"
    return f"{_MARKS[claim.verdict]} {found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}] {p}"


def _curves(found: Mapping[str, Results], plots: Path) -> Iterator[str]:
    main = found.get(BUNDLED) or found[SEEDS]
    regimes = main.settings["regimes"]
    yield "## Accuracy against bytes"
    yield ""
    yield (
        "Every expert's delta packed and unpacked (rounded to bfloat16), the model asked its own task: mean over the"
        " three experts, in per cent, with half the width of the 95 % interval. `size`: bytes of the arrays over those"
        " of the expert in 16 bits; header and document of a real container add 0.03 at this size, and nothing at that"
        " of a real model. Matrices of layers take the codec named; embeddings, head and norms (4 % of the values) are"
        " exact and lossless in every line. `error`: ‖δ − δ̂‖ / ‖δ‖ over the tensors that are not exact. Plots, sizes"
        f" and errors: {_families(main)}; plots leave out what is below {_LOWEST:g} per cent."
    )
    yield ""
    for regime in regimes:
        _draw(plots / f"packed-{regime}.svg", main, regime)
        yield f"![accuracy against size, {regime} deltas](lab/packed-{regime}.svg)"
        yield ""
    head = ["codec", "setting"]
    for regime in regimes:
        head += [f"{regime}: size", "error", "accuracy"]
    others = [results for results in found.values() if results is not main]
    head += [
        f"{_families(results)}: {regime}" for results in others for regime in results.settings["regimes"]
    ]
    rows = []
    for key in _keys(main):
        cells = [*_cells(main, *key, full=True)]
        for results in others:
            cells += _cells(results, *key, full=False)
        rows.append((_title(key[0]), key[1], *cells))
    yield from table(head, rows, left=2)
    yield ""


def _title(group: str) -> str:
    return {"base": "the base", "expert": "the expert"}.get(group) or GROUPS[group]


def _keys(results: Results) -> list[tuple[str, str]]:
    """List what was measured, in the order of the groups."""
    order = ["base", "expert", *GROUPS]
    names = [point.name for point in POINTS]
    rows = results.where(experiment="curves").rows
    found = dict.fromkeys((str(row.keys["group"]), str(row.keys["point"])) for row in rows)
    return sorted(found, key=lambda key: (order.index(key[0]), names.index(key[1]) if key[1] in names else 0))


def _cells(results: Results, group: str, name: str, *, full: bool) -> Iterator[str]:
    for regime in results.settings["regimes"]:
        rows = results.where(experiment="curves", regime=regime, group=group, point=name).rows
        if full:
            yield f"{_mean(rows, 'ratio'):.3f}"
            yield f"{_mean(rows, 'error'):.2f}"
        yield brief(figure(rows))


def _mean(rows: Iterable[Row], key: str) -> float:
    values = [float(str(row.keys[key])) for row in rows]
    return sum(values) / len(values)


def _draw(path: Path, results: Results, regime: str) -> None:
    from deltasmith.evaluate.plots import curves as draw

    series = []
    for group, label in _PLOTTED.items():
        kept = results.where(experiment="curves", regime=regime, group=group)
        points = grouped(kept.rows, lambda row: row.keys["point"])
        found = sorted(((_mean(rows, "ratio"), figure(rows)) for rows in points.values()), key=itemgetter(0))
        series.append(_series(label, found))
    for codec, label in _TRAINED.items():
        rows = results.where(experiment="distilled", regime=regime, codec=codec, data="general").rows
        series.append(_series(label, [(_mean(rows, "ratio"), figure(rows))]))
    draw(
        path,
        series,
        x_label="size, per cent of 16 bits, log scale",
        y_label="accuracy, per cent",
        title=f"{regime} deltas: mean of three experts, each on its own task",
        x_scale="log",
        y_from=_LOWEST,
    )


def _series(label: str, found: Sequence[tuple[float, Figure]]) -> Curve:
    figures = [one for _, one in found]
    means, lows, highs = ([getattr(f, key) for f in figures] for key in ("value", "low", "high"))
    return label, [100 * size for size, _ in found], means, lows, highs


def _merges(found: Mapping[str, Results]) -> Iterator[str]:
    yield "## Several experts at once"
    yield ""
    yield (
        "Mean over the three tasks. `size`: all that is kept beside the base, over three experts in 16 bits. Lines"
        " marked `told` are told the task, the others find out. Task arithmetic and TIES are tuned on validation items"
        " (24 recipes each); nothing else is. SMILE's linears choose experts by their gates, and embeddings, head and"
        " norms are the base's; Twin-Merging keeps a shared expert (λ = 0.3) and exclusive ones of the density named."
        " Its gates here are SMILE's, since the paper's trained router needs data."
    )
    yield ""
    columns = [(name, regime) for name, results in found.items() for regime in results.settings["regimes"]]
    methods = list(_MERGES)
    for results in found.values():
        rows = results.where(experiment="merges").rows
        methods += [
            m for row in rows if (m := str(row.keys["method"])).partition(":")[0] in ("smile", "twin")
        ]
    body = []
    for method in dict.fromkeys(methods):
        cells = [found[n].where(experiment="merges", regime=r, method=method).rows for n, r in columns]
        size = f"{_mean(cells[0], 'ratio'):.3f}"
        body.append((_MERGES.get(method, method), size, *(brief(figure(cell)) for cell in cells)))
    head = [f"{_families(found[name])}: {regime}" for name, regime in columns]
    yield from table(("method", "size", *head), body)
    yield ""


def _distilled(found: Mapping[str, Results]) -> Iterator[str]:
    yield "## Scale distillation"
    yield ""
    yield (
        "200 steps of Adam at 1e-4 in batches of 4, 800 documents, a tenth of them held out to choose the scales by"
        " (`deltasmith distill` with its defaults). `general text` is what the base was pre-trained on, and stands for"
        " the paper's C4; `the task's own problems` are training problems of the expert's task. `loss`: mean squared"
        " difference of the logits on documents held out, before → after. `scales ×`: by how much the mean scale grew."
    )
    yield ""
    columns = [(name, regime) for name, results in found.items() for regime in results.settings["regimes"]]
    first = next(iter(found.values()))
    body = []
    for codec, title in _CODECS.items():
        for data, said in _DATA.items():
            cells = [
                found[n].where(experiment="distilled", regime=r, codec=codec, data=data).rows
                for n, r in columns
            ]
            row = [title, said]
            for regime in first.settings["regimes"]:
                rows = first.where(experiment="distilled", regime=regime, codec=codec, data=data).rows
                row.append("" if data == "none" else _learnt(rows))
            body.append((*row, *(brief(figure(cell)) for cell in cells)))
    losses = [f"{regime}: loss, scales ×" for regime in first.settings["regimes"]]
    head = [f"{_families(found[name])}: {regime}" for name, regime in columns]
    yield from table(("codec", "trained on", *losses, *head), body, left=2)


def _learnt(rows: Sequence[Row]) -> str:
    before, after, factor = (_mean(rows, key) for key in ("loss_before", "loss_after", "factor"))
    return f"{before:.3g} → {after:.2g}, {factor:.2f}"
