"""`deltasmith distill PACKED OUT --model FINE --data FILE`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import json_option, print_json, quiet_option


@click.command("distill")
@click.argument("packed")
@click.argument("out", type=click.Path())
@click.option("--base", metavar="BASE", help="The model it was packed against; default: found beside PACKED.")
@click.option("--model", required=True, metavar="FINE", help="The fine-tuned model that was packed.")
@click.option(
    "--data",
    required=True,
    metavar="FILE",
    help="Documents: one a line, or .jsonl objects with `text`, or `prompt` and `answer`.",
)
@click.option("--label", help="Which delta, where PACKED holds several.")
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True)
@click.option(
    "--lr", type=click.FloatRange(0, min_open=True), default=1e-4, show_default=True, help="Adam's rate."
)
@click.option(
    "--batch", type=click.IntRange(1), default=4, show_default=True, help="Pieces of text in a step."
)
@click.option(
    "--length", type=click.IntRange(2), default=128, show_default=True, help="Tokens of a piece, at most."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Orders the data.")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine"]),
    default="constant",
    show_default=True,
    help="constant is the paper's, cosine the released code's.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="What the networks compute in; auto: float32 on a CPU, as stored elsewhere.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT, at the very end, if it is not empty.")
@json_option
@quiet_option
def command(packed: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train the scales of a 1-bit delta so that its logits come near the fine-tuned model's, and write it to OUT.

    Nothing but the scales of `bitdelta` and `residual_bits` changes (BitDelta, arXiv 2402.10193, section 3.1). A
    tenth of the documents is held out, and the scales with the lowest loss on it are kept. Needs the extra [eval].
    """
    from deltasmith.cli.display import interruptible
    from deltasmith.distillation.run import distill

    fields = {name: options.pop(name) for name in ("steps", "lr", "batch", "seed", "schedule")}
    steps = fields["steps"]

    def say(step: int, loss: float) -> None:
        if not quiet and not as_json:
            click.echo(f"step {step} of {steps}: validation loss {loss:.6g}", err=True)

    with interruptible("step") as stop:
        result = distill(packed, out, settings=fields, say=say, stop=stop, **options)
    if as_json:
        print_json(result.as_json())
    elif not quiet:
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        change = f"{result.before:.6g} → {result.after:.6g}"
        kept = f"the scales of step {result.step}" if result.step else "the scales as packed"
        click.echo(
            f"{result.out}: {result.scales} scales of {result.tensors} tensors; validation loss {change} ({kept})"
        )
