"""`deltasmith merge RECIPE OUT`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import (
    Size,
    human,
    json_option,
    override_option,
    print_json,
    quiet_option,
    resource_options,
)


@click.command("merge")
@click.argument("recipe")
@click.argument("out", type=click.Path(path_type=str))
@resource_options
@click.option(
    "--shard-size", type=Size(), default="5G", show_default=True, help="Largest size of a weight file."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT, at the very end, if it is not empty.")
@override_option
@json_option
@quiet_option
def command(recipe: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Carry out RECIPE and write the model to OUT.

    Nothing appears under OUT before everything is right; an interrupted run resumes when repeated.
    """
    from deltasmith import api
    from deltasmith.cli.display import interruptible, progress

    with progress(quiet or as_json) as bar, interruptible() as stop:
        options["overrides"] = options.pop("overrides")
        result = api.merge(recipe, out, progress=bar, stop=stop, **options)
    if as_json:
        print_json(result.as_json())
    elif not quiet:
        for warning in result.warnings:
            click.echo(f"warning: {warning}", err=True)
        rate = result.bytes_read / max(result.seconds, 1e-9)
        click.echo(
            f"{result.out}: {result.tensors} tensors, {human(result.bytes_written)} written,"
            f" {human(result.bytes_read)} of models in {result.seconds:.1f} s ({human(rate)}/s)"
        )
        click.echo(f"next: deltasmith verify {result.out}")
