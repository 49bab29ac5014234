"""`deltasmith extract-lora BASE MODEL OUT`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import Size, human, json_option, print_json, quiet_option

_FACTORS = ("bfloat16", "float16", "float32")


@click.command("extract-lora")
@click.argument("base")
@click.argument("model")
@click.argument("out")
@click.option("--rank", type=click.IntRange(1), help="The rank of every pair; default: --max-rank.")
@click.option(
    "--error",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Instead of --rank: the smallest rank whose relative error is at most this.",
)
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Instead of --rank: the share of the squared singular values to keep.",
)
@click.option("--max-rank", type=click.IntRange(1), default=128, show_default=True, help="The largest rank.")
@click.option("--embed-lora", is_flag=True, help="Make pairs of embeddings and heads too.")
@click.option(
    "--distribute-scale/--no-distribute-scale",
    default=True,
    show_default=True,
    help="Put the root of the singular values on both factors, or all of them on A.",
)
@click.option(
    "--sv-epsilon", type=float, default=0.0, show_default=True, help="Leave out singular values up to this."
)
@click.option(
    "--include", multiple=True, metavar="GLOB", help="Make pairs of these tensors alone; repeatable."
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Make no pairs of these: they are saved whole; repeatable.",
)
@click.option(
    "--drop", multiple=True, metavar="GLOB", help="Leave out what changed in these tensors; repeatable."
)
@click.option(
    "--dtype",
    type=click.Choice(_FACTORS),
    default="bfloat16",
    show_default=True,
    help="Element type of the factors.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to decompose.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
)
@click.option(
    "--memory", type=Size(), default="2G", show_default=True, help="Memory budget beyond the page cache."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT, at the very end, if it is not empty.")
@json_option
@quiet_option
def command(
    base: str,
    model: str,
    out: str,
    threads: int | None,
    memory: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **wishes: Any,
) -> None:
    """Write to OUT the PEFT adapter that takes BASE nearest to MODEL.

    MODEL is a model folder, a hub id, a packed delta, or a recipe (*.yaml) whose result is taken. A recipe that sums
    adapters is merged in factor space. What has changed and fits no pair is saved whole.
    """
    from deltasmith.cli.display import interruptible, progress
    from deltasmith.packing.extraction import Wish, extract_lora

    wish = Wish(**wishes | {"include": wishes["include"] or ("*",)})
    with progress(quiet or as_json) as bar, interruptible("matrices") as stop:
        result = extract_lora(
            base,
            model,
            out,
            wish,
            threads=threads,
            memory=memory,
            overwrite=overwrite,
            progress=bar,
            stop=stop,
        )
    if as_json:
        print_json(result.as_json())
        return
    if quiet:
        return
    for line in (*result.notes, *(f"warning: {w}" for w in result.warnings)):
        click.echo(line, err=True)
    width = max((len(row.kind) for row in result.kinds()), default=0)
    for row in result.kinds():
        low, high = row.ranks
        rank = str(low) if low == high else f"{low} to {high}"
        click.echo(f"{row.kind:{width}}  {row.tensors:4}  rank {rank:12}  error {row.relative_error:.4g}")
    click.echo(
        f"{result.out}: {len(result.pairs)} pairs and {len(result.whole)} whole tensors in {human(result.nbytes)};"
        f" relative error {result.relative_error:.4g}; {result.seconds:.1f} s"
    )
