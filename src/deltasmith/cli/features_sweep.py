"""`deltasmith features sweep STUDY RECIPE --vary t=0:1:0.1`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltasmith.cli.options import Size, json_option, override_option, print_json, quiet_option

__all__ = ["command"]


@click.command("sweep")
@click.argument("study")
@click.argument("recipe")
@click.option(
    "--vary",
    required=True,
    metavar="NAME=LOW:HIGH:STEP",
    help="What varies, and over which values: t=0:1:0.1 say, or NAME=A|B|C. NAME: a field of the recipe's operations,"
    " scale, weight, p or rate (1 - density), seed, or a path as --set takes it.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a JSON file, for `features report --sweep`; an interrupted sweep goes on from there.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="LABEL=SOURCE",
    help="A model of the study whose features are followed into the merge; repeatable. Default: the recipe's models.",
)
@click.option("--strong", type=float, default=0.8, show_default=True, metavar="R", help="As in `match`.")
@click.option("--weak", type=float, default=0.5, show_default=True, metavar="R", help="As in `match`.")
@click.option("--min-fires", type=click.IntRange(min=1), default=20, show_default=True, help="As in `match`.")
@click.option(
    "--resamples",
    type=click.IntRange(0, 100_000),
    default=200,
    show_default=True,
    help="Draws of the passages that intervals come from; 0 for none.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which passages are drawn.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What the models compute in.",
)
@click.option("--memory", type=Size(), default="512M", show_default=True, help="For computing the recipe.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Worker threads; default: the processors available."
)
@override_option
@click.option("--overwrite", is_flag=True, help="Replace an earlier sweep in --out.")
@json_option
@quiet_option
def command(study: str, recipe: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Follow features along one parameter of RECIPE, the merge coefficient t of SLERP say.

    The recipe is merged in memory at every value, and what flows through the site of STUDY is read with the
    dictionary of its root: nothing is trained. Told are, beside loss and next-token accuracy per domain, the shares of
    the root's and of each parent's features that persist in the merge, and where the merge's features come from.
    Features that the root's dictionary has no latent for are not seen; FVU, what it leaves unexplained, says how much
    that may be. Two values stand out: the best mean accuracy, and the best of the worst domain. Needs the extra
    [features].
    """
    from deltasmith.cli.display import interruptible, told
    from deltasmith.cli.features_sweep_text import show
    from deltasmith.errors import printable
    from deltasmith.features.sweeping import sweep

    out = options["out"]
    if quiet and not (as_json or out is not None):
        raise click.UsageError("--quiet would show nothing; give --out or --json with it")
    with told(quiet or as_json) as say, interruptible("value") as stop:
        found = sweep(study, recipe, say=say, stop=stop, **options)
    if as_json:
        print_json(found.as_json())
    elif not quiet:
        show(found)
        if out is not None:
            where = printable(str(out))
            click.echo(
                f"{where}: show it with `deltasmith features report {printable(study)} --sweep {where}`"
            )
