"""`deltasmith tune RECIPE --validation SPEC…`."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
recipe, model, task, sampler, objective or seed begins another search, whose best recipe replaces that of an earlier
one only with --overwrite. Equal seeds visit equal numbers. Trials are counted from 1.

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
@click.option("--overwrite", is_flag=True, help="Replace the best recipe of another search.")
@click.option("--storage", metavar="FILE.db", help="Where the trials are kept; default: beside --out.")
@json_option
@quiet_option
def command(
    recipe: str,
    out: str | None,
    overwrite: bool,
    storage: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Search for the numbers that RECIPE marks."""
    from deltasmith.cli.display import interruptible
    from deltasmith.search import Settings, tune
    from deltasmith.search.best_file import refuse_foreign, refuse_other, write_best

    best = Path(out) if out else Path(recipe).with_suffix(".best.yaml")
    kept = Path(storage) if storage else best.with_suffix(".db")
    settings = Settings(*(options.pop(k) for k in ("trials", "sampler", "objectives", "seed", "grid_points")))
    overrides = options.pop("overrides")
    refuse_foreign(best)
    lines = None if quiet or as_json else _Lines(settings.goals, settings.trials)

    def claim(digest: str) -> None:
        if not overwrite:
            refuse_other(best, digest, front=len(settings.goals) > 1)

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
            listener=lines,
            claim=claim,
            notice=None if lines is None else lines.notice,
        )
    written = write_best(tuned, best)
    for warning in () if lines is None else (w for w in tuned.warnings if w not in lines.noticed):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json({**tuned.as_json(), "out": [str(path) for path in written], "storage": str(kept)})
    elif not quiet:
        _print(tuned)
        click.echo(f"{written[0]}: the recipe of the best trial")
        click.echo(f"{kept}: all trials")
        click.echo(_next(tuned, recipe, written[0]))


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
    """A line per trial on standard error, and what is to be known before the first."""

    def __init__(self, goals: Sequence[str], total: int) -> None:
        self.goals, self.total = goals, total
        self.noticed: list[str] = []

    def notice(self, words: str) -> None:
        self.noticed.append(words)
        click.echo(f"warning: {words}", err=True)

    def __call__(self, trial: Any) -> None:
        values = ", ".join(f"{name} {value:g}" for name, value in trial.values.items())
        told = ", ".join(
            f"{goal} {_shown(figure, trial.is_share(goal))}"
            for goal, figure in zip(self.goals, trial.figures, strict=False)
        )
        click.echo(
            f"{trial.number}/{self.total}: {told or f'no model: {trial.refused}'}  ({values})", err=True
        )


def _next(tuned: Any, recipe: str, best: Path) -> str:
    """Say what to do next; the best trial is nothing to merge where the recipe was better without it."""
    if not tuned.overtaken:
        return f"next: deltasmith merge {best} OUT"
    better = "as it is" if tuned.sampler == "dpa" else "without its marks"
    return f"next: {recipe} {better} is better on validation than the best trial: merge that, or search elsewhere"


def _print(tuned: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    names = [d.name for d in tuned.marked.dimensions]
    columns = [goal.name for goal in tuned.objectives]
    columns += [task for task in tuned.best.scores if task not in columns]
    table = Table(box=None, pad_edge=False)
    for name in ("trial", *columns, *names):
        table.add_column(escape(name), justify="right", overflow="fold")
    for trial in _listed(tuned):
        figures = {goal.name: f for goal, f in zip(tuned.objectives, trial.figures, strict=True)}
        row = [_shown({**trial.scores, **figures}[name], tuned.is_share(name)) for name in columns]
        table.add_row(f"{trial.number}", *row, *(f"{trial.values[name]:g}" for name in names))
    console().print(table)
    click.echo(f"best: trial {tuned.best.number} of {len(tuned.trials)}")
    for place, goal in enumerate(tuned.objectives):
        _print_comparison(tuned, goal.name, place)
    _print_tested(tuned)
    if tuned.importance:
        click.echo("how much each number mattered for being among the best tenth of the trials (PED-ANOVA):")
        for name, part in sorted(tuned.importance.items(), key=lambda item: -item[1]):
            click.echo(f"  {name}: {part:.0%}".replace("%", " %"))
    timed = [trial for trial in tuned.trials if not math.isnan(trial.seconds)]
    if timed:
        total = sum(trial.seconds for trial in timed)
        share = sum(trial.merge_seconds for trial in timed) / total if total else 0.0
        click.echo(
            f"{total / len(timed):.2f} s a trial, {100 * share:.0f} % of it to make and load the model"
        )


def _listed(tuned: Any) -> list[Any]:
    """Return the front, or the ten best trials."""
    if tuned.front:
        return list(tuned.front)
    sign = 1 if tuned.objectives[0].maximise else -1
    scored = [trial for trial in tuned.trials if trial.figures]
    return sorted(scored, key=lambda t: (-sign * t.figures[0], t.number))[:10]


def _print_comparison(tuned: Any, name: str, place: int) -> None:
    """Print what an objective comes to for the best trial and the default, on validation and test."""
    share = tuned.is_share(name)
    without = "recipe as it is" if tuned.sampler == "dpa" else "recipe without its marks"
    lines: list[tuple[str, Any, Any]] = [("best trial on validation", tuned.best.figures, {})]
    lines += [("best trial on test", tuned.figures(tuned.test), tuned.test_intervals)]
    lines += [(f"{without} on validation", tuned.figures(tuned.default), {})]
    lines += [(f"{without} on test", tuned.figures(tuned.default_test), tuned.default_test_intervals)]
    for words, figures, intervals in lines:
        if figures is not None:
            click.echo(
                f"{name}, {words}: {_shown(figures[place], share)}{_within(intervals.get(name), share)}"
            )
    if tuned.gaps is not None:
        gap = f"{100 * tuned.gaps[place]:+.2f} points" if share else f"{tuned.gaps[place]:+.4f}"
        click.echo(f"{name}, validation minus test: {gap}")


def _print_tested(tuned: Any) -> None:
    """Print the best trial's test score of every task that is no objective, where there are several tasks."""
    goals = {goal.name for goal in tuned.objectives}
    for name, score in (tuned.test or {}).items():
        if name not in goals and (len(tuned.test) > 1 or tuned.figures(tuned.test) is None):
            share = tuned.is_share(name)
            told = _within(tuned.test_intervals.get(name), share)
            click.echo(f"{name}, best trial on test: {_shown(score, share)}{told}")


def _within(interval: tuple[float, float] | None, share: bool) -> str:
    if interval is None:
        return ""
    return f" (95 % interval {' – '.join(_shown(end, share) for end in interval)})"


def _shown(value: float, share: bool) -> str:
    """Write a figure as `evaluate` does: shares in per cent, everything else as it is."""
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"
