"""Held-out items and their scoring: how many answers a model gets exactly right.

An answer is right when greedy decoding would spell it out and stop. One forward pass over prompt and answer
decides that: decoding follows the answer exactly when the likeliest token at every position is the next one.
Confidence intervals and comparisons are elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.llama import Llama

__all__ = ["Encoder", "Item", "Scores", "load_items", "load_suite", "score"]


class Encoder(Protocol):
    """Anything that numbers a text's tokens without adding special ones."""

    def encode(self, text: str) -> list[int]:
        """Number the tokens of `text`."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """Hold one question: the `prompt` as the model reads it, newline included, and the one right `answer`."""

    id: str
    task: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Hold for each task which items were right, in their order, so that models can be compared in pairs."""

    correct: Mapping[str, tuple[bool, ...]]

    @property
    def accuracy(self) -> dict[str, float]:
        """Divide the right answers of each task by its items."""
        return {task: sum(right) / len(right) for task, right in self.correct.items()}

    @property
    def mean(self) -> float:
        """Average the accuracies, each task counting the same."""
        accuracy = self.accuracy
        return sum(accuracy.values()) / len(accuracy)


def load_items(path: Path | str) -> list[Item]:
    """Read one JSON object per line with the fields of `Item`; blank lines are passed over.

    Raises DamagedInputError naming the file and line where a line is no such object or an id comes twice.
    """
    items: dict[str, Item] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = Item(**{key: str(value) for key, value in json.loads(line).items()})
        except (ValueError, TypeError, AttributeError) as cause:
            raise DamagedInputError(
                "this line is no item",
                where=f"{path}:{number}",
                fix="write an object with id, task, prompt and answer",
            ) from cause
        if item.id in items:
            raise DamagedInputError(
                f"the id {item.id!r} comes twice", where=f"{path}:{number}", fix="give each item its own id"
            )
        items[item.id] = item
    return list(items.values())


def load_suite(folder: Path | str, tasks: Sequence[str], validation: bool = False) -> list[Item]:
    """Read `TASK.jsonl`, or `validation_TASK.jsonl`, of each task from `folder` into one list."""
    prefix = "validation_" if validation else ""
    return [item for task in tasks for item in load_items(Path(folder) / f"{prefix}{task}.jsonl")]


def score(model: Llama, encoder: Encoder, items: Iterable[Item], batch: int = 40) -> Scores:
    """Mark each item right or wrong with one forward pass per `batch` of items (at least 1).

    `<bos>` and `<eos>` come from the model's config; an answer counts only if the model also stops after it.
    Raises DamagedInputError for a config without those ids.
    """
    bos, eos = model.config.get("bos_token_id"), model.config.get("eos_token_id")
    if not isinstance(bos, int) or not isinstance(eos, int):
        raise DamagedInputError(
            f"bos_token_id is {bos!r} and eos_token_id is {eos!r}",
            where="config.json",
            fix="give one id for each",
        )
    items = list(items)
    prompts = [[bos, *encoder.encode(item.prompt)] for item in items]
    answers = [[*encoder.encode(item.answer), eos] for item in items]
    right = [False] * len(items)
    # Neighbours in length share a batch, so that little is spent on padding.
    order = sorted(range(len(items)), key=lambda index: len(prompts[index]) + len(answers[index]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        marks = _mark(model, [prompts[index] for index in chosen], [answers[index] for index in chosen])
        for index, mark in zip(chosen, marks, strict=True):
            right[index] = bool(mark)
    correct: dict[str, list[bool]] = {}
    for item, mark in zip(items, right, strict=True):
        correct.setdefault(item.task, []).append(mark)
    return Scores({task: tuple(marks) for task, marks in correct.items()})


def _mark(model: Llama, prompts: list[list[int]], answers: list[list[int]]) -> NDArray[np.bool_]:
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)) - 1
    tokens = np.zeros((len(prompts), length), dtype=np.int64)
    gold = np.full((len(prompts), length), -1, dtype=np.int64)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(prompt) + len(answer) - 1] = [*prompt, *answer[:-1]]
        gold[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = answer
    wanted = gold >= 0
    hits = model.logits_at(tokens, wanted).argmax(axis=1) == gold[wanted]
    fine = np.ones(wanted.shape, dtype=np.bool_)
    fine[wanted] = hits
    return np.asarray(fine.all(axis=1), dtype=np.bool_)
