"""What `deltasmith features match` prints: whether the figures can be trusted first, then what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from deltasmith.cli.options import console
from deltasmith.errors import printable

if TYPE_CHECKING:
    from deltasmith.features.outcome import EdgeOutcome, MergeOutcome, Outcome, Rate
    from deltasmith.features.study import Study

__all__ = ["show"]

_HOW = {"again": "trained on", "seed": "afresh with another seed"}


def show(outcome: Outcome, study: Study) -> None:
    """Print an outcome: dictionaries, models, floors, edges, merges, the whole graph, notes."""
    _dictionaries(outcome, study)
    _models(study)
    _null(outcome)
    for edge in outcome.edges:
        _edge(edge)
    for merge in outcome.merges:
        _merge(merge)
    found, root = outcome.universal, printable(outcome.universal.members[0], 80)
    click.echo()
    click.echo(
        f"universal: {_share(found.share)} of {root}'s features persist along every edge "
        f"({len(found.features)} features in {', '.join(printable(m, 80) for m in found.members)})"
    )
    for note in outcome.notes:
        click.echo(f"note: {printable(note, 1000)}")


def _dictionaries(outcome: Outcome, study: Study) -> None:
    table = _table("dictionary", "FVU", "L0", "loss recovered", "features", "tested", "unexercised", "dead")
    for member in outcome.members:
        quality = study.members[member.label].quality
        recovered = "—" if quality.loss_recovered is None else f"{quality.loss_recovered:.1%}"
        counts = (member.latents, member.testable, member.unexercised, member.dead)
        table.add_row(
            _name(member.label),
            f"{quality.fvu:.3f}",
            f"{quality.l0:.1f}",
            recovered,
            *(f"{n:,}" for n in counts),
        )
    settings = outcome.settings
    click.echo(
        f"features at {printable(study.site, 120)}, mode {study.mode}; a feature is tested if it fires on "
        f"{settings['min_fires']} held-out tokens or more of {len(study.held_out.ids):,}"
    )
    click.echo()
    console().print(table)


def _models(study: Study) -> None:
    """Show what the models themselves can do, so that nobody follows features into a broken merge."""
    from deltasmith.features.recovery import recovered_share

    shown = [name for name in study.domains if any(name in found for found in study.scores.values())]
    if not shown:
        return
    table = _table(
        "model", *(f"{_name(name)}: {what}" for name in shown for what in ("loss", "right", "recovered"))
    )
    for node in study.graph.nodes:
        base = study.graph.common_base(node.label) if node.is_merge else None
        shares = recovered_share(study.scores, node.label, node.parents, base) if node.is_merge else {}
        cells: list[str] = []
        for name in shown:
            score, share = study.scores.get(node.label, {}).get(name), shares.get(name)
            cells += ["—", "—"] if score is None else [f"{score.loss:.3f}", f"{score.accuracy:.1%}"]
            cells.append("" if share is None else f"{share:.0%}")
        table.add_row(_name(node.label), *cells)
    click.echo()
    console().print(table)
    if study.graph.merges:
        click.echo("recovered: of the loss that the better parent gains over the base, what the merge has")


def _null(outcome: Outcome) -> None:
    """Say what r can be reached by chance; the floors stand beside the edges."""
    share, quantile = (max(getattr(e, name) for e in outcome.edges) for name in ("null", "null_quantile"))
    click.echo()
    click.echo(
        f"with the child's tokens permuted, at most {share:.2%} of features reach r = {outcome.settings['strong']:g} "
        f"on any edge (99.9th percentile of the best r: {quantile:.2f})"
    )


def _edge(edge: EdgeOutcome) -> None:
    base = ", its base" if edge.kind == "base" else ""
    click.echo()
    click.echo(f"{printable(edge.parent, 80)} → {printable(edge.child, 80)}{base}: {edge.verdict}")
    click.echo(f"  {_share(edge.rates['persisted'])} persisted of {edge.testable:,} features")
    for line in _floors(edge):
        click.echo(f"  {line}")
    beside = edge.floors[0].rates if edge.floors else {}
    rest = ", ".join(
        f"{name} {_percent(rate.value)}"
        + (f" (floor {_percent(beside[name].value)})" if name in beside else "")
        for name, rate in edge.rates.items()
        if name != "persisted"
    )
    click.echo(f"  {rest} of the child's")
    click.echo(f"  {'; '.join(_checks(edge))}")


def _floors(edge: EdgeOutcome) -> Iterator[str]:
    """Tell of the floor that decides, and of the others their share alone: they answer other questions."""
    for at, floor in enumerate(edge.floors):
        how = "by the same dictionary" if floor.member == floor.model else _HOW[floor.role]
        member = printable(floor.member, 80)
        if at:
            yield f"for comparison: {how} {_percent(floor.persisted.value)} ({member})"
            continue
        same = "the same model" if floor.model == edge.parent else printable(floor.model, 80)
        tested = (
            ""
            if floor.p_value is None
            else f", {floor.fewer} kept only there and {floor.more} only here (p = {floor.p_value:.2g})"
        )
        yield (
            f"deciding floor: {_share(floor.persisted)} in {same}, {how} ({member}); "
            f"adjusted {_ratio(floor.adjusted)}{tested}"
        )


def _checks(edge: EdgeOutcome) -> Iterator[str]:
    yield f"any match {edge.any_match.value:.1%}"
    if edge.hungarian is not None:
        yield f"by assignment {edge.hungarian:.1%}"
    yield f"weighted by firing {edge.firing_weighted.value:.1%}"
    yield f"at r ≥ {', '.join(f'{at}: {rate.value:.0%}' for at, rate in edge.curve.items())}"
    if edge.same_index is not None:
        yield f"same index {edge.same_index:.0%}"
    if edge.cosines.persisted_median is not None:
        yield f"decoder cosine {edge.cosines.persisted_median:.2f} in the median"
    if edge.weight_change is not None:
        yield f"weights changed by {edge.weight_change:.1%}"


def _merge(merge: MergeOutcome) -> None:
    """Tell where the features of a merge come from, and what it lost."""
    click.echo()
    base = "" if merge.base is None else f" over {printable(merge.base, 80)}"
    parents = " and ".join(printable(parent, 80) for parent in merge.parents)
    click.echo(f"{printable(merge.label, 80)}, merged from {parents}{base}:")
    table = _table("origin", "features", "share of those tested", "95 % interval")
    for name, rate in merge.rates.items():
        table.add_row(_name(name), f"{merge.counts[name]:,}", _percent(rate.value), _interval(rate))
    console().print(table)
    for label, count in merge.lost.items():
        click.echo(f"  lost: {count:,} of {printable(label, 80)}'s ({_share(merge.lost_rates[label])})")
    if merge.base is not None:
        where = f"of {printable(merge.base, 80)}'s are gone in a parent and in the merge"
        click.echo(f"  lost everywhere: {merge.lost_everywhere:,} {where}")


def _name(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text, 80))


def _percent(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.1%}"


def _interval(rate: Rate) -> str:
    return "" if rate.low is None or rate.high is None else f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _share(rate: Rate) -> str:
    return f"{_percent(rate.value)} {_interval(rate)}".rstrip()


def _ratio(rate: Rate) -> str:
    if math.isnan(rate.value):
        return "—"
    interval = "" if rate.low is None or rate.high is None else f" [{rate.low:.2f}, {rate.high:.2f}]"
    return f"{rate.value:.2f}{interval}"


def _table(*names: str) -> Any:
    """Return a table whose first column is words and whose others are figures."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(names):
        table.add_column(name, justify="left" if at == 0 else "right", overflow="fold")
    return table
