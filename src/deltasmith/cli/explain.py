"""`deltasmith explain NAME`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from deltasmith.cli.options import json_option, print_json

if TYPE_CHECKING:
    from deltasmith.recipe.catalogue import Dialect


@click.command("explain")
@click.argument("name")
@click.option(
    "--dialect",
    type=click.Choice(["paper", "authors", "mergekit"]),
    default="paper",
    show_default=True,
    help="Whose formula to show.",
)
@json_option
def command(name: str, dialect: Dialect, as_json: bool) -> None:
    """Explain a preset, an edit or a merge: formula, fields and ranges, paper, dialects, when not to use it."""
    from deltasmith.recipe.explain import explain, render

    explanation = explain(name, dialect)
    if as_json:
        print_json(asdict(explanation))
    else:
        click.echo(render(explanation), nl=False)
