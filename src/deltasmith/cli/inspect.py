"""`deltasmith inspect PACKED`."""

from __future__ import annotations

import click

from deltasmith.cli.options import console, human, json_option, print_json
from deltasmith.errors import printable


@click.command("inspect")
@click.argument("packed")
@click.option(
    "--by",
    "group",
    type=click.Choice(["tensor", "layer", "projection", "codec", "model"]),
    default="projection",
    show_default=True,
    help="How tensors are grouped.",
)
@json_option
def command(packed: str, group: str, as_json: bool) -> None:
    """Show what a packed delta takes and how near it comes: size, ratio and relative error per group.

    The base is not needed. Errors are ‖δ − δ̂‖ / ‖δ‖ as measured when it was packed; 0 is exact to the bit.
    """
    from deltasmith.packing.inspection import inspect

    found = inspect(packed)
    if as_json:
        print_json(found.as_json())
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column(group)
    for title in ("codec", "tensors", "elements", "size", "bits", "arrays, % of 16 bit", "relative error"):
        table.add_column(title, justify="left" if title == "codec" else "right")
    lines = [*found.by(group), *(found.by("model") if group != "model" else [])]  # type: ignore[arg-type]
    for line in lines:
        figures = (f"{line.bits:.2f}", f"{100 * line.ratio:.1f}", f"{line.relative_error:.4g}")
        table.add_row(
            escape(line.name),
            escape(line.codec),
            str(line.tensors),
            f"{line.elements:,}",
            human(line.nbytes),
            *figures,
        )
    console().print(table)
    base = found.packed.base
    labels = ", ".join(found.packed.labels)
    named = f"{printable(base.name, 120)} (fingerprint {printable(base.fingerprint, 60)})"
    click.echo(f"{labels} over {named}; file {human(found.nbytes)}, {100 * found.ratio:.1f} % of 16 bit")
    if found.shared:
        click.echo(
            f"{human(found.shared)} of arrays that several deltas share: in each of their rows, in `all` once"
        )
    for note in found.packed.document.notes:
        click.echo(f"note: {printable(note, 2000)}")
