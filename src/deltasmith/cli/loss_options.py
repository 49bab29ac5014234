"""The options of `deltasmith loss`: what is asked, of what data, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltasmith.analysis.rules import RULES
from deltasmith.cli.options import Size, json_option, override_option, quiet_option

__all__ = ["data_options", "place_options", "question_options"]

_FILE = click.Path(path_type=Path)


class _Range(click.ParamType):  # type: ignore[type-arg]
    """Two numbers with 0 between them: `-1:1`."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        """Return (low, high)."""
        try:
            low, high = (float(part) for part in str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r} is no range; write LOW:HIGH, for example -1:1", param, ctx)
        if not (low <= 0 <= high and low < high < float("inf") and low > float("-inf")):
            self.fail(f"{value!r} must be a range with 0 in it, for example -1:1", param, ctx)
        return low, high


def question_options(function: Any) -> Any:
    """Add what is asked."""
    for option in (
        click.option(
            "--from",
            "start",
            metavar="base|LABEL|MODEL",
            help="Where the path begins: the base, one of the recipe's models by its label or its folder's name, or any"
            " model; default: the recipe's one model, or the base of several.",
        ),
        click.option(
            "--rule",
            "rules",
            multiple=True,
            type=click.Choice(RULES),
            help="How slopes become a prediction; repeatable, default: all. The paper's is left.",
        ),
        click.option(
            "--steps",
            type=click.IntRange(1),
            default=5,
            show_default=True,
            help="Parts of the path, 1000 at most.",
        ),
        click.option(
            "--second-order",
            type=click.Choice(["none", "hessian", "fisher"]),
            default="none",
            show_default=True,
            help="Estimate what a random edit (DARE, DELLA) costs on average over its masks, by the curvature around"
            " the edit's mean, the recipe without it. hessian: also what slope and curvature at the start alone"
            " foretell of this edit, before the edited weights are looked at.",
        ),
        click.option(
            "--probes",
            type=click.IntRange(1),
            default=8,
            show_default=True,
            help="Of the second order, 10000 at most.",
        ),
        click.option(
            "--margin",
            type=float,
            help="A change that counts as none, in nats per token; default: 2 % of what fine-tuning gained, or 0.01.",
        ),
        click.option(
            "--line-search",
            "line",
            type=_Range(),
            metavar="LOW:HIGH",
            help="Instead: find how far to follow the delta beyond its end (ExPO's alpha), -1:1 say.",
        ),
        click.option(
            "--evaluations",
            type=click.IntRange(3),
            default=12,
            show_default=True,
            metavar="N",
            help="Points that a line search visits, at most.",
        ),
        click.option(
            "--sweep",
            metavar="AXES",
            help='Instead: the change at many settings, "k=-1:1:0.25, p=0.1:0.9:0.2" say. Each is NAME=LOW:HIGH:STEP or'
            " NAME=A|B|C. NAME: p or rate (1 - density), density, k, scale, weight, seed, any field of the recipe's"
            " operations, or one operation's (drop.density), or a path as --set takes it.",
        ),
    )[::-1]:
        function = option(function)
    return function


def data_options(function: Any) -> Any:
    """Add what the loss is taken of, and how it is computed."""
    for option in (
        click.option(
            "--data",
            required=True,
            type=_FILE,
            metavar="FILE",
            help="Documents: one a line, or .jsonl objects with `text`, `prompt` and `answer`, or `messages`;"
            " for a classifier an .npz of its inputs and `labels`.",
        ),
        click.option(
            "--batch",
            type=click.IntRange(1),
            default=4,
            show_default=True,
            help="Examples in a chunk: what is computed, and resampled for intervals, together.",
        ),
        click.option(
            "--length",
            type=click.IntRange(2),
            default=512,
            show_default=True,
            help="Tokens of an example, at most.",
        ),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Read the first N documents."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float64", "bfloat16"]),
            default="float32",
            show_default=True,
            help="bfloat16: computed in it, from float32 weights.",
        ),
        click.option("--seed", type=int, help="Replace the recipe's seed; of the resampling too."),
        click.option(
            "--memory",
            type=Size(),
            default="512M",
            show_default=True,
            help="For computing the recipe; two networks in float32 come on top.",
        ),
        click.option("--threads", type=click.IntRange(1, 1024), help="Threads; default: the libraries' own."),
        override_option,
    )[::-1]:
        function = option(function)
    return function


def place_options(function: Any) -> Any:
    """Add what is written."""
    for option in (
        click.option(
            "--out", type=_FILE, metavar="DIR", help="Write report.json and pictures there (extra [plot])."
        ),
        click.option("--overwrite", is_flag=True, help="Replace an earlier report, or statistics file."),
        click.option(
            "--save-gradient",
            "gradient",
            type=_FILE,
            metavar="FILE",
            help="Write the mean gradient at the start of the path, for `bias_by_gradient`. With --save-*, RECIPE may"
            " be a model without --from: then nothing moves, and its loss is shown.",
        ),
        click.option(
            "--save-fisher",
            "fisher",
            type=_FILE,
            metavar="FILE",
            help="Write the Fisher diagonal at the start of the path, for `merge: fisher`.",
        ),
        click.option(
            "--save-gram",
            "gram",
            type=_FILE,
            metavar="FILE",
            help="Write the Gram matrices of the linear layers' inputs there, for `merge: regmean` and"
            " `pack --statistics`.",
        ),
        json_option,
        quiet_option,
    )[::-1]:
        function = option(function)
    return function
