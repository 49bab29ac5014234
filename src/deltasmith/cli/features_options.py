"""The options of `deltasmith features train`: the models, the text, the dictionaries, the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltasmith.cli.options import Size, json_option, quiet_option

__all__ = ["dictionary_options", "input_options", "machine_options"]

_PATH = click.Path(path_type=Path)


def _added(function: Any, *options: Any) -> Any:
    for option in reversed(options):
        function = option(function)
    return function


def input_options(function: Any) -> Any:
    """Add where activations are taken, of what text, and where the study goes."""
    return _added(
        function,
        click.option(
            "--site",
            required=True,
            metavar="MODULE:in|out",
            help="A module by its name, and whether what goes in or what comes out:"
            " model.layers.0.mlp.down_proj:in say.",
        ),
        click.option(
            "--corpus",
            "corpora",
            required=True,
            multiple=True,
            metavar="NAME=PATH",
            help="One kind of text: a file, a folder, a pattern such as 'FOLDER/**/*.py', or a .jsonl file of objects"
            " with `text`, or `prompt` and `answer`; repeatable. Every kind gives as many tokens.",
        ),
        click.option("--out", required=True, type=_PATH, metavar="STUDY", help="The folder to write."),
        click.option(
            "--parent",
            "parents",
            multiple=True,
            metavar="CHILD=PARENT",
            help="Who descends from whom, where the files do not tell; of a merge CHILD=PARENT,PARENT@BASE.",
        ),
        click.option(
            "--context",
            type=click.IntRange(2),
            help="Tokens read at once; default: the model's, 256 at most.",
        ),
        click.option(
            "--held-out",
            "held_out_tokens",
            type=click.IntRange(1),
            default=100_000,
            show_default=True,
            metavar="TOKENS",
            help="Tokens that features are compared on; none of them is trained on.",
        ),
        click.option(
            "--tokens",
            "train_tokens",
            type=click.IntRange(1),
            metavar="TOKENS",
            help="Tokens to train on, over and over if the steps want more; default: all there are.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace an earlier study, at the very end."),
    )


def dictionary_options(function: Any) -> Any:
    """Add what the dictionaries are, and how they are trained."""
    return _added(
        function,
        click.option(
            "--mode",
            type=click.Choice(["warm", "independent", "shared"]),
            default="warm",
            show_default=True,
            help="A child's dictionary begins as its parent's, or afresh; or the root's serves all.",
        ),
        click.option(
            "--kind",
            type=click.Choice(["topk", "batch-topk", "relu-l1"]),
            help="How activations are kept few; default: topk.",
        ),
        click.option(
            "--latents",
            metavar="N|8x",
            help="A count, or a multiple of the width; default: 8x, below 512 4x.",
        ),
        click.option(
            "--k",
            type=click.IntRange(1),
            help="Latents that fire on a token; default: 32 from a width of 768, 16 from 256, else 8.",
        ),
        click.option("--l1", type=float, metavar="C", help="The penalty of relu-l1, which needs it."),
        click.option(
            "--steps",
            type=click.IntRange(1),
            default=12_000,
            show_default=True,
            help="Of a fresh dictionary.",
        ),
        click.option(
            "--child-steps", type=click.IntRange(1), help="Of one that begins as another; default: a sixth."
        ),
        click.option(
            "--batch", type=click.IntRange(1), default=512, show_default=True, help="Activations in a step."
        ),
        click.option(
            "--spare",
            type=click.FloatRange(0, 1),
            default=0.125,
            show_default=True,
            help="Fresh latents of a dictionary that begins as another, as a share.",
        ),
        click.option(
            "--floors",
            type=click.Choice(["root", "all", "none"]),
            default="root",
            show_default=True,
            help="Models that get a second dictionary, to tell what changes by itself: root, where edges from other"
            " models are held against the root's, or all; none: only with --mode shared.",
        ),
        click.option(
            "--seeds",
            type=click.IntRange(0, 100),
            default=1,
            show_default=True,
            help="Second dictionaries by seed.",
        ),
        click.option(
            "--root-dictionary",
            type=_PATH,
            metavar="FOLDER",
            help="Take the root's dictionary from here (SAELens' layout) instead of training it.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of everything random."),
    )


def machine_options(function: Any) -> Any:
    """Add where it is computed, and what is printed."""
    return _added(
        function,
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16"]),
            default="float32",
            show_default=True,
            help="What the models compute in; the dictionaries are float32.",
        ),
        click.option(
            "--memory",
            type=Size(),
            default="1G",
            show_default=True,
            help="For activations: what does not fit is computed again; and for computing a recipe.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, 1024), help="Threads; default: the processors available."
        ),
        json_option,
        quiet_option,
    )
