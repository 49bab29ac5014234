"""`deltasmith methods`."""

from __future__ import annotations

from dataclasses import asdict

import click

from deltasmith.cli.options import console, json_option, print_json


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List presets, edits, merges and codecs: what each does in a line."""
    from deltasmith.recipe.explain import methods
    from deltasmith.recipe.explain_codec import codec_rows

    rows = (*methods(), *codec_rows())
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "what it does", "dialects"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.name, row.kind, escape(row.summary), ", ".join(row.dialects))
    console().print(table)
