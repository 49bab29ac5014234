"""A family on the bench: one training seed in one regime, its items, and models merged and scored in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith import api
from deltasmith.engine.columns import EditedColumns
from deltasmith.evaluate.items import Item, score
from deltasmith.evaluate.llama import Llama, load_folder, read_tensors
from deltasmith.lab import tasks as generator
from deltasmith.lab.rows import Marks
from deltasmith.lab.tokens import CharTokenizer
from deltasmith.table.checkpoint import Floats

__all__ = ["HELD_OUT", "Bench", "held_out_items"]

HELD_OUT: Mapping[generator.Split, int] = {"test": 300, "validation": 100}
"""Items a task: the test set is for tables alone, everything that is chosen is chosen on the validation set."""

Tensors = Mapping[str, Floats]


def held_out_items(task: str, split: generator.Split, seed: int, count: int) -> list[Item]:
    """Generate the first `count` items of a split; a shorter list is a front of a longer one."""
    examples = generator.held_out(task, split, count, seed)
    return [Item(f"{task}-{split}-{n:03d}", task, f"{e.prompt}\n", e.answer) for n, e in enumerate(examples)]


@dataclass(frozen=True)
class Bench:
    """The models under `folder` (`base`, `REGIME/TASK`) that one training seed has brought forth."""

    folder: Path
    train_seed: int
    regime: str
    tasks: tuple[str, ...]
    held_out: Mapping[generator.Split, int] = field(default_factory=lambda: HELD_OUT)
    columns: EditedColumns = field(default_factory=lambda: EditedColumns(1 << 30), repr=False)
    _items: dict[tuple[str, generator.Split], list[Item]] = field(default_factory=dict, repr=False)

    @property
    def keys(self) -> dict[str, Any]:
        """Return what every row of this bench has among its keys."""
        return {"train_seed": self.train_seed, "mask_seed": 0, "regime": self.regime}

    @property
    def base(self) -> Path:
        """Return the folder all experts started from."""
        return self.folder / "base"

    def expert(self, task: str) -> Path:
        """Return the folder of one task's expert."""
        return self.folder / self.regime / task

    @cached_property
    def _like(self) -> Llama:
        return load_folder(self.base)

    @cached_property
    def _encoder(self) -> CharTokenizer:
        return CharTokenizer.load(self.base)

    def recipe(self, tasks: Sequence[str], **fields: Any) -> dict[str, Any]:
        """Return the recipe that merges the experts of `tasks`; `fields` are its other keys."""
        models = [{"model": str(self.expert(task)), "label": task} for task in tasks]
        return {"base": str(self.base), "models": models, **fields}

    def merged(self, recipe: Mapping[str, Any]) -> dict[str, Floats]:
        """Carry out a recipe in memory, rounded as a written model would be."""
        return api.compute(recipe, columns=self.columns, threads=1).arrays()

    def tensors(self, folder: Path) -> dict[str, Floats]:
        """Read a model as it is."""
        return read_tensors(folder)

    def items(self, task: str, split: generator.Split) -> list[Item]:
        """Return the held-out items of a task; they belong to the training seed."""
        key = (task, split)
        if key not in self._items:
            self._items[key] = held_out_items(task, split, self.train_seed, self.held_out[split])
        return self._items[key]

    def marks(self, tensors: Tensors, tasks: Sequence[str], split: generator.Split) -> dict[str, Marks]:
        """Ask a model the items of `tasks`: which answers are right, by task."""
        model = Llama.from_tensors(self._like.config, tensors)
        items = [item for task in tasks for item in self.items(task, split)]
        right = score(model, self._encoder, items, batch=20).correct
        return {task: np.asarray(marks, np.bool_) for task, marks in right.items()}

    def mean(self, tensors: Tensors, tasks: Sequence[str], split: generator.Split) -> float:
        """Average the accuracies over `tasks`, each counting the same."""
        return float(np.mean([marks.mean() for marks in self.marks(tensors, tasks, split).values()]))
