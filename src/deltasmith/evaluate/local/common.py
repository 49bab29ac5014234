"""What all local tasks share: their options, and a table of questions by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from deltasmith.errors import RecipeError
from deltasmith.evaluate.language import LanguageModel
from deltasmith.evaluate.task import Average, Outcome

if TYPE_CHECKING:
    from deltasmith.evaluate.sandbox import Limits, Tier

__all__ = ["LocalTask", "Options", "mean_of", "percent", "prompts_for"]

Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class Options:
    """Hold what a user may ask of local tasks; a kind passes over what it has no use for.

    `limit`: the first N questions (at least 1). `shots`: worked examples before each question (None: the kind's
    own number). `train`: the file GSM8K's examples come from. `chat`: lay prompts out with the model's chat
    template. `max_tokens`: tokens a generation may have. `window`: characters of one piece of a text (at
    least 100). `per_paradigm`: the first N pairs of each BLiMP paradigm. `split`: which of MBPP's questions,
    `test` (ids 11 to 510) or `all`. `tier` and `limits`: the sandbox for generated code.
    Raises RecipeError for a number out of range.
    """

    limit: int | None = None
    shots: int | None = None
    train: Path | str | None = None
    chat: bool = False
    max_tokens: int | None = None
    window: int | None = None
    per_paradigm: int | None = None
    split: str = "test"
    tier: Tier | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        least = {"limit": 1, "shots": 0, "max_tokens": 1, "window": 100, "per_paradigm": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise RecipeError(f"{name} is {value}", fix=f"give at least {low}")
        if self.split not in ("test", "all"):
            raise RecipeError(f"split is {self.split!r}", fix="write test or all")

    def first(self, questions: Mapping[str, Q]) -> dict[str, Q]:
        """Keep the first `limit` questions."""
        return dict(islice(questions.items(), self.limit))


@dataclass(frozen=True)
class LocalTask(Generic[Q]):
    """Hold a task's name, its file, its digest and its questions; a kind adds `load`, `answer` and its metric."""

    metric: ClassVar[str]
    average: ClassVar[Average] = "mean"
    higher_is_better: ClassVar[bool] = True
    heeds: ClassVar[tuple[str, ...]] = ()
    """Which of `shots`, `train`, `chat` and `max_tokens` change anything."""

    name: str
    source: str
    digest: str
    questions: Mapping[str, Q]

    @property
    def ids(self) -> Sequence[str]:
        """Return the questions' ids in order."""
        return tuple(self.questions)

    @classmethod
    def load(cls, path: Path | str, options: Options) -> LocalTask[Q]:
        """Read the questions from a file."""
        raise NotImplementedError

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Answer the named questions, in their order."""
        raise NotImplementedError

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Say what the score alone does not: further figures of the outcomes, and departures."""
        return ()


def prompts_for(model: LanguageModel, prompts: Sequence[str], chat: bool) -> list[str]:
    """Lay the prompts out for the model: as they are, or each as one message of a chat."""
    return [model.chat(prompt) for prompt in prompts] if chat else list(prompts)


def mean_of(outcomes: Sequence[Outcome], key: str) -> float:
    """Average one number of the details over the outcomes that count. NaN without any."""
    values: list[Any] = [outcome.detail[key] for outcome in outcomes if outcome.weight]
    return sum(values) / len(values) if values else float("nan")


def percent(fraction: float) -> str:
    """Write a fraction for people.

    >>> percent(0.125)
    '12.5 %'
    """
    return f"{100 * fraction:.1f} %"
