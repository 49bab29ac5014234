"""Compare evaluations on the same questions: differences, intervals, and verdicts that the data support.

Nothing here runs a model. Terminal tables are in `deltasmith.cli.compare`, pictures in `deltasmith.evaluate.plots`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltasmith.errors import DamagedInputError, RecipeError, RefusedError
from deltasmith.evaluate.pairing import Sheet, align
from deltasmith.evaluate.results import Evaluation
from deltasmith.evaluate.statistics import (
    Difference,
    bootstrap_interval,
    macro_difference,
    macro_interval,
    paired_difference,
)
from deltasmith.evaluate.verdicts import Comparison, Estimate, Forgetting, Normalised, Row, Versus, judge

__all__ = ["compare"]


@dataclass(frozen=True, slots=True)
class _Gathered:
    """The evaluations under the names they are listed by, how they are compared, and what is to be said of it."""

    evaluations: Sequence[Evaluation]
    names: Sequence[str]
    reference: int
    partial: bool
    options: Mapping[str, Any]  # level, resamples, seed
    notes: list[str]


def compare(
    evaluations: Sequence[Evaluation],
    base: Evaluation | None = None,
    *,
    names: Sequence[str] | None = None,
    experts: Mapping[str, Evaluation] | None = None,
    reference: int = 0,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    partial: bool = False,
) -> Comparison:
    """Compare each evaluation with the one at `reference`, task by task and on average, paired by question.

    A model is "better" or "worse" only if the paired interval at `level` excludes zero and the p-value, Holm
    adjusted over every difference of the table, is below 1 − level; everything else is a "tie", which means that
    no difference was shown, not that there is none. p is exact McNemar for 0/1 scores, else a bootstrap's.

    The average counts tasks the same and takes those alone whose scores lie in [0, 1] with higher better;
    perplexities stand apart. `base` adds what each model has lost against it (for perplexity a ratio), with Holm
    over those; `experts`, an evaluation by task, adds score / expert's score. `partial` compares incomplete
    evaluations on the questions that all have answered. `names` default to the models' own.

    Raises RefusedError, naming all of them at once, for tasks whose questions, weights or metrics differ, for
    incomplete ones without `partial`, and where no task is common; RecipeError for a reference, level or number
    of resamples that does not exist; DamagedInputError for scores that are not finite.
    """
    _check(evaluations, reference, level, resamples)
    options = {"level": level, "resamples": resamples, "seed": seed}
    listed = _distinct(names or [one.model for one in evaluations])
    given = _Gathered(evaluations, listed, reference, partial, options, [])
    common = _common(given)
    sheets = _sheets(given, common)
    averaged = [sheet for sheet in sheets if sheet.proportion]
    rows, average = _table(given, sheets, averaged)
    normalised = _normalised(given, averaged, experts or {})
    forgetting = _forgetting(given, common, base)
    _remark(given, sheets, rows)
    return Comparison(
        models=tuple(listed),
        reference=reference,
        level=level,
        resamples=resamples,
        seed=seed,
        rows=rows,
        average=average,
        averaged=tuple(sheet.task for sheet in averaged),
        worst=_worst(averaged, len(evaluations)),
        normalised=normalised,
        forgetting=forgetting,
        notes=tuple(given.notes),
    )


def _check(evaluations: Sequence[Evaluation], reference: int, level: float, resamples: int) -> None:
    if not evaluations:
        raise RecipeError("there is nothing to compare", fix="give at least one result")
    if not 0 <= reference < len(evaluations):
        raise RecipeError(f"there is no model number {reference + 1}", fix=f"give 1 to {len(evaluations)}")
    if not 0 < level < 1 or resamples < 1:
        raise RecipeError(
            f"the level is {level} with {resamples} resamples",
            fix="give a level between 0 and 1 and at least 1 resample",
        )


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the second and further models of one name."""
    found: list[str] = []
    for name in names:
        number, distinct = 1, name
        while distinct in found:
            number += 1
            distinct = f"{name} ({number})"
        found.append(distinct)
    return found


def _common(given: _Gathered) -> list[str]:
    """List the tasks all evaluations hold, in the first one's order; note which are left out."""
    every = list(dict.fromkeys(task for one in given.evaluations for task in one.tasks))
    common = [task for task in every if all(task in one.tasks for one in given.evaluations)]
    if not common:
        raise RefusedError(
            f"no task is in all {len(given.evaluations)} results (found: {', '.join(every) or 'none'})",
            fix="evaluate the models on the same tasks",
        )
    for task in every:
        named = zip(given.names, given.evaluations, strict=True)
        lacking = [name for name, one in named if task not in one.tasks]
        if lacking:
            given.notes.append(f"task {task} is left out: there is no result of {', '.join(lacking)}")
    return common


def _sheets(
    given: _Gathered, tasks: Sequence[str], other: tuple[str, Evaluation] | None = None
) -> list[Sheet]:
    """Pair every task, with an `other` evaluation as the last model; refuse at once all that cannot be paired."""
    evaluations, names = list(given.evaluations), list(given.names)
    if other is not None:
        names, evaluations = [*names, other[0]], [*evaluations, other[1]]
    aligned = [align(task, [one.tasks[task] for one in evaluations], names, given.partial) for task in tasks]
    problems = [one for one in aligned if isinstance(one, str)]
    if problems:
        unlike = any(len({one.tasks[task].digest for one in evaluations}) > 1 for task in tasks)
        fix = "evaluate them with the same file, --limit and --shots" if unlike else ""
        raise RefusedError("; ".join(problems), fix=fix)
    sheets = [one for one in aligned if isinstance(one, Sheet)]
    for sheet in sheets:
        if not sheet.sound:
            raise DamagedInputError(
                "scores or weights are not finite, or no weight is positive",
                where=f"task {sheet.task} of {', '.join(names)}",
                fix="evaluate the models again",
            )
    return sheets


def _table(
    given: _Gathered, sheets: Sequence[Sheet], averaged: Sequence[Sheet]
) -> tuple[tuple[Row, ...], Row | None]:
    """Score every model on every task and on average, and judge all differences together."""
    rows = [_row(given, sheet) for sheet in sheets]
    differences: list[Sequence[Difference | None]] = [_differences(given, sheet) for sheet in sheets]
    if len(averaged) > 1:
        average, over = _average(given, averaged)
        rows, differences = [*rows, average], [*differences, over]
    verdicts = judge(differences, [row.higher_is_better for row in rows], given.options["level"])
    judged = [replace(row, versus=versus) for row, versus in zip(rows, verdicts, strict=True)]
    return tuple(judged[: len(sheets)]), (judged[-1] if len(averaged) > 1 else None)


def _row(given: _Gathered, sheet: Sheet) -> Row:
    scores = [
        Estimate(
            sheet.score(model),
            bootstrap_interval(scores, sheet.weights, sheet.average, **given.options),
        )
        for model, scores in enumerate(sheet.scores)
    ]
    return Row(
        name=sheet.task,
        metric=sheet.metric,
        items=sheet.items,
        asked=sheet.asked,
        higher_is_better=sheet.higher_is_better,
        proportion=sheet.proportion,
        scores=tuple(scores),
        versus=(),
    )


def _differences(given: _Gathered, sheet: Sheet) -> list[Difference | None]:
    own = sheet.scores[given.reference]
    return [
        None
        if model == given.reference
        else paired_difference(scores, own, sheet.weights, sheet.average, **given.options)
        for model, scores in enumerate(sheet.scores)
    ]


def _average(given: _Gathered, sheets: Sequence[Sheet]) -> tuple[Row, list[Difference | None]]:
    """Average over tasks, each counting the same."""
    weights = [[sheet.weights] for sheet in sheets]
    models = [[[[sheet.scores[model]]] for sheet in sheets] for model in range(len(given.evaluations))]
    scores = [
        Estimate(
            math.fsum(sheet.score(model) for sheet in sheets) / len(sheets),
            macro_interval(tasks, weights=weights, **given.options),
        )
        for model, tasks in enumerate(models)
    ]
    differences = [
        None
        if model == given.reference
        else macro_difference(tasks, models[given.reference], weights=weights, **given.options)
        for model, tasks in enumerate(models)
    ]
    row = Row(
        name="average",
        metric="mean over tasks",
        items=sum(sheet.items for sheet in sheets),
        asked=sum(sheet.asked for sheet in sheets),
        higher_is_better=True,
        proportion=True,
        scores=tuple(scores),
        versus=(),
    )
    return row, differences


def _worst(sheets: Sequence[Sheet], models: int) -> tuple[tuple[str, float] | None, ...]:
    """Name each model's worst task among those averaged, the first of equals."""
    found = ([(sheet.task, sheet.score(model)) for sheet in sheets] for model in range(models))
    return tuple(min(scores, key=lambda one: one[1]) if scores else None for scores in found)


def _normalised(
    given: _Gathered, averaged: Sequence[Sheet], experts: Mapping[str, Evaluation]
) -> tuple[Normalised, ...]:
    """Divide each model's score by that of the task's expert, on the same questions."""
    if not experts:
        return ()
    known = [sheet.task for sheet in averaged]
    strange = [task for task, expert in experts.items() if task not in known or task not in expert.tasks]
    if strange:
        raise RefusedError(
            f"no expert's score can be used for {', '.join(strange)}",
            fix="name tasks that the expert's result holds and that are in the average"
            f" ({', '.join(known) or 'there are none'})",
        )
    shares: list[dict[str, float]] = [{} for _ in given.evaluations]
    for task in (task for task in known if task in experts):
        (sheet,) = _sheets(given, [task], (f"the expert {experts[task].model}", experts[task]))
        whole = sheet.score(len(shares))
        if whole <= 0:
            given.notes.append(f"the normalised average leaves out {task}: its expert scores 0")
            continue
        for model, found in enumerate(shares):
            found[task] = sheet.score(model) / whole
    missing = [task for task in known if task not in experts]
    if missing:
        given.notes.append(f"the normalised average leaves out {', '.join(missing)}: no expert was named")
    return tuple(
        Normalised(found, math.fsum(found.values()) / len(found) if found else math.nan) for found in shares
    )


def _forgetting(given: _Gathered, tasks: Sequence[str], base: Evaluation | None) -> tuple[Forgetting, ...]:
    """Compare every model with the base: differences of scores, ratios of perplexities."""
    if base is None:
        return ()
    lacking = [task for task in tasks if task not in base.tasks]
    if lacking:
        given.notes.append(
            f"forgetting is not known for {', '.join(lacking)}: the base's result has no such task"
        )
    shared = [task for task in tasks if task in base.tasks]
    sheets = _sheets(given, shared, (f"the base {base.model}", base))
    others = [not base.fingerprint or one.fingerprint != base.fingerprint for one in given.evaluations]
    # Of losses too the plain mean is compared: its exponential is the ratio of the perplexities.
    differences = [
        [
            paired_difference(scores, sheet.scores[-1], sheet.weights, "mean", **given.options)
            if other
            else None
            for scores, other in zip(sheet.scores, others, strict=False)
        ]
        for sheet in sheets
    ]
    verdicts = judge(differences, [sheet.higher_is_better for sheet in sheets], given.options["level"])
    return tuple(
        Forgetting(
            task=sheet.task,
            kind="ratio" if sheet.average == "perplexity" else "difference",
            proportion=sheet.proportion,
            base=sheet.score(len(others)),
            versus=tuple(_exponential(one) if sheet.average == "perplexity" and one else one for one in row),
        )
        for sheet, row in zip(sheets, verdicts, strict=True)
    )


def _exponential(versus: Versus) -> Versus:
    low, high = versus.interval
    return replace(versus, estimate=math.exp(versus.estimate), interval=(math.exp(low), math.exp(high)))


def _remark(given: _Gathered, sheets: Sequence[Sheet], rows: Sequence[Row]) -> None:
    """Note what a reader should know before believing the table."""
    for sheet, row in zip(sheets, rows, strict=True):
        if sheet.items < sheet.asked:
            given.notes.append(
                f"task {sheet.task}: {sheet.items} of {sheet.asked} questions, those that all have answered"
            )
        if any(math.isnan(score.interval[0]) for score in row.scores):
            given.notes.append(f"task {sheet.task}: no interval where scores do not differ, or there is one")
    runtimes = list(dict.fromkeys(one.runtime for one in given.evaluations))
    if len(runtimes) > 1:
        given.notes.append(f"the models were run by different means: {'; '.join(runtimes)}")
    owners: dict[str, str] = {}
    for name, one in zip(given.names, given.evaluations, strict=True):
        same = owners.setdefault(one.fingerprint, name)
        if one.fingerprint and same != name:
            given.notes.append(f"{name} and {same} are the same model")
    level, resamples = given.options["level"], given.options["resamples"]
    count = (len(rows) + 1) * (len(given.evaluations) - 1)
    if 2 * count / (resamples + 1) >= round(1 - level, 12):
        given.notes.append(
            f"{resamples} resamples are too few for a bootstrap's p-value to pass Holm's correction here"
        )
