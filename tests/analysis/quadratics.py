"""Quadratic losses in plain numpy: an objective whose every derivative is known, and networks made of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPLIT = {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, None)}


@dataclass
class Quadratic:
    """Chunk i loses ½ w'H_i w + b_i'w; `start` and `direction` are flat and cut into the tensors a, b and c."""

    hessians: np.ndarray
    linear: np.ndarray
    start: np.ndarray
    direction: np.ndarray
    counts: np.ndarray
    at: float = 0.0
    visited: list[float] = field(default_factory=list)
    names: tuple[str, ...] = tuple(SPLIT)

    @property
    def point(self) -> np.ndarray:
        return self.start + self.at * self.direction

    def move(self, t: float) -> None:
        self.at = t
        self.visited.append(t)

    def losses(self) -> np.ndarray:
        w = self.point
        return 0.5 * np.einsum("i,cij,j->c", w, self.hessians, w) + self.linear @ w

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        products = (self.hessians @ self.point + self.linear) * self.direction
        return self.losses(), self._by_tensor(products)

    def curvatures(self, probe: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        u = self.direction if probe is None else np.concatenate([probe[n] for n in self.names])
        return self._by_tensor(u * (self.hessians @ u))

    def squares(self, sampled: Any, keys: Any, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def _by_tensor(self, elements: np.ndarray) -> np.ndarray:
        return np.stack([elements[:, SPLIT[n]].sum(axis=1) for n in self.names], axis=1)

    @property
    def hessian(self) -> np.ndarray:
        """The Hessian of the mean over all data."""
        return np.tensordot(self.counts, self.hessians, axes=(0, 0)) / self.counts.sum()

    def exact(self, t: float) -> float:
        """The loss at a point, less the loss at the start, without moving."""
        linear = self.counts @ self.linear / self.counts.sum()
        there, here = self.start + t * self.direction, self.start
        bend = 0.5 * (there @ self.hessian @ there - here @ self.hessian @ here)
        return float(bend + linear @ (there - here))


def quadratic(seed: int, size: int = 6, chunks: int = 4, positive: bool = False) -> Quadratic:
    """Draw a quadratic: any symmetric Hessians, or positive ones."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(chunks, size, size))
    h = h @ h.transpose(0, 2, 1) if positive else h + h.transpose(0, 2, 1)
    b, start, direction = rng.normal(size=(chunks, size)), rng.normal(size=size), rng.normal(size=size)
    return Quadratic(h, b, start, direction, rng.integers(1, 9, chunks).astype(np.float64))


def by_tensor(flat: np.ndarray) -> dict[str, np.ndarray]:
    """Cut a flat vector into the tensors."""
    return {name: flat[part] for name, part in SPLIT.items()}
