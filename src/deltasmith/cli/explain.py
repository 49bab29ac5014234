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
    """Explain a preset, an edit, a merge or a codec: formula, fields and ranges, paper, dialects, when not to use it.

    Where a codec shares its name with another method, `codec:NAME` means the codec.
    """
    from deltasmith.recipe.explain import explain, render
    from deltasmith.recipe.explain_codec import codec_beside, codec_of, explain_codec, render_codec

    if (codec := codec_of(name)) is not None:
        found = explain_codec(codec)
        if as_json:
            print_json(asdict(found))
        else:
            click.echo(render_codec(found), nl=False)
        return
    explanation = explain(name, dialect)
    if as_json:
        print_json(asdict(explanation))
    else:
        click.echo(render(explanation), nl=False)
        if beside := codec_beside(name):
            click.echo(f"\n{beside}")
