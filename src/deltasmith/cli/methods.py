"""`deltasmith methods`."""

from __future__ import annotations

import click

from deltasmith.cli.options import json_option, print_json


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List presets, edits and merges: what each does in a line."""
    from deltasmith.recipe.explain import methods

    rows = methods()
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "what it does", "paper"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.name, row.kind, row.summary, row.paper)
    Console().print(table)
