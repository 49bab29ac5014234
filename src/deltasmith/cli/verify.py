"""`deltasmith verify DIR`."""

from __future__ import annotations

import click

from deltasmith.cli.options import json_option, print_json, quiet_option


@click.command("verify")
@click.argument("folder", type=click.Path())
@click.option("--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available.")
@json_option
@quiet_option
def command(folder: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Check a model folder: its structure, its hashes against the manifest, and that all values are finite."""
    from deltasmith import api

    report = api.verify(folder, threads=threads)
    if as_json:
        print_json(report.as_json())
    elif not quiet:
        click.echo(str(report))
