"""`deltasmith evaluate MODEL --tasks SPEC,…`."""

from __future__ import annotations

import math
from typing import Any

import click

from deltasmith.cli.options import console, json_option, override_option, print_json, quiet_option


def _task_options(function: Any) -> Any:
    """Add what decides the questions."""
    for option in (
        click.option(
            "--tasks",
            multiple=True,
            required=True,
            metavar="SPEC[,SPEC…]",
            help="What to ask: family, KIND=FILE (items, gsm8k, mbpp, humaneval, ifeval, blimp, perplexity,"
            " next_token, alpaca, annotations), or the name of an lm-eval task; repeatable.",
        ),
        click.option(
            "--limit", type=click.IntRange(1), metavar="N", help="Ask only the first N of each task."
        ),
        click.option(
            "--shots", type=click.IntRange(0), metavar="K", help="Worked examples before a question."
        ),
        click.option("--train", metavar="FILE", help="Where worked examples come from (gsm8k)."),
        click.option("--chat", is_flag=True, help="Lay questions out with the model's chat template."),
        click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer, in tokens."),
        click.option("--include-path", metavar="DIR", help="A folder with more lm-eval tasks."),
    )[::-1]:
        function = option(function)
    return function


def _model_options(function: Any) -> Any:
    """Add what decides how the model is run."""
    for option in (
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option(
            "--runtime",
            type=click.Choice(["auto", "torch", "numpy"]),
            default="auto",
            show_default=True,
            help="What computes; numpy knows small Llamas alone.",
        ),
        click.option("--batch", type=click.IntRange(1), metavar="N", help="Texts the model reads at once."),
        click.option("--threads", type=click.IntRange(1, 1024), help="Threads; default: the library's."),
        override_option,
    )[::-1]:
        function = option(function)
    return function


def _judge_options(function: Any) -> Any:
    """Add who judges AlpacaEval's answers, and where generated code runs."""
    for option in (
        click.option(
            "--judge-command",
            metavar="COMMAND",
            help='A judge for alpaca=FILE: reads {"id", "instruction", "output_1", "output_2"} a line and writes'
            ' {"id", "preference"} a line, 1 (output_1 is better) to 2 (output_2), or null.',
        ),
        click.option("--judge-model", metavar="DIR", help="A model folder whose model judges."),
        click.option(
            "--reference", metavar="FILE", help="Answers to compare with; default: those in alpaca=FILE."
        ),
        click.option(
            "--run-code", is_flag=True, help="Run code that the model writes (mbpp, humaneval), in a sandbox."
        ),
        click.option(
            "--sandbox",
            type=click.Choice(["auto", "bubblewrap", "namespaces", "landlock"]),
            default="auto",
            show_default=True,
        ),
        click.option("--unsafe-exec-i-know", "unsafe", is_flag=True, help="Run code without a sandbox."),
    )[::-1]:
        function = option(function)
    return function


def _place_options(function: Any) -> Any:
    """Add where results go."""
    for option in (
        click.option("--out", metavar="RESULT.json", help="Write every question's score there."),
        click.option(
            "--overwrite", is_flag=True, help="Evaluate anew and replace the result of another evaluation."
        ),
        click.option(
            "--journal",
            metavar="FILE",
            help="Where finished questions are noted; default: beside --out, or in the cache. Kept if named.",
        ),
        click.option("--hub-results", metavar="DIR", help="Write the Hub's .eval_results files there."),
        click.option(
            "--hub-dataset",
            "hub_datasets",
            multiple=True,
            metavar="TASK=OWNER/DATASET#TASK_ID",
            help="Which benchmark of the Hub a task is; repeatable.",
        ),
        click.option("--hub-source", metavar="URL", help="A page with details, for the Hub's files."),
    )[::-1]:
        function = option(function)
    return function


@click.command("evaluate")
@click.argument("model")
@_task_options
@_model_options
@_judge_options
@_place_options
@json_option
@quiet_option
def command(
    model: str,
    tasks: tuple[str, ...],
    hub_results: str | None,
    hub_datasets: tuple[str, ...],
    hub_source: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Ask MODEL, a folder or a recipe, the questions of some tasks and score its answers.

    A recipe is merged in memory. An interrupted run resumes when repeated. A task that fails leaves the others to
    run: the result is then marked incomplete, and the exit code is that of the first error.
    """
    from deltasmith.cli.display import interruptible, item_progress
    from deltasmith.evaluate.hub import benchmarks
    from deltasmith.evaluate.run import evaluate_model

    known = benchmarks(hub_datasets)
    _check_hub(hub_results, bool(known), hub_source, options["limit"])
    with item_progress(quiet or as_json) as bar, interruptible("questions") as stop:
        result = evaluate_model(model, tasks, progress=bar, stop=stop, **options)
    if as_json:
        print_json(result.evaluation.as_json())
    elif not quiet:
        _print(result.evaluation)
    if hub_results:
        _write_hub(result.evaluation, hub_results, known, hub_source, quiet or as_json)
    for failure in result.failures[1:]:
        click.echo(f"error: {failure}", err=True)
    if result.failures:
        raise result.failures[0]


def _check_hub(folder: str | None, known: bool, source: str | None, limit: int | None) -> None:
    if folder is None and (known or source):
        raise click.UsageError("--hub-dataset and --hub-source need --hub-results DIR")
    if folder is not None and not known:
        raise click.UsageError("--hub-results needs --hub-dataset TASK=OWNER/DATASET#TASK_ID for each task")
    if folder is not None and limit is not None:
        raise click.UsageError("--hub-results and --limit: a part of a benchmark is no result of it")


def _write_hub(evaluation: Any, folder: str, known: Any, source: str | None, silent: bool) -> None:
    from pathlib import Path

    from deltasmith.evaluate.hub import write_hub_results

    written, left = write_hub_results(evaluation, Path(folder), known, source=source)
    if not silent:
        for path in written:
            click.echo(f"{path}: written")
        if left:
            click.echo(f"not written for the Hub: {', '.join(left)} (incomplete, or no --hub-dataset)")


def _print(evaluation: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deltasmith.errors import printable

    table = Table(box=None, pad_edge=False)
    for name in ("task", "metric", "score", "95 % interval", "n"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", overflow="fold")
    for name, task in evaluation.tasks.items():
        count = f"{len(task.outcomes)}" if task.complete else f"{len(task.outcomes)} of {task.asked}"
        table.add_row(escape(printable(name)), escape(task.metric), *_figures(task), count)
    click.echo(f"{printable(evaluation.model)} ({printable(evaluation.runtime)})")
    console().print(table)
    if evaluation.sandbox is not None:
        click.echo(f"sandbox: {printable(evaluation.sandbox, 1000)}")
    for note in evaluation.notes:
        click.echo(f"note: {printable(note, 1000)}")
    for name, task in evaluation.tasks.items():
        for note in task.notes:
            click.echo(f"note: {printable(name)}: {printable(note, 1000)}")


def _figures(task: Any) -> tuple[str, str]:
    """Write score and interval: shares in per cent, everything else as it is."""
    if math.isnan(task.score):
        return "—", "—"
    shares = task.average == "mean" and all(0 <= o.score <= 1 for o in task.outcomes)

    def shown(value: float) -> str:
        return f"{100 * value:.2f} %" if shares else f"{value:.4g}"

    return shown(task.score), "—" if task.interval is None else " – ".join(map(shown, task.interval))
