"""Options that several commands share, and the parsing of sizes."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click

__all__ = [
    "Size",
    "human",
    "json_option",
    "override_option",
    "print_json",
    "quiet_option",
    "resource_options",
]

_WIDE = 180
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: `512M`, `5G`, `1.5GiB`, `123456` (binary multiples)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", str(value).upper())
        if not found or not (size := int(float(found[1]) * _UNITS[found[2]])):
            self.fail(f"{value!r} is not a size; write 512M or 5G", param, ctx)
        return size


def human(nbytes: float) -> str:
    """Return a size for people: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def console() -> Any:
    """Return a console as wide as the terminal, or wide enough for whole names where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def print_json(document: Any) -> None:
    """Write one JSON document to standard output."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
override_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Change one value of the recipe; repeatable.",
)


def resource_options(function: Any) -> Any:
    """Add --threads, --memory and --seed."""
    function = click.option("--seed", type=int, help="Replace the recipe's seed.")(function)
    function = click.option(
        "--memory",
        type=Size(),
        default="512M",
        show_default=True,
        help="Memory budget beyond the page cache.",
    )(function)
    return click.option(
        "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
    )(function)
