"""What `deltasmith loss` prints: the answer first, then where it comes from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from deltasmith.cli.options import console
from deltasmith.errors import printable

if TYPE_CHECKING:
    from deltasmith.analysis.line_search import LineSearch
    from deltasmith.analysis.lines import Followed
    from deltasmith.analysis.report import DataUsed, Estimate, LossReport
    from deltasmith.analysis.standing import Standing
    from deltasmith.analysis.sweep_records import Sweep

__all__ = ["show"]

_SHOWN = 8
_MEANING = {
    "competitive": "competitive (the loss stays)",
    "decreased": "decreased (the loss rises)",
    "improved": "improved (the loss falls)",
    "undecided": "undecided (the interval crosses the margin)",
}


def show(found: LossReport | Followed | Sweep | Standing) -> None:
    """Print what an analysis has found."""
    from deltasmith.analysis.lines import Followed
    from deltasmith.analysis.report import LossReport
    from deltasmith.analysis.standing import Standing

    if isinstance(found, LossReport):
        _report(found)
    elif isinstance(found, Standing):
        _standing(found)
    elif isinstance(found, Followed):
        _line(found)
    else:
        _sweep(found)
    for note in found.notes:
        click.echo(f"note: {printable(note, 1000)}")


def _report(report: LossReport) -> None:
    unit = f"nats per {report.data.unit}"
    measured, start = report.measured, printable(report.start, 80)
    said = _MEANING[report.verdict] if not math.isnan(measured.low) else "undecided (no interval)"
    click.echo(f"{said}: {_change(measured)} {unit} (margin {report.margin:.3g}: {report.margin_reason})")
    base = "" if report.base_loss is None else f"; the base has {report.base_loss:.4f}"
    losses = (
        f"{start} {report.start_loss.value:.4f} → {printable(report.end, 80)} {report.end_loss.value:.4f}"
    )
    click.echo(f"{losses}{base}, on {_used(report.data)}")
    click.echo()
    table = _table("rule", "predicted", "95 % interval", "predicted − measured", "of measured")
    for p in report.predictions:
        share = f"{p.error / measured.value:+.0%}" if abs(measured.value) > report.margin else "—"
        rule = f"{p.grid.rule}, {_count(p.grid.steps, 'step')}"
        table.add_row(rule, f"{p.change.value:+.4f}", _interval(p.change), f"{p.error:+.4f}", share)
    table.add_row("measured", f"{measured.value:+.4f}", _interval(measured), "", "")
    console().print(table)
    _contributions(report)
    _expansion(report)
    _second_order(report)


def _standing(found: Standing) -> None:
    loss = found.loss
    interval = "" if math.isnan(loss.low) else f" [{loss.low:.4f}, {loss.high:.4f}]"
    click.echo(
        f"nothing moves: the loss of {printable(found.model, 80)} is {loss.value:.4f}{interval} "
        f"nats per {found.data.unit}, on {_used(found.data)}"
    )


def _contributions(report: LossReport) -> None:
    """Show the layers and projections that the best prediction comes from."""
    from rich.markup import escape

    best = report.prediction()
    for group in ("layer", "projection"):
        sums = report.by(group, best.grid)
        total = sum(map(abs, sums.values())) or 1.0
        order = sorted(sums, key=lambda name: -abs(sums[name]))
        click.echo()
        table = _table(f"{group} (by the {best.grid.rule} rule)", "adds", "share of Σ|adds|")
        for name in order[:_SHOWN]:
            value = sums[name]
            table.add_row(escape(printable(name, 120)), f"{value:+.4f}", f"{abs(value) / total:.1%}")
        if rest := order[_SHOWN:]:
            value = sum(sums[name] for name in rest)
            share = sum(abs(sums[name]) for name in rest) / total
            table.add_row(f"{len(rest)} more", f"{value:+.4f}", f"{share:.1%}")
        console().print(table)


def _expansion(report: LossReport) -> None:
    found = report.expansion
    if found is None:
        return
    slope, bend = (sum(part.values()) for part in (found.first, found.second))
    interval = "" if found.interval is None else " [{:+.4f}, {:+.4f}]".format(*found.interval)
    click.echo()
    click.echo(
        f"from the start alone: slope {slope:+.4f}, curvature {bend:+.4f}, together {found.total:+.4f}{interval}; "
        f"measured {report.measured.value:+.4f}"
    )


def _second_order(report: LossReport) -> None:
    second = report.second_order
    if second is None:
        return
    noise = (
        ""
        if second.standard_error is None
        else f" ± {second.standard_error:.2g} (standard error of {second.probes} probes)"
    )
    data = (
        "" if second.interval is None else f", [{second.interval[0]:.4f}, {second.interval[1]:.4f}] over data"
    )
    mean, around, in_all = printable(second.at, 120), "", ""
    if second.at != report.start:
        around = f", around {mean}, which changes the loss by {second.shift:+.4f}"
        in_all = f", in all {second.shift + second.total:+.4f}"
    click.echo()
    click.echo(
        f"second order ({second.kind}{around}): the random edit costs {second.total:+.4f}{noise} on average over its "
        f"masks{data}{in_all}; this draw {report.measured.value:+.4f}"
    )


def _line(found: Followed) -> None:
    search = found.search
    low, high = search.interval
    from_what = "95 % interval" if search.interval_from == "resampling" else "bracket"
    alpha = f"α = {search.alpha:+.3f} ({from_what} [{low:+.3f}, {high:+.3f}])"
    click.echo(
        _stay(search, alpha) if search.advises == "stay" else f"{search.advises}: {_where(search, alpha)}"
    )
    interval = (
        "" if search.measured_interval is None else " [{:+.4f}, {:+.4f}]".format(*search.measured_interval)
    )
    ends = f"the weights are {printable(found.start, 80)} at α = −1 and {printable(found.end, 80)} at α = 0"
    click.echo(
        f"there the loss changes by {search.measured:+.4f}{interval} nats per {found.data.unit} on the half held out"
    )
    click.echo(f"{ends}; {_used(found.data)}")
    click.echo()
    table = _table("α", "slope", "loss searched on", "loss held out")
    for e in sorted(search.evaluations, key=lambda e: e.alpha):
        table.add_row(f"{e.alpha:+.3f}", f"{e.slope:+.4f}", f"{e.search_loss:.4f}", f"{e.held_out_loss:.4f}")
    console().print(table)
    if search.advises != "stay":
        _use(found)


def _where(search: LineSearch, alpha: str) -> str:
    """Say what is at α, on the data searched on."""
    what = "still falls at the end of the range" if search.outcome == "end" else "is lowest"
    return f"{alpha}, where the loss {what}"


def _stay(search: LineSearch, alpha: str) -> str:
    """Say why there is nowhere to go."""
    if search.alpha == 0:
        found = "the loss is lowest" if search.outcome == "minimum" else "no visited point has a lower loss"
        return f"stay: {alpha}, where {found}"
    if search.measured_interval is None:
        why = "one chunk was held out, which has no interval"
    else:
        why = "on the half held out the interval of the change is not below 0"
    return f"stay: {_where(search, alpha)} on the half searched on, but it is not shown to help: {why}"


def _use(found: Followed) -> None:
    """Say how the model at α is made."""
    click.echo()
    if found.recipe is None:
        click.echo(
            f"to use it: write {printable(found.end, 80)} with `deltasmith merge`, and extrapolate that from "
            f"{printable(found.start, 80)} with the preset `expo`, alpha: {found.search.alpha:.4f}"
        )
        return
    import yaml

    click.echo("to use it, as a recipe:")
    click.echo(yaml.safe_dump(dict(found.recipe), sort_keys=False, allow_unicode=True).rstrip())
    click.echo()


def _sweep(sweep: Sweep) -> None:
    from rich.markup import escape

    names = [axis.name for axis in sweep.axes]
    counts = {word: sum(p.verdict == word for p in sweep.points) for word in _MEANING}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    margin = f"margin {sweep.margin:.3g}: {sweep.margin_reason}"
    click.echo(f"{_count(len(sweep.points), 'point')}: {told} (nats per {sweep.data.unit}; {margin})")
    start = f"{printable(sweep.start, 80)} {sweep.start_loss.value:.4f}"
    click.echo(f"start of every path: {start}, on {_used(sweep.data)}")
    click.echo()
    rules = [grid.rule for grid in sweep.grids]
    expected = any(point.expected is not None for point in sweep.points)
    last = ["on average"] if expected else []
    table = _table(*map(escape, names), "measured", "95 % interval", *rules, *last, "class")
    for point in sweep.points:
        values = [escape(printable(_shown(point.values[name]), 40)) for name in names]
        figures = [f"{point.measured.value:+.4f}", _interval(point.measured)]
        figures += [f"{p.change.value:+.4f}" for p in point.predictions]
        average = ["—" if point.expected is None else f"{point.expected:+.4f}"] if expected else []
        table.add_row(*values, *figures, *average, point.verdict)
    console().print(table)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(*names: str) -> Any:
    """Return a table whose first column is words and whose others are figures."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(names):
        table.add_column(name, justify="left" if at == 0 else "right", overflow="fold")
    return table


def _interval(estimate: Estimate) -> str:
    return "—" if math.isnan(estimate.low) else f"[{estimate.low:+.4f}, {estimate.high:+.4f}]"


def _change(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f}" + ("" if math.isnan(estimate.low) else f" {_interval(estimate)}")


def _used(data: DataUsed) -> str:
    counts = [_count(data.examples, "example")]
    counts += [_count(data.tokens, "token")] if data.unit == "token" else []
    counts.append(_count(data.chunks, "chunk"))
    return f"{printable(data.file, 80)} ({', '.join(counts)})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")
