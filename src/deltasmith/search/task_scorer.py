"""A scorer from the names of tasks, as `evaluate` reads them; validation and test are kept apart here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.evaluate.language import LanguageModel
from deltasmith.evaluate.request import Request, prepare, split_specs
from deltasmith.search.scoring import TaskScorer, shared_items

if TYPE_CHECKING:
    from deltasmith.engine.columns import EditedColumns

__all__ = ["refuse_shared", "task_scorer"]

_UNSUITED = ("alpaca", "annotations")


def task_scorer(
    specs: Sequence[str],
    *,
    columns: EditedColumns | None = None,
    memory: int | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> TaskScorer:
    """Read tasks by their names, and merge the recipes they are to score in memory.

    `options` are fields of `evaluate.request.Request`; `columns` keeps edited deltas from one trial to the next.
    Raises RecipeError for names that stand for no task, and for tasks that need a judge.
    """
    for spec in split_specs(specs):
        if spec.partition("=")[0] in _UNSUITED:
            raise RecipeError(f"{printable(spec)} cannot score trials", fix="name a task that needs no judge")
    stopper = stop or Stop()
    request = Request(source="recipe.yaml", tasks=tuple(specs), **options)
    prepared = prepare(request, lambda: stopper.asked)
    given: dict[str, Any] = {"device": request.device, "runtime": request.runtime, "batch": request.batch}
    given |= {"threads": request.threads, "columns": columns, "stop": stopper}
    given |= {} if memory is None else {"memory": memory}

    def opened(recipe: Mapping[str, Any]) -> LanguageModel:
        from deltasmith.evaluate.models.opening import open_language_model

        return open_language_model(recipe, **given).model

    return TaskScorer(prepared.tasks, opened)


def refuse_shared(validation: TaskScorer, test: TaskScorer) -> None:
    """Raise RefusedError where a question of the validation set is in the test set too."""
    for task in validation.questions:
        for other in test.questions:
            if shared := shared_items(task, other):
                raise RefusedError(
                    f"validation and test share {len(shared)} of the {len(task.ids)} questions of {task.name}"
                    f" (first {printable(shared[0], 60)!r})",
                    fix="a test set must hold nothing that the search has seen; give other questions",
                )
