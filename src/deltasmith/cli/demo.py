"""`deltasmith demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltasmith.cli.options import console, human, json_option, print_json


@click.command("demo")
@click.option(
    "--regime",
    type=click.Choice(["small", "large"]),
    default="small",
    show_default=True,
    help="Size of the experts' deltas; the large ones are six to nine times larger.",
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the merged models in this folder.")
@json_option
def command(regime: str, keep: Path | None, as_json: bool) -> None:
    """Run the main job end to end, offline: plan, merge, verify and evaluate a bundled family of tiny models.

    One base and three experts (word problems, Python functions, instructions) of 0.5 M parameters each.
    """
    import tempfile

    from deltasmith.lab.demonstration import demonstrate

    with tempfile.TemporaryDirectory(prefix="deltasmith-demo-") as scratch:
        folder = keep or Path(scratch)
        rows = []
        if not as_json:
            click.echo(f"three experts with {regime} deltas; the first run compiles kernels …", err=True)
        for row in demonstrate(regime, folder):
            rows.append(row)
            if not as_json:
                click.echo(f"  {row.name}: {row.note}", err=True)
    if as_json:
        print_json({"regime": regime, "rows": [row.as_json() for row in rows]})
    else:
        _print(rows, keep)


def _print(rows: list[Any], keep: Path | None) -> None:
    from rich.table import Table

    tasks = list(rows[0].accuracy)
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for name in (*tasks, "mean", "worst", "bytes", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        percents = [f"{100 * row.accuracy[task]:.1f}" for task in tasks]
        summary = (f"{100 * row.mean:.1f}", f"{100 * row.worst:.1f}", human(row.nbytes))
        table.add_row(row.name, *percents, *summary, f"{row.seconds:.2f}" if row.seconds else "")
    console().print(table)
    click.echo(
        "per cent of 200 held-out items a task answered exactly right (± up to 7 at 95 %); seconds: plan and merge"
    )
    click.echo(
        "emr keeps one mask per task and is told the task; the other merges are one model for all tasks"
    )
    click.echo(
        f"merged models: {keep}"
        if keep
        else "`--keep FOLDER` keeps the merged models; `--regime large` is the harder case"
    )
