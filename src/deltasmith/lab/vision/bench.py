"""A vision family on the bench: its models merged in memory, its pictures named, its Gram matrices collected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith import api
from deltasmith.engine.columns import EditedColumns
from deltasmith.errors import DamagedInputError, MissingExtraError, RefusedError
from deltasmith.lab.rows import Marks
from deltasmith.lab.vision import TASKS
from deltasmith.lab.vision.data import Pictures, Split, digest, load_pictures
from deltasmith.lab.vision.vit import VitShape, features, outcomes
from deltasmith.table.checkpoint import Floats

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VisionBench", "open_bench", "write_grams"]

Tensors = Mapping[str, Floats]

GRAM_PICTURES = 256
"""Training pictures of each task that RegMean's statistics are taken from; as many for every task."""


@dataclass(frozen=True)
class VisionBench:
    """The models under `folder` (`base`, `experts/TASK`) of one training seed, their heads and pictures."""

    folder: Path
    train_seed: int
    shape: VitShape
    pictures: Mapping[str, Pictures]
    heads: Mapping[str, Tensor]
    columns: EditedColumns = field(default_factory=lambda: EditedColumns(1 << 28), repr=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Name the tasks in the order of the tables."""
        return tuple(self.pictures)

    def recipe(self, **fields: Any) -> dict[str, Any]:
        """Return the recipe that merges all experts; `edit` is one edit of each, the rest are recipe keys."""
        edits = [fields.pop("edit")] if "edit" in fields else []
        entries = [{"model": str(self.folder / "experts" / task), "label": task} for task in self.tasks]
        models = [{**entry, "edits": edits} if edits else entry for entry in entries]
        return {"base": str(self.folder / "base"), "models": models, **fields}

    def merged(self, recipe: Mapping[str, Any]) -> dict[str, Floats]:
        """Carry out a recipe in memory, rounded as a written model would be."""
        return api.compute(recipe, columns=self.columns, threads=1).arrays()

    def tensors(self, *parts: str) -> dict[str, Floats]:
        """Read the trunk in a folder of the family: `tensors("experts", "digits")`."""
        from safetensors.numpy import load_file

        return dict(load_file(self.folder.joinpath(*parts, "model.safetensors")))

    def marks(self, tensors: Tensors, tasks: Sequence[str], split: Split) -> dict[str, Marks]:
        """Show a trunk the pictures of `tasks`, each with its own head: which are named right, by task."""
        import torch

        params = {name: torch.from_numpy(array) for name, array in tensors.items()}
        return {t: outcomes(params, self.shape, self.heads[t], self.pictures[t].part(split)) for t in tasks}

    def mean(self, tensors: Tensors, split: Split) -> float:
        """Average the accuracies over all tasks, each counting the same."""
        return float(np.mean([marks.mean() for marks in self.marks(tensors, self.tasks, split).values()]))


def open_bench(folder: Path | str, data: Path | str) -> VisionBench:
    """Open a family that `lab.vision.train.build_family` has written, with the pictures it was trained on.

    Raises RefusedError when `data` holds other pictures than the family was trained on, DamagedInputError when
    the folder is no such family, MissingExtraError without torch.
    """
    folder = Path(folder)
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as cause:
        raise MissingExtraError(
            "the vision family needs torch", fix="run: pip install 'deltasmith[vision]'"
        ) from cause
    try:
        record = json.loads((folder / "RECORD.json").read_text(encoding="utf-8"))
        seed, shape = int(record["seed"]), VitShape(**record["shape"])
        heads = load_file(folder / "heads.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DamagedInputError(
            f"no vision family ({cause})",
            where=str(folder),
            fix="train one with `deltasmith lab vision`",
        ) from cause
    pictures, _ = load_pictures(data, seed)
    if digest(pictures) != record["data"]:
        raise RefusedError("not the pictures the family was trained on", where=str(data), fix="check --data")
    return VisionBench(folder, seed, shape, {task: pictures[task] for task in TASKS}, heads)


def write_grams(bench: VisionBench, task: str, path: Path) -> Path:
    """Write a statistics file for RegMean: the mean of x xᵀ over the inputs of every linear layer of an expert.

    The inputs are those of up to 256 of the task's own training pictures, nothing augmented.
    """
    import torch
    from safetensors.torch import save

    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def observe(name: str, rows: Tensor) -> None:
        exact = rows.double()
        sums[name] = sums.get(name, 0) + exact.T @ exact
        counts[name] = counts.get(name, 0) + len(rows)

    params = {name: torch.from_numpy(array) for name, array in bench.tensors("experts", task).items()}
    train = bench.pictures[task].train
    chosen = np.sort(np.random.default_rng([bench.train_seed, 0]).permutation(len(train))[:GRAM_PICTURES])
    with torch.inference_mode():
        features(params, bench.shape, torch.from_numpy(train.images[chosen]), observe)
    grams = {f"{name}::gram": (total / counts[name]).float().contiguous() for name, total in sums.items()}
    metadata = {"format": "deltasmith-stats-1", "kind": "gram", "examples": str(len(chosen))}
    path.write_bytes(save(grams, metadata))
    return path
