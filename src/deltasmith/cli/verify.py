"""`deltasmith verify DIR`."""

from __future__ import annotations

from dataclasses import asdict

import click

from deltasmith.cli.options import human, json_option, print_json, quiet_option


@click.command("verify")
@click.argument("folder", type=click.Path())
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
)
@json_option
@quiet_option
def command(folder: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Check a model folder: its structure, its hashes against the manifest, and that all values are finite."""
    from deltasmith import api

    report = api.verify(folder, threads=threads)
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    elif not quiet:
        checked = "structure, hashes and values" if report.hashed else "structure and values (no hashes)"
        files = f"{report.shards} file{'s' if report.shards != 1 else ''}"
        click.echo(
            f"{report.folder}: {report.tensors} tensors, {human(report.nbytes)} in {files}; {checked} are right"
        )
        for note in report.notes:
            click.echo(f"note: {note}")
