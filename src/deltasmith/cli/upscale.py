"""`deltasmith upscale BASE EXPERT… OUT`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import Size, human, json_option, print_json, quiet_option


@click.command("upscale")
@click.argument("base")
@click.argument("experts", nargs=-1, required=True)
@click.argument("out", type=click.Path(path_type=str))
@click.option(
    "--preset",
    type=click.Choice(["smile", "twin"]),
    default="smile",
    show_default=True,
    help="smile: the base and each expert's delta. twin: a shared expert and what each has of its own.",
)
@click.option(
    "--router-rank", type=int, default=8, show_default=True, help="Directions per expert in each gate."
)
@click.option(
    "--expert-rank",
    type=int,
    default=64,
    show_default=True,
    help="Rank of each expert (smile); -1: whole deltas.",
)
@click.option("--top-k", type=int, help="Experts per token.  [default: 1; twin: all]")
@click.option("--density", type=float, default=0.1, show_default=True, help="Singular triplets kept (twin).")
@click.option(
    "--shared-scale", type=float, default=0.3, show_default=True, help="Scale of Σ δ in the base (twin)."
)
@click.option(
    "--where", default="*", show_default=True, help="Glob over weights; other linears stay the base's."
)
@click.option(
    "--label", "labels", multiple=True, help="Label of an expert, in order.  [default: folder names]"
)
@click.option(
    "--weights", metavar="LABEL=W,…", help="Mix with fixed weights (not named: 0) instead of by the gates."
)
@click.option(
    "--router-data",
    multiple=True,
    metavar="LABEL=FILE",
    help="Example inputs of an expert, once for each: twin's router is trained on them. One a line, or .jsonl"
    " objects with `text`, `prompt` or `question`.",
)
@click.option(
    "--router-epochs", type=int, default=50, show_default=True, help="Most passes over the examples."
)
@click.option(
    "--router-seed", type=int, default=0, show_default=True, help="Divides and orders the examples."
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where singular values and router are computed: cpu, cuda.",
)
@click.option(
    "--shard-size", type=Size(), default="5G", show_default=True, help="Largest size of a weight file."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT, at the very end, if it is not empty.")
@json_option
@quiet_option
def command(
    base: str,
    experts: tuple[str, ...],
    out: str,
    labels: tuple[str, ...],
    weights: str | None,
    router_data: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Turn BASE and its EXPERTs into one sparse mixture of low-rank experts.

    Every linear of the layers becomes the base's plus the experts' low-rank changes, weighed for each token by a gate
    made from their singular vectors, without data or training; or, with --router-data, for each prompt by a router.
    OUT is a model folder that transformers loads after `import deltasmith.upscaling.auto`, and that
    `deltasmith evaluate` takes.
    """
    from deltasmith.cli.display import interruptible, progress
    from deltasmith.upscaling.build import upscale

    given = None if weights is None else _weights(weights)
    data = _examples(router_data) if router_data else None
    with progress(quiet or as_json) as bar, interruptible("matrix") as stop:
        given_to = {"labels": labels or None, "weights": given, "router_data": data, **options}
        result = upscale(base, experts, out, progress=bar, stop=stop, **given_to)
    if as_json:
        print_json(result.as_json())
    elif not quiet:
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        more = result.parameters / result.base_parameters - 1
        click.echo(
            f"{result.out}: {result.linears} linears of {len(result.experts)} experts,"
            f" {result.parameters:,} parameters ({more:+.1%}), {human(result.bytes_written)}"
            f" in {result.seconds:.1f} s"
        )
        if result.router is not None:
            click.echo("\n".join(_routed(result.router, result.experts)))
        click.echo(f"next: deltasmith evaluate {result.out}")


def _examples(given: tuple[str, ...]) -> dict[str, list[str]]:
    """Read the files of `LABEL=FILE` arguments; several files of one label are joined."""
    from pathlib import Path

    from deltasmith.errors import DamagedInputError
    from deltasmith.evaluate.local.reading import read_records, read_text

    found: dict[str, list[str]] = {}
    for part in given:
        label, equals, name = part.partition("=")
        if not (label.strip() and equals and name):
            raise click.BadParameter(f"{part!r} is not LABEL=FILE", param_hint="--router-data")
        path = Path(name)
        if path.suffix in (".jsonl", ".json"):
            texts = []
            for record in read_records(path):
                field = next((f for f in ("text", "prompt", "question") if f in record.fields), "text")
                texts.append(record.text(field))
        else:
            texts = [line.removesuffix("\r") for line in read_text(path).split("\n")]
        if not any(text.strip() for text in texts):
            raise DamagedInputError("it holds no example", where=name, fix="give one example input a line")
        found.setdefault(label.strip(), []).extend(texts)
    return found


def _routed(report: Any, labels: tuple[str, ...]) -> list[str]:
    """Show how often the router finds the expert, and which it takes for which."""
    count = sum(map(sum, report.confusion))
    right = sum(row[index] for index, row in enumerate(report.confusion))
    lines = [
        f"router: {right} of {count} held-out examples sent to their expert, trained on {report.trained}"
        f" (epoch {report.epoch} of {report.epochs})"
    ]
    if right < count:
        rows = zip(labels, report.confusion, strict=True)
        lines += [f"  {label}: {', '.join(map(_counted, labels, row))}" for label, row in rows]
    return lines


def _counted(label: str, count: int) -> str:
    return f"{count} to {label}"


def _weights(text: str) -> dict[str, float]:
    """Read `math=1,code=0.5`."""
    found: dict[str, float] = {}
    for part in text.split(","):
        label, equals, number = part.partition("=")
        try:
            found[label.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise click.BadParameter(f"{part!r} is not LABEL=WEIGHT", param_hint="--weights")
    return found
