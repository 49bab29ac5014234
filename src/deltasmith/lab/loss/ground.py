"""An expert as a point in the space of weights, and the loss of its own task around it. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as Folder
from typing import Any

import numpy as np
import torch
from torch import nn

from deltasmith import api
from deltasmith.analysis.objective import Vector
from deltasmith.analysis.path import Path, walk
from deltasmith.analysis.rules import Grid
from deltasmith.analysis.torch_objective import LossOf, TorchObjective
from deltasmith.engine.columns import EditedColumns
from deltasmith.lab.loss.points import Point
from deltasmith.table.checkpoint import Floats

__all__ = ["Family", "Ground", "Tensors"]

Tensors = Mapping[str, Floats]


@dataclass(frozen=True)
class Family:
    """A base and its experts, and what recipes make of them in float32."""

    base: Folder
    experts: Mapping[str, Folder]
    columns: EditedColumns = field(default_factory=lambda: EditedColumns(1 << 28), repr=False)

    def made(
        self, expert: str, fields: Mapping[str, Any], seed: int = 0, statistics: Folder | None = None
    ) -> dict[str, Floats]:
        """Carry a recipe out: an edit of one expert (with a statistics file if it takes one), or a merge of all."""
        rest = {key: value for key, value in fields.items() if key != "edits"}
        if "task" in rest:
            rest["task"] = expert
        labels = [expert] if "edits" in fields else list(self.experts)
        models: list[dict[str, Any]]
        models = [{"model": str(self.experts[label]), "label": label} for label in labels]
        if "edits" in fields:
            models[0]["edits"] = fields["edits"]
            rest = {"merge": "sum", **rest}
        if statistics is not None:
            models[0]["statistics"] = str(statistics)
        recipe = {"base": str(self.base), "models": models, "dtype": "float32", "seed": seed, **rest}
        return api.compute(recipe, columns=self.columns, threads=1).arrays()

    def expert(self, label: str) -> dict[str, Floats]:
        """Return an expert in float32, as a recipe that changes nothing gives it."""
        return self.made(label, {"edits": []})

    def end(self, expert: str, point: Point, seed: int = 0) -> dict[str, Floats]:
        """Return where the path of a point ends."""
        return self.made(expert, point.fields, seed)

    def start(self, expert: str, point: Point) -> dict[str, Floats]:
        """Return where the path of a point begins."""
        return self.expert(expert) if point.start is None else self.made(expert, point.start)


class Ground:
    """A network with chunks of data, at which any weights can be tried."""

    def __init__(
        self, network: nn.Module, chunks: Sequence[Any], counts: Sequence[float], loss: LossOf
    ) -> None:
        """Take a network; names of its parameters are those of the tensors that are tried."""
        self.network, self.chunks, self.counts, self.loss = network, chunks, counts, loss

    def objective(self, start: Tensors, end: Tensors) -> TorchObjective:
        """Return the loss along the line from `start` to `end`; what does not move is left out."""
        self.put(start)
        direction = {}
        for name, parameter in self.network.named_parameters():
            step = torch.from_numpy(np.subtract(end[name], start[name], dtype=np.float64))
            if bool(step.any()):
                direction[name] = step.to(parameter.dtype)
        return TorchObjective(self.network, direction, self.chunks, self.counts, self.loss)

    def path(self, start: Tensors, end: Tensors, grids: Iterable[Grid]) -> Path:
        """Walk from `start` to `end`."""
        return walk(self.objective(start, end), grids)

    @torch.no_grad()
    def losses(self, at: Tensors) -> Vector:
        """Return the mean loss of every chunk there, (chunks,)."""
        self.put(at)
        return np.array([float(self.loss(self.network, chunk).double()) for chunk in self.chunks])

    def mean(self, per_chunk: Vector) -> float:
        """Average over the chunks, each by its count."""
        return float(np.dot(per_chunk, self.counts) / np.sum(self.counts))

    @torch.no_grad()
    def put(self, tensors: Tensors) -> None:
        """Give the network these weights."""
        for name, parameter in self.network.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name])))
