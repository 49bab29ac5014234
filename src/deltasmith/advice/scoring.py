"""DPPA's criterion from result files: what DARE at a rate of 0.9 keeps of an expert's score, paired by question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltasmith.advice.facts import Score
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.evaluate.pairing import Sheet, align
from deltasmith.evaluate.results import Evaluation, load_evaluation
from deltasmith.evaluate.statistics import macro_difference

__all__ = ["read_scores"]

_KEEPS = 0.9
_SHAPE = "[LABEL=]EXPERT.json,PRUNED.json"


def read_scores(given: Sequence[str], labels: Sequence[str]) -> tuple[Score, ...]:
    """Read pairs of results, `[LABEL=]EXPERT.json,PRUNED.json`: the expert's, and that of DARE at a rate of 0.9 on it.

    Counts the tasks both hold whose scores lie in [0, 1] with higher better, each the same. Raises RecipeError for
    another shape or label, DamagedInputError for other files, RefusedError where no task can be paired.
    """
    return tuple(_score(text, labels) for text in given)


def _score(text: str, labels: Sequence[str]) -> Score:
    label, sign, files = text.partition("=")
    if not sign:
        label, files = (labels[0] if len(labels) == 1 else ""), text
    paths = files.split(",")
    if label not in labels or len(paths) != 2:
        raise RecipeError(
            f"--scores {printable(text)!r} is not {_SHAPE}",
            fix=f"labels are {', '.join(map(printable, labels))}",
        )
    expert, pruned = (load_evaluation(Path(path)) for path in paths)
    sheets = _sheets(expert, pruned, [Path(path).name for path in paths])
    return _kept(label, sheets)


def _sheets(expert: Evaluation, pruned: Evaluation, names: Sequence[str]) -> list[Sheet]:
    found, wrong = [], []
    for task in expert.tasks:
        if task not in pruned.tasks:
            continue
        sheet = align(task, [expert.tasks[task], pruned.tasks[task]], names, partial=False)
        if isinstance(sheet, str):
            wrong.append(sheet)
        elif sheet.proportion and sheet.sound:
            found.append(sheet)
    if wrong or not found:
        what = (
            "; ".join(wrong)
            or f"{names[0]} and {names[1]} have no task in common whose score is a share of right"
        )
        raise RefusedError(what, fix="evaluate both on the same tasks")
    return found


def _kept(label: str, sheets: Sequence[Sheet]) -> Score:
    """Divide the mean scores; the interval is that of the difference from 0.9, carried over to the share."""
    dense = float(np.mean([sheet.score(0) for sheet in sheets]))
    if dense <= 0:
        raise RefusedError(
            f"{printable(label)} answers nothing right before it is pruned", fix="use a task that it can do"
        )
    pruned = [[[sheet.scores[1]]] for sheet in sheets]
    bound = [[[_KEEPS * sheet.scores[0]]] for sheet in sheets]
    weights = [[sheet.weights] for sheet in sheets]
    found = macro_difference(pruned, bound, weights=weights)
    kept = float(np.mean([sheet.score(1) for sheet in sheets])) / dense
    low, high = (_KEEPS + end / dense for end in found.interval)
    if not (np.isfinite(low) and np.isfinite(high)):
        low = high = kept
    return Score(label, kept, low, high, tuple(sheet.task for sheet in sheets))
