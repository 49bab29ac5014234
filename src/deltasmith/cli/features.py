"""`deltasmith features`: train dictionaries, match features, report, sweep. Each subcommand is a file of its own."""

from __future__ import annotations

import importlib

import click

__all__ = ["command"]

_COMMANDS = {
    "train": "train sparse autoencoders on every model of a graph",
    "match": "match features from parents to children, with noise floors",
    "report": "write one HTML file that shows what became of the features",
    "sweep": "follow features along a parameter of a merge",
}


class _Lazy(click.Group):
    """A group whose commands live in modules `features_NAME`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"deltasmith.cli.features_{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group("features", cls=_Lazy)
def command() -> None:
    """Follow features through fine-tuning and merging.

    `train` fits a sparse autoencoder to every model, `match` tells which features persist along every edge from
    parent to child, beside what persists in the same model trained twice; `report` shows it in one HTML file.
    """
