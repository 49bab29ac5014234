"""What a trial asks: how good the model of a recipe is at each task. Three ways to answer it."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.evaluate.language import LanguageModel
from deltasmith.evaluate.task import Task
from deltasmith.planning.dppa_search import command_score
from deltasmith.search.answers import Answers

__all__ = ["CommandScorer", "Scored", "Scorer", "TaskScorer", "UnfitError", "shared_items"]


class UnfitError(RefusedError):
    """No model can be made with these numbers (they overflow, say); the search goes on with others."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Hold a model's score of each task, and the seconds that making the model took, of all the trial took.

    `answers` are what the scores were made of, where that is known.
    """

    scores: Mapping[str, float]
    merge_seconds: float = 0.0
    answers: Mapping[str, Answers] = field(default_factory=dict)


class Scorer(Protocol):
    """Scores the model that a recipe makes. Equal recipes must get equal scores."""

    @property
    def tasks(self) -> Mapping[str, bool]:
        """Name the tasks, and tell of each whether a higher score is a better one."""

    @property
    def digest(self) -> str:
        """Hash everything but the recipe that decides the scores."""

    def score(self, recipe: Mapping[str, Any]) -> Scored:
        """Make the model of a recipe (plain data, absolute paths) and score it.

        Raises UnfitError where these numbers make no model; any other error ends the search.
        """


@dataclass(frozen=True)
class TaskScorer:
    """Score with evaluation tasks; `open` makes a language model of a recipe, usually without writing one."""

    questions: Sequence[Task]
    open: Callable[[Mapping[str, Any]], LanguageModel]

    def __post_init__(self) -> None:
        """Refuse two tasks of one name, and none at all."""
        names = [_name(task) for task in self.questions]
        if not names:
            raise RecipeError("there is no task to score with", fix="name one with --validation")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RecipeError(f"the task {twice!r} is there twice", fix="name each task once")

    @property
    def tasks(self) -> Mapping[str, bool]:
        """Name the tasks and their directions."""
        return {_name(task): task.higher_is_better for task in self.questions}

    @property
    def digest(self) -> str:
        """Hash the tasks' names and digests."""
        told = repr([(task.name, task.metric, task.digest) for task in self.questions])
        return hashlib.sha256(told.encode()).hexdigest()

    def score(self, recipe: Mapping[str, Any]) -> Scored:
        """Answer every question of every task."""
        began = time.perf_counter()
        try:
            model = self.open(recipe)
        except RefusedError as error:
            raise UnfitError(error.what, where=error.where, fix=error.fix) from error
        merged = time.perf_counter() - began
        answers = {_name(t): Answers(tuple(t.answer(model, t.ids)), t.average) for t in self.questions}
        return Scored({name: answer.score for name, answer in answers.items()}, merged, answers)


def _name(task: Task) -> str:
    """Call a task and its validation part alike, so that their scores can be compared."""
    return task.name.removesuffix(":validation")


@dataclass(frozen=True)
class CommandScorer:
    """Write the model, run a command on its folder, and take the last line it prints as the score.

    The task is called `command`; higher is better. `argv` is run without a shell, with the folder as its last
    argument; the folder is removed afterwards. `options` are those of `api.merge`.
    """

    argv: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    scratch: Path | None = None

    @property
    def tasks(self) -> Mapping[str, bool]:
        """Name the one task."""
        return {"command": True}

    @property
    def digest(self) -> str:
        """Hash the command; what it reads is not known here."""
        return hashlib.sha256(repr(list(self.argv)).encode()).hexdigest()

    def score(self, recipe: Mapping[str, Any]) -> Scored:
        """Merge into a temporary folder and run the command there."""
        from deltasmith import api

        with tempfile.TemporaryDirectory(prefix="deltasmith-trial-", dir=self.scratch) as scratch:
            began = time.perf_counter()
            out = Path(scratch) / "model"
            try:
                api.merge(recipe, out, **self.options)
            except RefusedError as error:
                raise UnfitError(error.what, where=error.where, fix=error.fix) from error
            merged = time.perf_counter() - began
            return Scored({"command": command_score(self.argv, lambda _: out)(())}, merged)


def shared_items(one: Task, other: Task) -> list[str]:
    """Return the ids of questions of `one` that `other` asks too, under whatever id.

    Tasks of equal digest share all. Questions are compared where both tasks show them as a mapping `questions`,
    as local tasks do; of others nothing more can be told.
    """
    if one.digest == other.digest:
        return list(one.ids)
    asked = set(_contents(other).values())
    return [name for name, content in _contents(one).items() if content in asked]


def _contents(task: Task) -> dict[str, str]:
    questions = getattr(task, "questions", None)
    return {str(k): _content(q) for k, q in questions.items()} if isinstance(questions, Mapping) else {}


def _content(question: Any) -> str:
    """Write a question without its id."""
    if is_dataclass(question) and not isinstance(question, type) and hasattr(question, "id"):
        question = replace(question, id="")
    return repr(question)
