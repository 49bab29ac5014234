"""`deltasmith diff BASE MODEL...`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import console, json_option, print_json


@click.command("diff")
@click.argument("base")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--by",
    type=click.Choice(["projection", "layer", "tensor", "model"]),
    default="projection",
    show_default=True,
    help="What one line of the table stands for (JSON holds all of them).",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
)
@json_option
def command(base: str, models: tuple[str, ...], by: str, threads: int | None, as_json: bool) -> None:
    """Measure what each of MODELS changed relative to BASE, and how far their changes agree."""
    from deltasmith import api
    from deltasmith.cli.display import interruptible

    with interruptible() as stop:
        report = api.diff(base, models, threads=threads, stop=stop)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report.by(by))


def _print(groups: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deltasmith.errors import printable

    changes, pairs = Table(box=None, pad_edge=False), Table(box=None, pad_edge=False)
    for name in ("tensors", "model", "mean |δ|", "max |δ|", "‖δ‖/‖base‖", "unmoved"):
        changes.add_column(name, justify="left" if name in ("tensors", "model") else "right", overflow="fold")
    for name in ("tensors", "models", "cosine", "sign conflict"):
        pairs.add_column(
            name, justify="right" if name in ("cosine", "sign conflict") else "left", overflow="fold"
        )
    for group in groups:
        title = escape(printable(group.name)) + (f" (×{group.tensors})" if group.tensors > 1 else "")
        for label, c in group.columns.items():
            figures = (
                f"{c.mean:.3g}",
                f"{c.largest:.3g}",
                f"{c.relative_norm:.3g}",
                f"{c.zero_fraction:.1%}",
            )
            changes.add_row(title, escape(label), *figures)
            title = ""
        for (a, b), p in group.pairs.items():
            pairs.add_row(
                escape(printable(group.name)),
                escape(f"{a}, {b}"),
                f"{p.cosine:+.3f}",
                f"{p.sign_conflict:.1%}",
            )
    screen = console()
    screen.print(changes)
    if pairs.row_count:
        screen.print(pairs)
