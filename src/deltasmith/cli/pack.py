"""`deltasmith pack BASE MODEL... OUT`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import human, json_option, print_json, quiet_option, resource_options


def _pair(text: str) -> tuple[str, str]:
    glob, sign, codec = text.partition("=")
    if not sign or not glob or not codec:
        raise click.BadParameter(f"{text!r} is not GLOB=CODEC", param_hint="--rule")
    return glob, codec


@click.command("pack")
@click.argument("base")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.argument("out")
@click.option(
    "--codec",
    show_default="bitdelta",
    metavar="CODEC",
    help="What packs the tensors of --where: bitdelta, residual_bits:passes=2, low_rank:rank=16, claq:bits=2,"
    " lossless, … (`deltasmith explain CODEC`). `emr` takes several models.",
)
@click.option(
    "--where",
    show_default="linears; * for emr",
    metavar="GLOB",
    help="Which tensors --codec is for; `linears`: the matrices of numbered layers.",
)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="GLOB=CODEC",
    help="Another codec for the tensors a glob matches; the first rule that matches counts; repeatable.",
)
@click.option("--rest", default="lossless", show_default=True, metavar="CODEC", help="What packs all others.")
@click.option(
    "--budget",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Instead of --codec: choose codecs so that the whole takes this share of the model in 16 bits, at the least"
    " error. Slow: codes every tensor by every candidate first.",
)
@click.option(
    "--candidate",
    "among",
    multiple=True,
    metavar="CODEC",
    help="A codec that --budget may choose; repeatable; default: a dozen of them.",
)
@click.option(
    "--statistics",
    metavar="FILE",
    help="Gram matrices of the layers' inputs (`NAME::gram`), for codecs that weigh errors by them: claq.",
)
@click.option(
    "--trainer",
    type=click.Choice(["xor", "overwrite"]),
    help="Instead of codecs: the bytes that changed, in a folder as RL trainers exchange them.",
)
@resource_options
@click.option("--overwrite", is_flag=True, help="Replace OUT, at the very end, if it is not empty.")
@json_option
@quiet_option
def command(
    base: str,
    models: tuple[str, ...],
    out: str,
    rules: tuple[str, ...],
    seed: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write what MODEL changed in BASE to OUT, in a tenth of the space.

    MODEL is a model folder, a hub id, an adapter, or a recipe (*.yaml) whose result is packed. OUT is a folder that
    opens wherever a model does, as long as BASE is at hand.
    """
    from deltasmith.cli.display import interruptible, progress
    from deltasmith.packing.command import pack_models

    with progress(quiet or as_json) as bar, interruptible() as stop:
        result = pack_models(
            base,
            models,
            out,
            rules=[_pair(r) for r in rules],
            seed=seed or 0,
            progress=bar,
            stop=stop,
            **options,
        )
    if as_json:
        print_json(result.as_json())
        return
    if quiet:
        return
    for line in (*result.notes, *(f"warning: {w}" for w in result.warnings)):
        click.echo(line, err=True)
    click.echo(
        f"{result.out}: {result.tensors} tensors in {human(result.nbytes)}, {100 * result.ratio:.1f} % of 16 bits an"
        f" element; relative error {result.relative_error:.4g}; {result.seconds:.1f} s"
    )
    look = "" if options["trainer"] else f"deltasmith inspect {result.out}, or "
    click.echo(f"next: {look}deltasmith unpack {result.out} MODEL --base {base}")
