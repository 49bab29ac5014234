"""`deltasmith explain NAME`."""

from __future__ import annotations

import click

from deltasmith.cli.options import json_option, print_json


@click.command("explain")
@click.argument("name")
@json_option
def command(name: str, as_json: bool) -> None:
    """Explain a preset, an edit or a merge: formula, fields and ranges, paper, dialects, when not to use it."""
    from deltasmith.recipe.explain import explain

    explanation = explain(name)
    if as_json:
        print_json(explanation.as_json())
    else:
        click.echo(explanation.render())
