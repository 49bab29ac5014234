"""Tasks that answer one question in several steps, and want each step remembered."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from deltasmith.evaluate.language import LanguageModel
from deltasmith.evaluate.task import Outcome

__all__ = ["Memory", "Session", "Streamed", "fixed_chunks"]


class Memory(Protocol):
    """Remember the answers to single requests across interruptions; answers are plain JSON and never None."""

    def get(self, request: str) -> Any | None:
        """Return an answer, or None."""

    def put(self, request: str, answer: Any) -> None:
        """Remember an answer."""


@dataclass(frozen=True)
class Session:
    """Hold what a task may know of the evaluation around it: the model's name, all chosen questions, a memory."""

    model: str
    chosen: Sequence[str]
    memory: Memory


@runtime_checkable
class Streamed(Protocol):
    """What a task has beside `Task`'s members if it yields outcomes when they are ready, in any order."""

    def memory_digest(self) -> str:
        """Hash what decides the answer to a remembered request, beside its text."""

    def steps(self, ids: Sequence[str]) -> int:
        """Count the requests and outcomes that `stream` will put and yield (0: unknown)."""

    def stream(self, model: LanguageModel, session: Session, ids: Sequence[str]) -> Iterator[list[Outcome]]:
        """Yield the outcomes of `ids`."""


def fixed_chunks(ids: Sequence[str], size: int, missing: Collection[str]) -> Iterator[Sequence[str]]:
    """Cut `ids` into chunks of `size` and yield those that hold anything of `missing`, whole.

    A model's sums depend in their last bits on what else is in a batch: a chunk that was interrupted is answered
    again as it was, so that a resumed evaluation gives exactly the scores of an undisturbed one.
    """
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        if any(name in missing for name in chunk):
            yield chunk
