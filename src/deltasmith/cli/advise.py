"""`deltasmith advise BASE MODEL...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltasmith.cli.options import Size, console, json_option, print_json, quiet_option


@click.command("advise")
@click.argument("base")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--scores",
    multiple=True,
    metavar="[LABEL=]EXPERT,PRUNED",
    help="Two results of `evaluate`: a model's, and that of DARE at rate 0.9 on it; repeatable, one for each model.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Text to measure the candidates' loss on; needs the extra [analysis].",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the recommended recipe there.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
)
@click.option(
    "--memory", type=Size(), default="512M", show_default=True, help="Memory budget beyond the page cache."
)
@json_option
@quiet_option
def command(base: str, models: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Say which method and settings suit MODELS, fine-tuned from BASE, and on what evidence.

    One model: how to remove nine tenths of its delta. Several: how to merge them. Where the evidence does not separate
    the candidates, ABSTAINS, and says what would.
    """
    from deltasmith.advice.run import advise
    from deltasmith.cli.display import interruptible

    with interruptible() as stop:
        advice = advise(base, models, stop=stop, **options)
    if as_json:
        print_json(advice.as_json())
    elif not quiet:
        _print(advice)
        if options["out"] is not None:
            written = "nothing is written" if advice.recommended is None else f"written to {options['out']}"
            click.echo(f"\n{written}")


def _print(advice: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deltasmith.errors import printable

    table = Table(box=None, pad_edge=False)
    for name in ("rule", "about", "found", "bound", "says"):
        table.add_column(name, overflow="fold")
    for line in advice.decision.evidence:
        mark = {"excludes": " ✗", "narrows": " →", "keeps": " ○", "warns": " !", "stops": " ■"}.get(
            line.effect, ""
        )
        methods = f" [{', '.join(line.methods)}]" if line.effect == "excludes" else ""
        cells = (line.rule + mark, line.about, line.number, line.bound, line.says + methods)
        table.add_row(*(escape(printable(cell, 2000)) for cell in cells))
    console().print(table)
    click.echo("✗ excludes, ○ not shown to be worse, → narrows to, ! warns, ■ stops\n\nsources")
    for rule, source in {line.rule: line.source for line in advice.decision.evidence}.items():
        click.echo(f"  {rule}: {printable(source, 2000)}")
    _print_risks(advice)
    _print_verdict(advice)


def _print_risks(advice: Any) -> None:
    from deltasmith.errors import printable

    if advice.risks:
        click.echo("\nrisky tensors")
    for risk in advice.risks:
        number = f"{risk.value:.2f}" if risk.what == "relative change" else f"{risk.value:.1%}"
        click.echo(f"  {printable(risk.tensor)} of {printable(risk.label)}: {risk.what} {number}")


def _print_verdict(advice: Any) -> None:
    from deltasmith.errors import printable

    click.echo("")
    if advice.recommended is not None:
        click.echo(f"RECOMMENDS {advice.recommended.title}: {printable(advice.decision.why, 2000)}")
        click.echo(f"starting values: {printable(advice.recommended.settings.source, 2000)}")
    elif advice.decision.stopped:
        click.echo(f"RECOMMENDS NOTHING: {printable(advice.decision.why, 2000)}")
    else:
        click.echo(f"ABSTAINS: {printable(advice.decision.why, 2000)}")
    for rule in advice.decision.overruled:
        click.echo(f"set aside, because it would leave nothing: {rule}")
    if advice.text is not None:
        click.echo(f"\n{advice.text.rstrip()}")
    if advice.alternatives:
        click.echo("\nalternatives" if advice.recommended is not None else "\ncandidates")
    for option in advice.alternatives:
        fields = ", ".join(f"{key} {value}" for key, value in option.settings.fields.items())
        values = f"scale {option.settings.scale:g}" + (f", {fields}" if fields else "")
        click.echo(f"  {option.name}: {option.title}; {values}")
    click.echo("\nnext")
    for line in advice.commands:
        click.echo(f"  {printable(line, 2000)}")
