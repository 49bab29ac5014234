"""`deltasmith tune RECIPE --validation SPEC…`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from deltasmith.cli.options import Size, console, json_option, override_option, print_json, quiet_option

_HELP = """Search for the numbers that RECIPE marks, by making and scoring one model after the other.

A mark stands where a number may stand:

\b
  weight: {tune: [0.1, 1.5]}                 any number between the ends
  scale: {tune: [0.1, 2.0], log: true}       evenly by its logarithm
  density: {tune: [0.1, 1.0], step: 0.05}    in steps
  k: {tune: [2, 16], integer: true}          whole numbers
  density: {tune: {choices: [0.1, 0.2]}}     one of these

Trials are scored on the validation set. The test set, which must share no question with it, is asked once, at the
end, with the best recipe, and with RECIPE without its marks where its defaults complete it. A number at the edge of
its range is warned of.

Killed or stopped, the same command goes on where it was, and a larger --trials adds to what is there. A changed
recipe, model, task, sampler, objective or seed begins another search. Equal seeds visit equal numbers.

Samplers: tpe (Optuna's default), cmaes (two numbers or more), nsga2 (several objectives: a Pareto front), grid,
random, and dpa, the search of the DPPA paper: RECIPE has preset dppa and plain `factors`; each in turn is raised
in steps of 0.1 while that helps, and lowered if it did not. Its objective is `retention`, the geometric mean
over the tasks of score / score of the expert by itself. With `dialect: authors` it is the loop of the released
code, which ends where it ends, best or not.
"""


def _search_options(function: Any) -> Any:
    """Add what is searched, for how long, and how."""
    for option in (
        click.option(
            "--trials", type=click.IntRange(1), default=50, show_default=True, help="Models to score."
        ),
        click.option(
            "--sampler",
            type=click.Choice(["tpe", "cmaes", "nsga2", "grid", "random", "dpa"]),
            default="tpe",
            show_default=True,
        ),
        click.option(
            "--objective",
            "objectives",
            multiple=True,
            metavar="NAME",
            help="mean (default), worst, retention, or a task; repeatable with nsga2.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the search, not the recipe."),
        click.option(
            "--grid-points",
            type=click.IntRange(2),
            default=5,
            show_default=True,
            help="Points of a range without steps.",
        ),
        override_option,
    )[::-1]:
        function = option(function)
    return function


def _score_options(function: Any) -> Any:
    """Add what the models are asked, and how they are run."""
    for option in (
        click.option(
            "--validation",
            multiple=True,
            metavar="SPEC[,SPEC…]",
            help="Tasks that score the trials, as for evaluate: family:validation, KIND=FILE, …; repeatable.",
        ),
        click.option("--test", multiple=True, metavar="SPEC[,SPEC…]", help="Tasks asked once, at the end."),
        click.option(
            "--score-command",
            metavar="COMMAND",
            help="Score with a command instead: it gets the folder of the merged model as its last argument, and"
            " the last line it prints is the score.",
        ),
        click.option("--test-command", metavar="COMMAND", help="The same, for the test."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Ask the first N of each task."),
        click.option(
            "--shots", type=click.IntRange(0), metavar="K", help="Worked examples before a question."
        ),
        click.option("--chat", is_flag=True, help="Lay questions out with the model's chat template."),
        click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer, in tokens."),
        click.option("--run-code", is_flag=True, help="Run code that models write, in a sandbox."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option(
            "--runtime", type=click.Choice(["auto", "torch", "numpy"]), default="auto", show_default=True
        ),
        click.option("--batch", type=click.IntRange(1), metavar="N", help="Texts the model reads at once."),
        click.option("--threads", type=click.IntRange(1, 1024), help="Threads; default: all."),
        click.option(
            "--memory", type=Size(), default="512M", show_default=True, help="Memory budget of merging."
        ),
        click.option(
            "--cache",
            type=Size(),
            default="1G",
            show_default=True,
            help="Memory for edited deltas kept between trials; what does not fit is read again.",
        ),
    )[::-1]:
        function = option(function)
    return function


@click.command("tune", help=_HELP)
@click.argument("recipe")
@_score_options
@_search_options
@click.option("--out", metavar="BEST.yaml", help="Where the best recipe goes; default: RECIPE.best.yaml.")
@click.option("--storage", metavar="FILE.db", help="Where the trials are kept; default: beside --out.")
@json_option
@quiet_option
def command(
    recipe: str, out: str | None, storage: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Search for the numbers that RECIPE marks."""
    from deltasmith.cli.display import interruptible
    from deltasmith.search import Settings, tune
    from deltasmith.search.best_file import refuse_foreign, write_best

    best = Path(out) if out else Path(recipe).with_suffix(".best.yaml")
    kept = Path(storage) if storage else best.with_suffix(".db")
    settings = Settings(*(options.pop(k) for k in ("trials", "sampler", "objectives", "seed", "grid_points")))
    overrides = options.pop("overrides")
    refuse_foreign(best)
    with interruptible("trial") as stop:
        validation, test = _scorers(options, stop)
        tuned = tune(
            recipe,
            validation,
            test=test,
            settings=settings,
            storage=kept,
            overrides=overrides,
            stop=stop,
            listener=None if quiet or as_json else _Lines(settings.trials),
        )
    written = write_best(tuned, best)
    for warning in tuned.warnings if not as_json and not quiet else ():
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json({**tuned.as_json(), "out": [str(path) for path in written], "storage": str(kept)})
    elif not quiet:
        _print(tuned)
        click.echo(f"{written[0]}: the best recipe; {kept}: all trials")
        click.echo(f"next: deltasmith merge {written[0]} OUT")


def _scorers(options: dict[str, Any], stop: Any) -> tuple[Any, Any]:
    """Return what scores the trials and what scores the end, if anything does."""
    from deltasmith.engine.columns import EditedColumns
    from deltasmith.search.task_scorer import refuse_shared, task_scorer

    sets = {name: options.pop(name) for name in ("validation", "test")}
    commands = {"validation": options.pop("score_command"), "test": options.pop("test_command")}
    for name, given in (("--validation", "validation"), ("--test", "test")):
        if sets[given] and commands[given]:
            raise click.UsageError(f"{name} and its command are both given: name one")
    if not sets["validation"] and not commands["validation"]:
        raise click.UsageError("name what scores the trials: --validation SPEC, or --score-command COMMAND")
    columns = EditedColumns(options.pop("cache"))
    made: dict[str, Any] = {"validation": None, "test": None}
    for name in made:
        if commands[name]:
            made[name] = _command(commands[name], options, stop)
        elif sets[name]:
            made[name] = task_scorer(sets[name], columns=columns, stop=stop, **options)
    if sets["validation"] and sets["test"]:
        refuse_shared(made["validation"], made["test"])
    if commands["validation"] and commands["validation"] == commands["test"]:
        raise click.UsageError("--score-command and --test-command are the same: the test must be another")
    return made["validation"], made["test"]


def _command(line: str, options: dict[str, Any], stop: Any) -> Any:
    import shlex

    from deltasmith.search import CommandScorer

    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise click.UsageError(f"the command {line!r} cannot be read: {error}") from error
    if not argv:
        raise click.UsageError("the command is empty")
    return CommandScorer(argv, {"threads": options["threads"], "memory": options["memory"], "stop": stop})


class _Lines:
    """A line per trial on standard error."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __call__(self, trial: Any) -> None:
        values = ", ".join(
            f"{name.rpartition('models.')[2]} {value:g}" for name, value in trial.values.items()
        )
        told = ", ".join(f"{figure:.4g}" for figure in trial.figures) or f"no model: {trial.refused}"
        click.echo(f"{trial.number + 1}/{self.total}: {told}  ({values})", err=True)


def _print(tuned: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    names = [d.name for d in tuned.marked.dimensions]
    goals = [goal.name for goal in tuned.objectives]
    tasks = [task for task in tuned.best.scores if task not in goals]
    table = Table(box=None, pad_edge=False)
    for name in ("trial", *goals, *tasks, *names):
        table.add_column(escape(name), justify="right", overflow="fold")
    for trial in _shown(tuned):
        row = [f"{trial.number}", *map(_short, trial.figures), *(_short(trial.scores[t]) for t in tasks)]
        table.add_row(*row, *(f"{trial.values[name]:g}" for name in names))
    console().print(table)
    _print_comparison(tuned, goals)
    if tuned.importance:
        parts = sorted(tuned.importance.items(), key=lambda item: -item[1])
        click.echo("importance: " + ", ".join(f"{name} {part:.0%}" for name, part in parts))
    timed = [trial for trial in tuned.trials if not math.isnan(trial.seconds)]
    if timed:
        total = sum(trial.seconds for trial in timed)
        share = sum(trial.merge_seconds for trial in timed) / total if total else 0.0
        click.echo(f"{total / len(timed):.2f} s a trial, {share:.0%} of it to make and load the model")


def _shown(tuned: Any) -> list[Any]:
    """Return the front, or the ten best trials."""
    if tuned.front:
        return list(tuned.front)
    sign = 1 if tuned.objectives[0].maximise else -1
    scored = [trial for trial in tuned.trials if trial.figures]
    return sorted(scored, key=lambda t: (-sign * t.figures[0], t.number))[:10]


def _print_comparison(tuned: Any, goals: list[str]) -> None:
    """Print best and default on validation and test."""
    for place, name in enumerate(goals):
        told = [f"{name}: best {_short(tuned.best.figures[place])} on validation"]
        for words, scores in (
            ("{} on test", tuned.test),
            ("without the marks {} on validation", tuned.default),
            ("without the marks {} on test", tuned.default_test),
        ):
            figures = tuned.figures(scores)
            told += [] if figures is None else [words.format(_short(figures[place]))]
        if tuned.gaps is not None:
            told.append(f"validation minus test {tuned.gaps[place]:+.4f}")
        click.echo("; ".join(told))


def _short(value: float) -> str:
    return f"{value:.4g}"
