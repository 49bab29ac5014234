"""`deltasmith convert SOURCE OUT`."""

from __future__ import annotations

import click

from deltasmith.cli.options import Size, human, json_option, print_json, quiet_option


@click.command("convert")
@click.argument("source")
@click.argument("out", type=click.Path())
@click.option(
    "--shard-size", type=Size(), default="5G", show_default=True, help="Largest size of a weight file."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT, at the very end, if it is not empty.")
@json_option
@quiet_option
def command(source: str, out: str, shard_size: int, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Rewrite a checkpoint as a safetensors folder: .npz, single files, model folders, and PyTorch pickles.

    Pickles (.bin, .pt, .pth, .ckpt) are read by torch with weights_only in a process of its own; they need the
    `torch` extra.
    """
    from deltasmith import conversion
    from deltasmith.cli.display import interruptible

    with interruptible() as stop:
        result = conversion.convert(source, out, shard_size=shard_size, overwrite=overwrite, stop=stop)
    if as_json:
        print_json(result.as_json())
    elif not quiet:
        click.echo(f"{result.out}: {result.tensors} tensors, {human(result.bytes_written)}")
