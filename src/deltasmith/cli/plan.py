"""`deltasmith plan RECIPE`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import (
    Size,
    console,
    human,
    json_option,
    override_option,
    print_json,
    quiet_option,
    resource_options,
)


@click.command("plan")
@click.argument("recipe")
@resource_options
@click.option(
    "--shard-size", type=Size(), default="5G", show_default=True, help="Largest size of a weight file."
)
@override_option
@json_option
@quiet_option
def command(recipe: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Say what RECIPE will do to every tensor, from headers alone, and refuse what cannot work."""
    from deltasmith import api

    planned = api.plan(recipe, **options)
    if as_json:
        print_json(planned.as_json())
    elif not quiet:
        _print(planned)


def _print(planned: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deltasmith.errors import printable
    from deltasmith.planning.report import kinds
    from deltasmith.recipe.model import operation_text

    table = Table(box=None, pad_edge=False)
    groups = list(kinds(planned.built.plan, operation_text))
    alike = len({kind.what for kind in groups}) == 1
    for name in ("tensors", "count", "shape", "type", *(() if alike else ("what",))):
        table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
    for kind in groups:
        shape = "×".join(map(str, kind.shape)) or "scalar"
        cells = (
            printable(kind.pattern),
            str(kind.count),
            shape,
            kind.dtype,
            *(() if alike else (kind.what,)),
        )
        table.add_row(*map(escape, cells))
    console().print(table)
    if alike:
        click.echo(f"every tensor: {groups[0].what}")
    for note in planned.built.plan.notes:
        click.echo(f"note: {printable(note, 2000)}")
    for warning in planned.warnings:
        click.echo(f"warning: {printable(warning, 2000)}")
    limits = planned.limits
    click.echo(
        f"{len(planned.built.plan.rows)} tensors; reads {human(planned.bytes_read)}, writes"
        f" {human(planned.bytes_written)} in {len(planned.layout.shards)} file(s);"
        f" memory up to {human(planned.memory)}, {limits.threads} thread(s)"
    )
