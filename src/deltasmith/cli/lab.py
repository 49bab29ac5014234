"""`deltasmith lab build|run|vision|page|check`, and for each further experiment `NAME` and `NAME-page`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from deltasmith.cli.options import json_option, print_json
from deltasmith.lab import REGIMES

_FOLDER = click.Path(path_type=Path)
_EXPERIMENTS = ("family", "curves", "merges", "emr", "controls")

seeds_option = click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0),
    multiple=True,
    default=(0,),
    show_default=True,
    help="Training seed; repeatable.",
)
regimes_option = click.option(
    "--regime",
    "regimes",
    type=click.Choice(REGIMES),
    multiple=True,
    default=REGIMES,
    help="How large the deltas are; repeatable, default all.",
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes at once."
)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _parts_option(name: str) -> Callable[[_Function], _Function]:
    return click.option(
        "--parts",
        type=_FOLDER,
        default=Path("lab") / "work" / name,
        show_default=True,
        help="Folder where finished jobs are kept, for a run that is interrupted.",
    )


@click.group("lab")
def command() -> None:
    """Build a reproducible family of small models and run the papers' comparisons on it.

    `build` trains (extra [lab]), `run` merges and scores, `page` writes tables and plots (extra [plot]), `check`
    compares rebuilt figures with committed ones; `packed` and `packed-page` do the same for packed deltas, `advise` and
    `advice-page` for advice, `loss` and `loss-page` for what is predicted of the loss, `features` and `features-page`
    for features followed through fine-tuning and merging.
    """


@command.command("build")
@click.argument("family", type=_FOLDER)
@seeds_option
@click.option(
    "--size", default="S", show_default=True, help="XS, S (0.5 M parameters), M (2.4 M), or WIDTHxLAYERS."
)
@regimes_option
@click.option("--base-steps", type=click.IntRange(1), help="Shorten or lengthen pre-training.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="For each process.",
)
@jobs_option
def build(family: Path, seeds: tuple[int, ...], base_steps: int | None, jobs: int, **wanted: Any) -> None:
    """Train a base and its experts under FAMILY/seedN for every seed N; what is there already stays."""
    from deltasmith.lab.family import Wanted, build_family

    if base_steps is not None:
        wanted["base_steps"] = base_steps
    for seed in seeds:
        click.echo(f"seed {seed}", err=True)
        build_family(family / f"seed{seed}", Wanted(seed=seed, **wanted), jobs, _say)


@command.command("run")
@click.argument("family", type=_FOLDER)
@click.option(
    "--out", type=_FOLDER, default=Path("lab/results"), show_default=True, help="Folder for the results."
)
@seeds_option
@regimes_option
@click.option(
    "--experiment",
    "experiments",
    type=click.Choice(_EXPERIMENTS),
    multiple=True,
    default=_EXPERIMENTS,
    help="Repeatable, default all.",
)
@jobs_option
def run(family: Path, out: Path, seeds: tuple[int, ...], **options: Any) -> None:
    """Run the experiments on the models under FAMILY; an interrupted run goes on where it stopped."""
    from deltasmith.lab.run import run_experiments

    run_experiments(family, out, family / "parts", seeds, say=_say, **options)


@command.command("vision")
@click.argument("data", type=_FOLDER)
@click.argument("family", type=_FOLDER)
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("lab/results"),
    show_default=True,
    help="Folder for the results.",
)
@seeds_option
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for training.")
def vision(data: Path, family: Path, out: Path, seeds: tuple[int, ...], device: str) -> None:
    """Train vision models under FAMILY on the pictures in DATA, and make the eight-task table.

    DATA holds mnist/ and omniglot/ (lab/README.md); needs the extra [vision]. Models that are there stay.
    """
    from deltasmith.lab.vision.table import make_table

    click.echo(make_table(data, family, out / "vision.json", seeds, device, _say))


@command.command("packed")
@click.argument("family", type=_FOLDER, required=False)
@click.option(
    "--out",
    type=_FOLDER,
    help="File for the results; default: lab/results/packed.json, or packed-seeds.json with a FAMILY.",
)
@_parts_option("packed")
@seeds_option
@click.option(
    "--regime",
    "regimes",
    type=click.Choice(REGIMES),
    multiple=True,
    help="How large the deltas are; repeatable; default: all that the family has.",
)
@jobs_option
def packed(
    family: Path | None, out: Path | None, seeds: tuple[int, ...], regimes: tuple[str, ...], **options: Any
) -> None:
    """Pack experts in every way, mix them, distil them, and score them: what bytes are worth.

    FAMILY holds the families seed0, seed1 and so on; without it the bundled one is used. Needs the extra [hf].
    """
    from deltasmith.lab import BUNDLED_REGIMES, family_folder
    from deltasmith.lab.packed.page import BUNDLED, SEEDS
    from deltasmith.lab.packed.run import run_packed

    families = {0: family_folder()} if family is None else {seed: family / f"seed{seed}" for seed in seeds}
    known: tuple[str, ...] = BUNDLED_REGIMES if family is None else REGIMES
    name = BUNDLED if family is None else SEEDS
    run_packed(families, regimes or known, out or Path("lab/results") / name, say=_say, **options)


@command.command("packed-page")
@click.argument("results", type=_FOLDER)
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="The page; what stands between its marks is replaced, and plots go into lab/ beside it.",
)
def packed_page(results: Path, out: Path) -> None:
    """Write the tables and plots of packed deltas from the result files in RESULTS."""
    from deltasmith.lab.packed.page import write_packed_page

    for path in write_packed_page(results, out):
        click.echo(str(path))


@command.command("advise")
@click.argument("family", type=_FOLDER)
@click.option(
    "--results",
    type=_FOLDER,
    default=Path("lab/results"),
    show_default=True,
    help="Folder of merges.json and curves.json.",
)
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("lab/results/advice.json"),
    show_default=True,
    help="File for the results.",
)
@click.option("--learn", type=_FOLDER, help="Write what advice may learn of all seeds into this file too.")
@seeds_option
def advise(family: Path, results: Path, out: Path, learn: Path | None, seeds: tuple[int, ...]) -> None:
    """Hold advice against the lab's results: how often what it names is best, or level with the best.

    FAMILY holds seed0, seed1 and so on, of which RESULTS tells; two seeds at least, since one is judged by the others.
    """
    from deltasmith.lab.advice.check import check_advice, write_experience

    experience = check_advice(family, results, out, seeds, _say)
    if learn is not None:
        write_experience(experience, learn)


@command.command("advice-page")
@click.argument("results", type=_FOLDER)
@click.option(
    "--out", type=_FOLDER, required=True, help="The page; what stands between its marks is replaced."
)
def advice_page(results: Path, out: Path) -> None:
    """Write the rules and the tables of the check into the page of `advise`, from RESULTS, a file or its folder."""
    from deltasmith.lab.advice.page import write_advice_page

    click.echo(str(write_advice_page(results, out)))


@command.command("loss")
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("lab/results"),
    show_default=True,
    help="Folder for the results: loss.json and loss-example.json, or loss-vision.json.",
)
@_parts_option("loss")
@click.option("--vision", type=_FOLDER, help="Run on these vision models (of `lab vision`) instead.")
@click.option("--pictures", type=_FOLDER, help="The pictures they were trained on.")
@jobs_option
def loss(out: Path, parts: Path, vision: Path | None, pictures: Path | None, jobs: int) -> None:
    """Predict what edits do to the loss of the bundled experts, and measure it. Needs the extra [analysis]."""
    from deltasmith.lab import family_folder
    from deltasmith.lab.loss.example import EXAMPLE, run_example
    from deltasmith.lab.loss.page import BUNDLED, PICTURED
    from deltasmith.lab.loss.run import run_loss, run_vision

    if (vision is None) != (pictures is None):
        raise click.UsageError("--vision and --pictures belong together")
    if vision is not None and pictures is not None:
        run_vision(vision, pictures, out / PICTURED, parts, jobs=jobs, say=_say)
    else:
        run_loss(family_folder(), out / BUNDLED, parts, jobs=jobs, say=_say)
        run_example(out / EXAMPLE)


@command.command("loss-page")
@click.argument("results", type=_FOLDER)
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="The page; what stands between its marks is replaced, and plots go into a folder of its name beside it.",
)
def loss_page(results: Path, out: Path) -> None:
    """Write the tables and plots of predicted and measured losses from the result files in RESULTS."""
    from deltasmith.lab.loss.page import write_loss_page

    for path in write_loss_page(results, out):
        click.echo(str(path))


@command.command("features")
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("lab/results/features.json"),
    show_default=True,
    help="File for the results.",
)
@click.option(
    "--work",
    type=_FOLDER,
    default=Path("lab/work/features"),
    show_default=True,
    help="Folder for texts, models, studies and the report, which stay for the next run.",
)
@seeds_option
@click.option(
    "--preset", type=click.Choice(("paper-cpu", "paper-gpu")), help="The paper's own models, from the hub."
)
@click.option("--english", type=_FOLDER, help="Your own English texts, a file or a folder.")
@click.option("--lua", type=_FOLDER, help="A folder of Lua programs instead of generated ones.")
@click.option(
    "--stories", type=_FOLDER, help="Your own stories, a file or a folder, instead of generated ones."
)
@click.option(
    "--shorten", type=click.IntRange(1), default=1, help="Divide steps and tokens by this: for a trial."
)
@jobs_option
def features(
    out: Path,
    work: Path,
    seeds: tuple[int, ...],
    preset: str | None,
    english: Path | None,
    lua: Path | None,
    stories: Path | None,
    shorten: int,
    jobs: int,
) -> None:
    """Follow features from a base through two fine-tunes into their SLERP, on one-layer models trained here.

    The base learns English and Python, the fine-tunes Lua and stories; dictionaries are trained in every mode, with
    floors and controls. With --preset the models and texts that the paper's authors published are fetched from the hub
    and nothing is trained but dictionaries. Needs the extra [features].
    """
    from deltasmith.lab.features.corpora import Texts
    from deltasmith.lab.features.run import run_features, run_preset

    texts = Texts(english, lua, stories)
    if preset is None:
        run_features(work, out, seeds, texts=texts, shorten=shorten, jobs=jobs, say=_say)
        return
    if texts != Texts() or shorten > 1 or seeds != (0,):
        raise click.UsageError("--preset fixes texts, sizes and seeds: give it alone")
    run_preset(preset, work, out, jobs=jobs, say=_say)


@command.command("features-page")
@click.argument("results", type=_FOLDER)
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="The page; what stands between its marks is replaced, and plots go into a folder of its name beside it.",
)
def features_page(results: Path, out: Path) -> None:
    """Write the tables and plots of features from RESULTS, a file or its folder."""
    from deltasmith.lab.features.page import write_features_page

    for path in write_features_page(results, out):
        click.echo(str(path))


@command.command("page")
@click.argument("results", type=_FOLDER)
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="The page to write; plots go into a folder of its name beside it.",
)
def page(results: Path, out: Path) -> None:
    """Write the page of tables and plots from the result files in RESULTS."""
    from deltasmith.lab.page import load_all, write_page

    for path in write_page(load_all(results), out):
        click.echo(str(path))


@command.command("check")
@click.argument("rebuilt", type=_FOLDER)
@click.argument("committed", type=_FOLDER)
@json_option
def check(rebuilt: Path, committed: Path, as_json: bool) -> None:
    """Hold the figures in REBUILT against the intervals of those in COMMITTED.

    Intervals are 95 % prediction intervals of one more training run; exit 6 if more than 5 % lie outside.
    """
    from deltasmith.lab.check import compare_cells, refuse_strangers
    from deltasmith.lab.page import load_all

    cells = compare_cells(load_all(committed), load_all(rebuilt))
    inside = sum(cell.inside for cell in cells)
    if as_json:
        print_json(
            [
                {"name": c.name, "low": c.low, "high": c.high, "found": c.found, "inside": c.inside}
                for c in cells
            ]
        )
    refuse_strangers(cells)
    if not as_json:
        click.echo(f"{inside} of {len(cells)} figures lie within the committed intervals")


def _say(line: str) -> None:
    click.echo(line, err=True)
