"""`deltasmith features match STUDY`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltasmith.cli.options import json_option, print_json, quiet_option

__all__ = ["command"]


@click.command("match")
@click.argument("study")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the result; default: match, in the study."
)
@click.option(
    "--strong",
    type=float,
    default=0.8,
    show_default=True,
    metavar="R",
    help="Correlation from which on two features are the same; 0.8 is the paper's.",
)
@click.option(
    "--weak",
    type=float,
    default=0.5,
    show_default=True,
    metavar="R",
    help="Correlation below which two features have nothing to do with each other.",
)
@click.option(
    "--min-fires",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Tokens that a feature must fire on to be told of.",
)
@click.option(
    "--resamples",
    type=click.IntRange(0, 100_000),
    default=300,
    show_default=True,
    help="Draws of the passages that intervals come from; 0 for none.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which passages are drawn.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
)
@click.option(
    "--find",
    "patterns",
    multiple=True,
    metavar="NAME=REGEX",
    help="Look for the features that fire where an expression matches the held-out text; once or more.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
@json_option
@quiet_option
def command(study: str, patterns: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Tell which features of STUDY persist along every edge from parent to child, and beside it, in the same model.

    Two features are the same if they fire on the same tokens: the correlation of their activations is at least
    --strong, and each is the other's best partner. Every rate stands beside its floor, what persists in a second
    dictionary of the same model, and beside what permuted tokens give; where an edge cannot be told from its floor, the
    answer is that there is no evidence that features changed. A feature that fires too rarely on the held-out text is
    unexercised, and never counts as gone. Writes features.json and rates.csv.
    """
    from deltasmith.cli.display import interruptible, told
    from deltasmith.cli.features_patterns_text import show_patterns
    from deltasmith.cli.features_text import show
    from deltasmith.errors import printable
    from deltasmith.features.following import match
    from deltasmith.features.outcome_files import summary_json
    from deltasmith.features.patterns import find_all, parse_patterns
    from deltasmith.features.study import Study

    opened = Study.open(study)
    parse_patterns(patterns)  # a wrong one is refused before anything is computed
    with told(quiet or as_json) as say, interruptible("comparison") as stop:
        outcome = match(opened, say=say, stop=stop, **options)
    place = options["out"] or opened.folder / "match"
    found = find_all(opened, patterns, outcome=outcome, out=place) if patterns else None
    if as_json:
        print_json(summary_json(outcome) | ({} if found is None else {"patterns": found.as_json()}))
    elif not quiet:
        show(outcome, opened)
        if found is not None:
            show_patterns(found)
        names = ["features.json", "rates.csv", *(["patterns.json"] if found is not None else [])]
        click.echo(f"{printable(str(place))}: {', '.join(names)}")
        click.echo(f"next: deltasmith features report {printable(str(opened.folder))} --out report.html")
