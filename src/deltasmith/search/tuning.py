"""`tune`: from a recipe with marks to the numbers that score best, and what to think of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasmith import __version__, api
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, RefusedError
from deltasmith.recipe.tree import plain
from deltasmith.search.answers import Interval, intervals_of
from deltasmith.search.dpa import climb_of
from deltasmith.search.edges import edge_warnings
from deltasmith.search.marked import MarkedRecipe, load_marked
from deltasmith.search.objectives import Objective, objectives_of
from deltasmith.search.outcome import TrialResult, Tuned, balanced, best_of, front_of
from deltasmith.search.running import Listener, Notice, Search
from deltasmith.search.scoring import Scorer, UnfitError
from deltasmith.search.settings import Settings, require_extra

__all__ = ["tune"]

Scores = Mapping[str, float]
_Test = tuple[Scores | None, Mapping[str, Interval]]
"""Scores on the test set, and their intervals."""


def tune(
    recipe: str | Path | Mapping[str, Any],
    validation: Scorer,
    *,
    test: Scorer | None = None,
    settings: Settings | None = None,
    storage: Path | None = None,
    overrides: Sequence[str] = (),
    stop: Stop | None = None,
    listener: Listener | None = None,
    claim: Callable[[str], None] | None = None,
    notice: Notice | None = None,
) -> Tuned:
    """Search for the numbers that a recipe marks: make and score the model of one trial after the other.

    `validation` scores the trials. `test` scores, at the end, the best trial and the recipe without its marks,
    where it is complete without them. With a `storage` file the same call goes on where an earlier one was
    killed, or had fewer trials to do. A search belongs to recipe, models, validation, sampler, objectives and
    seed; where any of them has changed, another search is begun in the same file, and a warning says so.
    `listener` hears of every trial that is done, and `notice` of what should be known before the first one.
    `claim` gets the search's digest before anything is kept; what it raises ends the call.

    Equal seeds visit equal numbers, resumed or not, as long as the scores are equal too, and the versions of
    Optuna and cmaes.

    Raises what reading and planning the recipe raises (RecipeError, RefusedError, DamagedInputError, …),
    MissingExtraError without the extra `search`, and InterruptedRunError once `stop` is asked. An error of the
    scorer ends the search; the trial is taken up again by the next call.
    """
    chosen = settings or Settings()
    goals = objectives_of(chosen.goals, validation.tasks)
    given = load_marked(recipe, overrides)
    climb = climb_of(given) if chosen.sampler == "dpa" else None
    default, marked = (given.default(), given) if climb is None else (given, climb.marked)
    marked.check_ends()
    _refuse_unfit(chosen, marked, goals)
    require_extra(chosen.sampler)
    from deltasmith.search.samplers import sampler_of
    from deltasmith.search.study import opened

    digest = _digest(marked, validation, chosen)
    if claim is not None:
        claim(digest)
    directions = [goal.maximise for goal in goals]
    sampler = sampler_of(chosen.sampler, chosen.seed)
    with opened(storage, digest, marked.dimensions, directions, sampler) as trials:
        search = Search(marked, validation, goals, trials, chosen, stop or Stop(), listener, notice)
        if trials.others and not trials.finished:
            search.warn(
                f"a new search is begun; {trials.others} in {storage} had another recipe, models, tasks or settings"
            )
        search.run(climb)
        return _result(search, default, test, digest)


def _refuse_unfit(chosen: Settings, marked: MarkedRecipe, goals: Sequence[Objective]) -> None:
    if chosen.sampler == "cmaes" and len(marked.dimensions) < 2:
        raise RecipeError("CMA-ES needs at least two marks", fix="use --sampler tpe")
    if chosen.sampler == "dpa" and not goals[0].maximise:
        what = f"the DPA search climbs, and lower scores are better for {goals[0].name}"
        raise RecipeError(what, fix="name another --objective")


def _digest(marked: MarkedRecipe, validation: Scorer, chosen: Settings) -> str:
    """Hash all that a search depends on; the models by name, size and time of their files.

    Planning also refuses, before the first trial, what no trial could do.
    """
    planned = api.plan(marked.mapping(marked.inside()))
    files = []
    for label, model in planned.built.inputs():
        for source in model.files:
            status = Path(source.path).stat()
            files.append((label, source.name, status.st_size, status.st_mtime_ns))
    points = chosen.grid_points if chosen.sampler == "grid" else None
    searched = [chosen.sampler, list(chosen.goals), chosen.seed, points]
    told = [__version__, plain(marked.root), files, validation.digest, dict(validation.tasks), searched]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _result(search: Search, default: MarkedRecipe | None, test: Scorer | None, digest: str) -> Tuned:
    """Choose the best trial, score the default and the test set, and collect what to be wary of."""
    finished, goals = search.trials.finished, search.goals
    front = front_of(finished, goals) if len(goals) > 1 else ()
    best = balanced(front, goals) if front else _settled(search) or best_of(finished, goals[0])
    if best is None:
        raise RefusedError(
            f"no model could be made in {len(finished)} trials", fix=f"the last one: {finished[-1].refused}"
        )
    untuned = None if default is None else default.mapping({})
    on_validation = None
    best_on_test: _Test = (None, {})
    on_test: _Test = (None, {})
    if untuned is not None:
        on_validation = _untuned(search, untuned)
        untuned = None if on_validation is None else untuned
    if test is not None:
        best_on_test, on_test = _tested(search, best, untuned, test)
    warnings = [*search.warnings, *_refusals(finished), *_overtaken(best, on_validation, goals)]
    if search.settled is None:  # the released search has no ends
        warnings += edge_warnings(search.marked, best.values)
    return Tuned(
        marked=search.marked,
        objectives=goals,
        sampler=search.settings.sampler,
        seed=search.settings.seed,
        best=best,
        trials=finished,
        ran=search.ran,
        front=front,
        default=on_validation,
        test=best_on_test[0],
        default_test=on_test[0],
        test_intervals=best_on_test[1],
        default_test_intervals=on_test[1],
        dense=search.dense,
        importance=search.trials.importance(),
        warnings=tuple(warnings),
        digest=digest,
    )


def _untuned(search: Search, recipe: Mapping[str, Any]) -> Scores | None:
    """Score the recipe without its marks; None, and a warning, where it makes no model."""
    try:
        scores: Scores = search.kept("default", lambda: search.scores(search.scorer, recipe))
    except UnfitError as error:
        search.warnings.append(f"without the marks the recipe makes no model: {error}")
        return None
    return scores


def _overtaken(best: TrialResult, default: Scores | None, goals: Sequence[Objective]) -> Iterator[str]:
    """Warn where the recipe without its marks is better than the best that was found."""
    if default is None or len(goals) > 1:
        return
    (goal,), (found,), untuned = goals, best.figures, goals[0].of(default)
    if untuned > found if goal.maximise else untuned < found:
        yield (
            f"without its marks the recipe has a better {goal.name} on validation ({untuned:.4g}) than the best"
            f" trial ({found:.4g}); search longer, or elsewhere"
        )


def _settled(search: Search) -> TrialResult | None:
    """Return the trial whose factors the released DPA search ended with, best or not."""
    if search.settled is None:
        return None
    wanted = dict(zip((d.name for d in search.marked.dimensions), search.settled, strict=True))
    found = (t for t in search.trials.finished if t.figures and dict(t.values) == wanted)
    return next(found, None)


def _tested(
    search: Search, best: TrialResult, untuned: Mapping[str, Any] | None, test: Scorer
) -> tuple[_Test, _Test]:
    """Score the best trial and the default on the test set, each once in the life of the search."""
    key, spread = f"test {test.digest}", f"test intervals {test.digest}"
    seen: dict[str, dict[str, float]] = search.trials.note(key) or {}
    intervals: dict[str, dict[str, Interval]] = search.trials.note(spread) or {}

    def once(name: str, make: Callable[[], Mapping[str, Any]]) -> _Test:
        if name not in seen:
            scored = search.scored(test, make())
            seen[name], intervals[name] = dict(scored.scores), intervals_of(scored.answers)
            search.trials.keep(spread, intervals)
            search.trials.keep(key, seen)
        return seen[name], {task: (low, high) for task, (low, high) in intervals.get(name, {}).items()}

    # The storage counts trials from 0.
    tested = once(str(best.number - 1), lambda: search.marked.mapping(best.values))
    default: _Test = (None, {}) if untuned is None else once("default", lambda: untuned)
    looks = len(set(seen) - {"default"})
    if looks > 1:
        search.warnings.append(
            f"the test set has scored {looks} bests of this search by now, so its score is not that of a single look"
        )
    return tested, default


def _refusals(finished: Sequence[TrialResult]) -> Iterator[str]:
    refused = [trial for trial in finished if not trial.figures]
    if refused:
        yield f"{len(refused)} of {len(finished)} trials made no model; trial {refused[0].number}: {refused[0].refused}"
