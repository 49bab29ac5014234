"""`deltasmith features report STUDY --out report.html`."""

from __future__ import annotations

from pathlib import Path

import click

from deltasmith.cli.options import human, quiet_option

__all__ = ["command"]

_FILE = click.Path(path_type=Path)


@click.command("report")
@click.argument("study", type=_FILE)
@click.option(
    "--out", type=_FILE, default=Path("report.html"), show_default=True, metavar="FILE", help="The page."
)
@click.option(
    "--match",
    type=_FILE,
    metavar="DIR",
    help="What `features match` wrote; default: STUDY/match, and where that is missing, features are matched now.",
)
@click.option(
    "--sweep", type=_FILE, multiple=True, metavar="FILE", help="What `features sweep` wrote; repeatable."
)
@click.option(
    "--patterns",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Features found by what they fire on; repeatable, default: patterns.json beside the match, if it is there.",
)
@click.option(
    "--features", type=click.IntRange(1), default=200, show_default=True, metavar="N", help="Cards, at most."
)
@click.option(
    "--redact",
    is_flag=True,
    help="Show dots for the corpora's text, one for each character up to twelve: text may be licensed. The tokens that"
    " a feature raises and lowers come from the models' vocabulary, and stay.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier page.")
@quiet_option
def command(
    study: Path,
    out: Path,
    match: Path | None,
    sweep: tuple[Path, ...],
    patterns: tuple[Path, ...],
    features: int,
    redact: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write one HTML file that shows what became of the features of STUDY.

    It opens from the disk in any browser, loads nothing from anywhere, and can be sent to others as it is. It needs
    neither torch nor the models.
    """
    from deltasmith.features.page.writing import report

    written = report(
        study,
        out,
        match=match,
        sweep=sweep,
        patterns=patterns or None,
        features=features,
        redact=redact,
        overwrite=overwrite,
    )
    if not quiet:
        click.echo(f"{written}: {human(written.stat().st_size)}, opens in any browser")
