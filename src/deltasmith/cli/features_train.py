"""`deltasmith features train LABEL=MODEL... --site SITE --corpus NAME=PATH --out STUDY`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from deltasmith.cli.features_options import dictionary_options, input_options, machine_options
from deltasmith.cli.options import print_json

if TYPE_CHECKING:
    from deltasmith.features.requests import Listener
    from deltasmith.features.study import Study

_EVERY = 15.0
"""Seconds between two lines, where there is no terminal."""
_EPILOG = """\b
A file of models, lineage.yaml say, whose paths count from its folder:
  base:    {model: ./base}
  lua:     {model: ./lua, from: base}
  stories: {model: ./stories, from: base}
  merged:  {model: slerp.yaml, from: [lua, stories]}
`from` may be left out where a manifest.json, a recipe or a packed delta tells
it; `base: LABEL` names a merge's base.

deltasmith features train lineage.yaml --site model.layers.0.mlp.down_proj:in --corpus lua=./lua-code --out study
"""


@click.command("train", epilog=_EPILOG)
@click.argument("models", nargs=-1, required=True, metavar="LABEL=MODEL...")
@input_options
@dictionary_options
@machine_options
def command(models: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Train sparse autoencoders on the activations of every model of a graph, and write a study.

    Models are folders, hub ids, packed deltas or recipes, or one YAML file of them. Who descends from whom is read from
    what they tell of themselves (manifest.json, the recipe), and from --parent. All models read the same text, which
    must be numbered alike. What `features match` and `features report` need is written to STUDY, so that neither
    needs the models again. Interrupted, the same command goes on where it was. Needs the extra [features].
    """
    from deltasmith.cli.display import interruptible
    from deltasmith.features.training import train

    with _listener(quiet or as_json) as say, interruptible("step") as stop:
        study = train(models, **options, say=say, stop=stop)
    if as_json:
        print_json({"out": str(options["out"]), **study.document})
    elif not quiet:
        _show(study, str(options["out"]))


def _show(study: Study, out: str) -> None:
    """Print one row a member, what should be known, and what to do next."""
    from rich.table import Table
    from rich.text import Text

    from deltasmith.cli.options import console
    from deltasmith.errors import printable

    table = Table("dictionary", "begins as", box=None, header_style="bold")
    for name in ("FVU", "L0", "dead", "loss", "recovered"):
        table.add_column(name, justify="right")
    for member in study.members.values():
        found = member.quality
        recovered = found.loss_recovered
        cells = [
            member.name,
            member.start or "fresh",
            f"{found.fvu:.3f}",
            f"{found.l0:.1f}",
            f"{found.dead:.1%}",
        ]
        cells += [f"{found.loss:.3f}", "-" if recovered is None else f"{recovered:.1%}"]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console().print(table)
    click.echo("FVU: variance left unexplained; recovered: of the loss that zeros in its place would cost")
    for note in study.document["notes"]:
        click.echo(f"note: {printable(note, 1000)}")
    click.echo(f"next: deltasmith features match {printable(out)}")


@contextmanager
def _listener(silent: bool) -> Iterator[Listener]:
    """Yield what shows how far the work has come, and how it goes: a bar on a terminal, lines elsewhere."""
    from deltasmith.features.requests import silent as hears_nothing

    if silent:
        yield hears_nothing
    elif sys.stderr.isatty():
        with _bar() as say:
            yield say
    else:
        yield _lines()


def _lines() -> Listener:
    state: dict[str, Any] = {"what": "", "at": 0.0}

    def say(what: str, done: int, of: int, detail: str = "") -> None:
        now = time.monotonic()
        if what == state["what"] and now - state["at"] < _EVERY and done < of:
            return
        state.update(what=what, at=now)
        click.echo(": ".join(filter(None, (what, f"{done} / {of}" if of else "", detail))), err=True)

    return say


@contextmanager
def _bar() -> Iterator[Listener]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task, phase = bar.add_task("starting", total=None), [""]

        def say(what: str, done: int, of: int, detail: str = "") -> None:
            if what != phase[0]:
                phase[0] = what
                bar.reset(task, total=of or None)
            bar.update(task, completed=done, description=escape(f"{what}  {detail}"))

        yield say
