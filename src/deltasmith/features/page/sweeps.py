"""The sweep tab: what becomes of features along a merge's coefficient, beside what the merge can do there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deltasmith.features.outcome import Rate
from deltasmith.features.page.charts import Line, Scale, chart, lines, stacked
from deltasmith.features.page.escaping import text
from deltasmith.features.page.markup import NONE, number, percent, share, table
from deltasmith.features.study import Score
from deltasmith.features.sweep_records import Kept, Sweep, SweepPoint

__all__ = ["sweeps"]

_FATES = ("persisted", "drifted", "split", "fused", "disappeared")


def sweeps(found: Sequence[Sweep]) -> str:
    """Show every sweep: charts side by side, and all numbers in a table."""
    return "<h2>Along the merge</h2>" + "".join(_sweep(one) for one in found)


def _sweep(one: Sweep) -> str:
    best = _best(one)
    notes = "".join(f"<li>{text(note, 600)}</li>" for note in one.notes)
    listed = f'<aside class="notes"><h3>Notes</h3><ul>{notes}</ul></aside>' if notes else ""
    told = "".join(f"<p>{sentence}</p>" for sentence in _told(one))
    return (
        f"<h3>{text(one.recipe, 80)}: {text(one.axis, 80)} from {text(_word(one.values[0]))} to "
        f"{text(_word(one.values[-1]))}</h3>{told}"
        f'<div class="charts">{_fates(one, best)}{_persisting(one, best)}{_scores(one, best, "accuracy")}'
        f"{_scores(one, best, 'loss')}{_origins(one, best)}{_recovered(one, best)}</div>{_table(one)}{listed}"
    )


def _told(one: Sweep) -> Iterator[str]:
    yield (
        f"One dictionary, that of {text(one.root)}, reads every merge; features are matched by their activations all "
        "the same. Dashed lines: the values that a measure prefers."
    )
    if one.best_mean is not None:
        best = text(_word(one.best_mean.value))
        yield f"The best mean accuracy, {percent(one.best_mean.score)}, is at <b>{best}</b>."
    if one.best_smallest is not None:
        yield (
            f"The smallest share of an expert's gain that is kept is largest, {percent(one.best_smallest.score)}, at "
            f"<b>{text(_word(one.best_smallest.value))}</b>."
        )


def _best(one: Sweep) -> list[tuple[int, str]]:
    named = ((one.best_mean, "best mean accuracy"), (one.best_smallest, "largest smallest gain kept"))
    return [(choice.at, f"{title}: {_word(choice.value)}") for choice, title in named if choice is not None]


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _fates(one: Sweep, best: Sequence[tuple[int, str]]) -> str:
    scale = Scale.of(one.values, 0, 1, percent=True)
    series = [
        Line(fate, f"s-{fate}", [_of(p.kept.get(one.root), fate) for p in one.points]) for fate in _FATES
    ]
    caption = f"What becomes of {one.root}’s features in the merge, per cent"
    return chart(caption, one.axis, scale, stacked(series, scale), {s.name: s.kind for s in series}, best)


def _persisting(one: Sweep, best: Sequence[tuple[int, str]]) -> str:
    scale = Scale.of(one.values, 0, 1, percent=True)
    labels = [one.root, *(parent.label for parent in one.parents)]
    series = []
    for at, label in enumerate(dict.fromkeys(labels)):
        rates = [_rate(p.kept.get(label), "persisted") for p in one.points]
        series.append(_line(label, f"c{at % 6}", rates))
    caption = "Features that persist in the merge, of each model, per cent"
    return chart(caption, one.axis, scale, lines(series, scale), {s.name: s.kind for s in series}, best)


def _line(name: str, kind: str, rates: Sequence[Rate | None]) -> Line:
    return Line(
        name,
        kind,
        [r.value if r else None for r in rates],
        [r.low if r else None for r in rates],
        [r.high if r else None for r in rates],
    )


def _scores(one: Sweep, best: Sequence[tuple[int, str]], what: str) -> str:
    def of(score: Score | None) -> float | None:
        return None if score is None else score.accuracy if what == "accuracy" else score.loss

    series = [
        Line(domain, f"c{at % 6}", [of(p.scores.get(domain)) for p in one.points])
        for at, domain in enumerate(one.domains)
    ]
    levels = []
    for at, domain in enumerate(one.domains):
        for label in dict.fromkeys(filter(None, (one.root, one.experts.get(domain)))):
            value = of(one.baselines[label].scores.get(domain)) if label in one.baselines else None
            if value is not None:
                kind = "root" if label == one.root else "expert"
                levels.append((value, f"c{at % 6} {kind}", f"{label} on {domain}: {value:.3f}"))
    values = [v for s in series for v in s.values if v is not None] + [level[0] for level in levels]
    room = (max(values) - min(values)) * 0.08 if values else 0.0
    low, high = (max(0.0, min(values) - room), max(values) + room) if values else (0.0, 1.0)
    scale = Scale.of(one.values, low, high, percent=what == "accuracy")
    unit = "per cent" if what == "accuracy" else "nats per token"
    caption = f"Next-token {what} by domain, {unit}; dotted: {one.root}, dash-dotted: the domain’s expert"
    drawn = lines(series, scale, levels)
    return chart(caption, one.axis, scale, drawn, {s.name: s.kind for s in series}, best)


def _origins(one: Sweep, best: Sequence[tuple[int, str]]) -> str:
    if all(point.origins is None for point in one.points):
        return ""
    parents = [parent.label for parent in one.parents]
    names = [("recovered", "o-recovered"), ("consensus", "o-consensus")]
    names += [(f"inherited:{label}", f"o-inherited-{min(at, 3)}") for at, label in enumerate(parents)]
    names += [("base", "o-base"), ("drifted", "o-drifted"), ("novel", "o-novel")]
    series = [
        Line(name.replace("inherited:", "from "), kind, [_origin(p, name) for p in one.points])
        for name, kind in names
    ]
    scale = Scale.of(one.values, 0, 1, percent=True)
    legend = {s.name: s.kind for s in series}
    return chart(
        "Where the merge’s features come from, per cent",
        one.axis,
        scale,
        stacked(series, scale),
        legend,
        best,
    )


def _origin(point: SweepPoint, name: str) -> float | None:
    rate = point.origins.rates.get(name) if point.origins else None
    return rate.value if rate else (0.0 if point.origins else None)


def _recovered(one: Sweep, best: Sequence[tuple[int, str]]) -> str:
    shown = [domain for domain in one.domains if any(p.recovered.get(domain) is not None for p in one.points)]
    if not shown:
        return ""
    series = [
        Line(d, f"c{one.domains.index(d) % 6}", [p.recovered.get(d) for p in one.points]) for d in shown
    ]
    values = [v for s in series for v in s.values if v is not None]
    scale = Scale.of(one.values, min(0.0, *values), max(1.0, *values), percent=True)
    caption = "Share of the expert’s gain in accuracy that the merge keeps, per cent"
    return chart(caption, one.axis, scale, lines(series, scale), {s.name: s.kind for s in series}, best)


def _table(one: Sweep) -> str:
    labels = list(dict.fromkeys([one.root, *(parent.label for parent in one.parents)]))
    headers = [one.axis]
    headers += [f"{fate}, {one.root}" for fate in _FATES] + [f"persisted, {label}" for label in labels[1:]]
    headers += [f"{domain}: {what}" for domain in one.domains for what in ("accuracy", "loss")]
    headers += ["unexplained variance"]
    rows = [_row(one, point, labels) for point in one.points]
    inner = table("Every point of the sweep", headers, rows)
    return f'<details class="plain"><summary>All numbers as a table</summary>{inner}</details>'


def _row(one: Sweep, point: SweepPoint, labels: Sequence[str]) -> list[str]:
    name = text(_word(point.value)) + (f"<small>{text(point.refused)}</small>" if point.refused else "")
    row = [name, *(share(_rate(point.kept.get(one.root), fate)) for fate in _FATES)]
    row += [share(_rate(point.kept.get(label), "persisted")) for label in labels[1:]]
    shown: tuple[Callable[[Score], str], ...] = (lambda s: percent(s.accuracy), lambda s: number(s.loss))
    for domain in one.domains:
        score = point.scores.get(domain)
        row += [how(score) if score else NONE for how in shown]
    return [*row, number(point.fvu)]


def _rate(kept: Kept | None, fate: str) -> Rate | None:
    return kept.rates.get(fate) if kept else None


def _of(kept: Kept | None, fate: str) -> float | None:
    rate = _rate(kept, fate)
    return rate.value if rate else (0.0 if kept else None)
