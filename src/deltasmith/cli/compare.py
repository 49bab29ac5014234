"""`deltasmith compare A.json B.json …`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deltasmith.cli.options import console, json_option, print_json, quiet_option


@click.command("compare")
@click.argument("results", nargs=-1, required=True, metavar="RESULT.json...")
@click.option("--base", metavar="FILE", help="The base model's result: adds what each model has forgotten.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    metavar="TASK=FILE",
    help="The result of a task's expert: adds score / expert's score; repeatable.",
)
@click.option(
    "--reference", metavar="N|NAME", help="What the others are compared with; default: the first result."
)
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Level of the intervals; 1 − level is what Holm's p-values must stay below.",
)
@click.option("--resamples", type=click.IntRange(100, 1_000_000), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the resampling.")
@click.option("--partial", is_flag=True, help="Compare incomplete results on what all have answered.")
@click.option("--out", metavar="FILE", help="Write the JSON document there.")
@click.option("--plot", metavar="FILE.svg|.png", help="Draw scores and intervals.")
@json_option
@quiet_option
def command(
    results: tuple[str, ...],
    base: str | None,
    experts: tuple[str, ...],
    reference: str | None,
    out: str | None,
    plot: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare RESULTS of `deltasmith evaluate` on the same questions.

    "better" and "worse" are said only where the paired interval excludes zero and the p-value, corrected for
    every difference of the table (Holm), is below 1 − level. A "tie" means that no difference was shown.
    """
    from deltasmith.evaluate.compare import compare
    from deltasmith.evaluate.results import load_evaluation

    named = dict(_expert(one) for one in experts)
    inputs = [*results, *named.values(), *([base] if base else [])]
    _check_outputs([one for one in (out, plot) if one], inputs)
    evaluations = [load_evaluation(path) for path in results]
    names = _names(results, [one.model for one in evaluations])
    found = compare(
        evaluations,
        load_evaluation(base) if base else None,
        names=names,
        experts={task: load_evaluation(path) for task, path in named.items()},
        reference=_reference(reference, names),
        **options,
    )
    if plot:
        from deltasmith.evaluate.plots import comparison

        comparison(plot, found)
    if out:
        from deltasmith.evaluate.saving import write_whole

        write_whole(Path(out), json.dumps(found.as_json(), indent=1, ensure_ascii=False).encode() + b"\n")
    if as_json:
        print_json(found.as_json())
    elif not quiet:
        _print(found)


def _expert(text: str) -> tuple[str, str]:
    task, found, path = text.partition("=")
    if not (task and found and path):
        raise click.UsageError(f"--expert {text!r} is not TASK=FILE")
    return task, path


def _check_outputs(outputs: Sequence[str], inputs: Sequence[str]) -> None:
    """Refuse to write over a result."""
    from deltasmith.errors import RefusedError

    taken = {Path(path).resolve() for path in inputs}
    for path in outputs:
        if Path(path).resolve() in taken:
            raise RefusedError(
                "the output would replace one of the results", where=path, fix="name another file"
            )


def _names(paths: Sequence[str], models: Sequence[str]) -> list[str]:
    """Call models as their results do; by the file where several bear one name."""
    return [
        model if models.count(model) == 1 else Path(path).stem
        for path, model in zip(paths, models, strict=True)
    ]


def _reference(text: str | None, names: Sequence[str]) -> int:
    if text is None:
        return 0
    if text in names:
        return names.index(text)
    if text.isdecimal() and 1 <= int(text) <= len(names):
        return int(text) - 1
    raise click.UsageError(
        f"--reference {text!r} is neither a model ({', '.join(names)}) nor 1 to {len(names)}"
    )


def _print(found: Any) -> None:
    from deltasmith.errors import printable

    screen = console()
    screen.print(_scores(found))
    if found.forgetting:
        click.echo()
        screen.print(_forgetting(found))
    click.echo()
    screen.print(_summary(found))
    click.echo()
    click.echo(
        f"[{100 * found.level:.3g} % intervals], paired by question; p after Holm's correction;"
        f" tie: no difference shown (0 inside the interval, or p not below {round(1 - found.level, 12):.3g})"
    )
    for note in found.notes:
        click.echo(f"note: {printable(note, 1000)}")


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        left = name in ("", "verdict", "worst task")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    return table


def _safe(text: str) -> str:
    from rich.markup import escape

    from deltasmith.errors import printable

    return escape(printable(text))


def _scores(found: Any) -> Any:
    """Lay out a heading for each task and a line for each model."""
    table = _table("", "score", "difference", "p", "verdict")
    for row in (*found.rows, *([found.average] if found.average else [])):
        table.add_row(_safe(f"{row.name} ({row.metric}, n={row.items})"))
        for name, score, versus in zip(found.models, row.scores, row.versus, strict=True):
            share = row.proportion
            cells = ("reference", "", "") if versus is None else _versus(versus, share)
            value = _bracket(_number(score.value, share), [_number(end, share) for end in score.interval])
            table.add_row(_indented(name), value, *cells)
    return table


def _forgetting(found: Any) -> Any:
    """Lay out what each model has lost or won against the base."""
    words = {"better": "gained", "worse": "forgotten", "tie": "tie"}
    table = _table("", "change", "p", "verdict")
    for row in found.forgetting:
        kind = ", times" if row.kind == "ratio" else ""
        table.add_row(_safe(f"{row.task} (base {_number(row.base, row.proportion)}{kind})"))
        for name, versus in zip(found.models, row.versus, strict=True):
            if versus is None:
                continue
            change, p, verdict = _versus(versus, row.proportion, ratio=row.kind == "ratio")
            table.add_row(_indented(name), change, p, words[verdict])
    return table


def _summary(found: Any) -> Any:
    """Lay out one line per model."""
    table = _table("", "mean", *(["of the experts"] if found.normalised else []), "worst", "worst task")
    for model, name in enumerate(found.models):
        mean = found.average.scores[model].value if found.average else math.nan
        task, worst = found.worst[model] or ("", math.nan)
        normalised = [f"{_number(found.normalised[model].mean, True)} %"] if found.normalised else []
        table.add_row(_safe(name), _number(mean, True), *normalised, _number(worst, True), _safe(task))
    return table


def _indented(name: str) -> Any:
    """Indent a name, also where it goes on in a second line."""
    from rich.padding import Padding

    return Padding(_safe(name), (0, 0, 0, 2))


def _versus(versus: Any, share: bool, ratio: bool = False) -> tuple[str, str, str]:
    """Write a difference with its interval, the corrected p, and the verdict."""

    def shown(value: float) -> str:
        return f"×{value:.3g}" if ratio else _number(value, share, sign="+")

    p = "<.001" if versus.adjusted < 0.001 else f"{versus.adjusted:.3f}".removeprefix("0")
    return _bracket(shown(versus.estimate), [shown(end) for end in versus.interval]), p, versus.verdict


def _number(value: float, share: bool, sign: str = "") -> str:
    """Write a share in per cent, anything else in four digits, and a dash for what is not known."""
    if math.isnan(value):
        return "—"
    return f"{100 * value:{sign}.1f}" if share else f"{value:{sign}.4g}"


def _bracket(value: str, ends: Sequence[str]) -> str:
    return value if "—" in ends or "×nan" in ends else f"{value} [{', '.join(ends)}]"
