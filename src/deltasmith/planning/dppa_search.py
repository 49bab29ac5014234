"""The greedy search for DPPA's amplification factors, one after the other, and scores from a command."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasmith.errors import RecipeError, RefusedError

__all__ = ["Visit", "best_of", "command_score", "retention", "search", "search_as_released"]

Factors = tuple[float, ...]
Score = Callable[[Factors], float]


@dataclass(frozen=True, slots=True)
class Visit:
    """One point of a search: the factors, and their score unless they were only settled on, not evaluated."""

    factors: Factors
    score: float | None


def best_of(visits: Sequence[Visit]) -> Visit:
    """Return the visit with the highest score, the first of equal ones; there must be a scored one."""
    return max((v for v in visits if v.score is not None), key=lambda v: v.score or 0.0)


def search(score: Score, start: Factors, step: float = 0.1, most: float = 10.0) -> Iterator[Visit]:
    """Climb `score` along one factor after the other in steps of `step`, yielding every point evaluated.

    Each factor rises while the score does; if the first rise does not help it falls while that helps. Factors
    stay in [0, most] and are rounded to ten decimals, so that steps do not accumulate rounding. The result is
    `best_of` the visits: a local maximum along each axis in turn, not a global one.

    Paper: Zhu et al., "DPPA" (arXiv 2403.02799), the search of the released `python_contral.py`, repaired.
    Repairs: every move is undone unless it improved (the released loop steps back only from factors above 1),
    the second factor starts where it was given (there 0 jumps to 1 and stays even when that is worse), and
    factors can fall.

    >>> [visit.factors for visit in search(lambda f: -abs(f[0] - 1.2), (1.0,))]
    [(1.0,), (1.1,), (1.2,), (1.3,)]
    """
    at = start
    best = score(at)
    yield Visit(at, best)
    for axis in range(len(start)):
        for direction in (1.0, -1.0):
            before = at
            while True:
                moved = round(at[axis] + direction * step, 10)
                if not 0.0 <= moved <= most:
                    break
                trial = (*at[:axis], moved, *at[axis + 1 :])
                value = score(trial)
                yield Visit(trial, value)
                if not value > best:
                    break
                at, best = trial, value
            if at != before:
                break


def search_as_released(score: Score, start: Factors, step: float = 0.1) -> Iterator[Visit]:
    """Visit the points of the released loop in order; after each factor yield, unscored, where it settled.

    The last visit holds the factors the loop ends with, which need not be the best it saw. Sums of steps are
    not rounded; the released script builds its models from factors printed with one decimal, which is
    `score`'s business here.

    Paper: Zhu et al. (arXiv 2403.02799), the loop of `python_contral.py`, for any number of factors.
    """
    at = list(start)
    best = 0.0
    for axis in range(len(at)):
        if axis:
            at[axis] = 1.0 if at[axis] < step else at[axis] + step
        while True:
            value = score(tuple(at))
            yield Visit(tuple(at), value)
            if not value > best:
                break
            best = value
            at[axis] += step
        if at[axis] > 1.0:
            at[axis] -= step
        yield Visit(tuple(at), None)


def retention(scores: Sequence[float], dense: Sequence[float]) -> float:
    """Return the geometric mean of scores relative to those of the dense expert: DPPA's objective.

    Scores below 0 count as 0; dense scores must be above 0.

    >>> retention([0.4, 0.1], [0.5, 0.2])
    0.6324555320336759
    """
    ratios = [max(0.0, score) / reference for score, reference in zip(scores, dense, strict=True)]
    return math.prod(ratios) ** (1.0 / len(ratios))


def command_score(argv: Sequence[str], build: Callable[[Factors], Path]) -> Score:
    """Return a score that builds a candidate, runs `argv` + [its folder] and reads the last line it prints.

    No shell is involved; what the command writes to standard error is shown as it comes.

    Raises (when called):
        RecipeError: the command cannot be started.
        RefusedError: it ends with an exit code other than 0, or its last line is not a finite number.
    """
    called = " ".join(argv)

    def score(factors: Factors) -> float:
        folder = build(factors)
        try:
            done = subprocess.run([*argv, str(folder)], stdout=subprocess.PIPE, text=True, check=False)
        except OSError as cause:
            raise RecipeError(
                f"the score command cannot be started ({cause.strerror})", where=called, fix="check its path"
            ) from cause
        if done.returncode:
            raise RefusedError(
                f"the score command ended with exit code {done.returncode}",
                where=called,
                fix="it must exit with 0 and print the score as its last line",
            )
        lines = done.stdout.split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return _number(last, called)

    return score


def _number(text: str, called: str) -> float:
    """Parse a finite number, or say what stood there."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RefusedError(
            f"the last line of the score command is {text!r}, not a finite number",
            where=called,
            fix="print the score as the last line",
        )
    return value
