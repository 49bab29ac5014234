"""`deltasmith unpack PACKED OUT`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import Size, human, json_option, print_json, quiet_option


@click.command("unpack")
@click.argument("packed")
@click.argument("out")
@click.option(
    "--base", metavar="MODEL", help="The base; default: a folder of its name beside PACKED, or the hub."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
)
@click.option(
    "--memory", type=Size(), default="512M", show_default=True, help="Memory budget beyond the page cache."
)
@click.option(
    "--shard-size", type=Size(), default="5G", show_default=True, help="Largest size of a weight file."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT, at the very end, if it is not empty.")
@json_option
@quiet_option
def command(packed: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the model that PACKED (or PACKED#LABEL) stands for to OUT.

    Nothing appears under OUT before everything is right; an interrupted run resumes when repeated.
    """
    from deltasmith.cli.display import interruptible, progress
    from deltasmith.packing.unpacking import unpack

    with progress(quiet or as_json) as bar, interruptible() as stop:
        result = unpack(packed, out, progress=bar, stop=stop, **options)
    if as_json:
        print_json(result.as_json())
    elif not quiet:
        for warning in result.warnings:
            click.echo(f"warning: {warning}", err=True)
        click.echo(
            f"{result.out}: {result.tensors} tensors, {human(result.bytes_written)} written in {result.seconds:.1f} s"
        )
