"""`deltasmith schema`."""

from __future__ import annotations

import click

from deltasmith.cli.options import print_json


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of recipes.

    Editors use it through a first line `# yaml-language-server: $schema=FILE` in the recipe.
    """
    from deltasmith.recipe.schema import json_schema

    print_json(json_schema())
