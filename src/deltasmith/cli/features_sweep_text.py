"""What `deltasmith features sweep` prints: what the models can do along the axis, then what becomes of features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from deltasmith.cli.options import console
from deltasmith.errors import printable

if TYPE_CHECKING:
    from deltasmith.features.outcome import Rate
    from deltasmith.features.sweep_records import Choice, Kept, Sweep, SweepPoint

__all__ = ["show"]

_ORIGINS = ("recovered", "consensus", "inherited", "base", "drifted", "novel")


def show(found: Sweep) -> None:
    """Print a sweep."""
    parents = ", ".join(printable(model.label, 80) for model in found.parents)
    click.echo(
        f"{printable(found.recipe, 80)}, {printable(found.axis, 80)} at {len(found.points)} values; parents {parents}; "
        f"features at {printable(found.site, 120)} by the dictionary of {printable(found.root, 80)}"
    )
    _abilities(found)
    _features(found)
    click.echo()
    for line in _choices(found):
        click.echo(line)
    for note in found.notes:
        click.echo(f"note: {printable(note, 1000)}")


def _abilities(found: Sweep) -> None:
    """Show loss and accuracy by domain, and of what the better parent learnt, how much the merge has."""
    experts = {domain: expert for domain, expert in found.experts.items() if expert is not None}
    heads = [f"{_name(domain)}: {what}" for domain in found.domains for what in ("loss", "right")]
    table = _table(
        _name(found.axis), *heads, *(f"recovered of {_name(expert)}" for expert in experts.values())
    )
    for label, baseline in found.baselines.items():
        cells = _scores(baseline.scores, found.domains)
        table.add_row(_name(label), *cells, *("" for _ in experts))
    for point in found.points:
        if point.refused:
            table.add_row(_shown(point.value), *("—" for _ in (*heads, *experts)))
            continue
        recovered = [_percent(point.recovered[domain], 0) for domain in experts]
        table.add_row(_shown(point.value), *_scores(point.scores, found.domains), *recovered)
    click.echo()
    console().print(table)


def _scores(scores: Mapping[str, Any], domains: tuple[str, ...]) -> Iterator[str]:
    for domain in domains:
        score = scores.get(domain)
        yield "—" if score is None else f"{score.loss:.3f}"
        yield "—" if score is None else f"{score.accuracy:.1%}"


def _features(found: Sweep) -> None:
    """Show what persists of each model's features, and where the merge's come from."""
    labels = list(found.baselines)
    origins = any(point.origins is not None for point in found.points)
    heads = [f"{_name(label)}'s kept" for label in labels]
    table = _table(_name(found.axis), *heads, *(_ORIGINS if origins else ()), "FVU")
    for label, baseline in found.baselines.items():
        kept = "" if baseline.kept is None else _kept(baseline.kept)
        root = [kept, *("" for _ in labels[1:])]
        rest = ["" for _ in _ORIGINS] if origins else []
        table.add_row(_name(label), *root, *rest, _fvu(baseline.fvu))
    for point in found.points:
        table.add_row(_shown(point.value), *_figures(point, labels, origins))
    click.echo()
    console().print(table)
    strong = f"{found.thresholds['strong']:g}"
    click.echo(
        f"kept: share of the features tested with a mutual best partner of r ≥ {strong}, 95 % interval behind it"
    )
    if origins:
        click.echo(
            "origins: shares of the merge's features; recovered: the root's, gone in a parent, back again"
        )


def _figures(point: SweepPoint, labels: list[str], origins: bool) -> Iterator[str]:
    if point.refused:
        yield from ("—" for _ in (*labels, *(_ORIGINS if origins else ()), "FVU"))
        return
    for label in labels:
        yield _kept(point.kept[label])
    for name in _ORIGINS if origins else ():
        rate = None if point.origins is None else point.origins.rates.get(name)
        yield _percent(None if rate is None else rate.value)
    yield _fvu(point.fvu)


def _choices(found: Sweep) -> Iterator[str]:
    axis = printable(found.axis, 80)
    mean, worst = found.best_mean, found.best_smallest
    if mean is not None:
        over = [domain for domain, expert in found.experts.items() if expert is not None] or list(
            found.domains
        )
        domains = ", ".join(printable(domain, 60) for domain in over)
        yield f"best mean accuracy ({domains}): {axis} = {_value(mean)}, {mean.score:.1%}"
    if worst is not None:
        yield f"best of the worst domain: {axis} = {_value(worst)}, where at least {worst.score:.0%} is recovered"
    if mean is not None and worst is not None and mean.at != worst.at:
        left = found.points[mean.at].smallest_recovered
        yield f"the best mean leaves {_percent(left, 0)} recovered in one domain"
    for point in found.points:
        if point.refused:
            yield f"{axis} = {_shown(point.value)}: {printable(point.refused, 400)}"


def _value(choice: Choice) -> str:
    return _shown(choice.value)


def _kept(kept: Kept) -> str:
    rate: Rate | None = kept.rates.get("persisted")
    if rate is None:
        return "—"
    interval = (
        "" if rate.low is None or rate.high is None else f" [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    )
    return f"{rate.value:.1%}{interval}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "—" if value is None else f"{value:.{digits}%}"


def _fvu(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _name(str(value))


def _name(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text, 80))


def _table(*names: str) -> Any:
    """Return a table whose first column is words and whose others are figures."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(names):
        table.add_column(name, justify="left" if at == 0 else "right", overflow="fold")
    return table
