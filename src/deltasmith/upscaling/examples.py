"""What a router learns from: example inputs by expert, divided so that none is trained on and reported. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltasmith.errors import DamagedInputError, RecipeError, printable
from deltasmith.kernels.bits import uniform_bits

__all__ = ["LEAST", "MOST", "Divided", "RouterData", "RouterReport", "divide", "order", "router_data"]

LEAST = 8
"""Different examples that an expert needs: some are held out twice over."""
MOST = 5500
"""Examples of one expert that are trained on, as in the released code."""
_HELD_OUT = 0.1


@dataclass(frozen=True)
class Divided:
    """Numbers of examples, disjoint: to train on, to choose the epoch by, and to report on."""

    training: tuple[int, ...]
    choosing: tuple[int, ...]
    reported: tuple[int, ...]


@dataclass(frozen=True)
class RouterData:
    """Example inputs by expert, in the experts' order and each of them once."""

    texts: Mapping[str, tuple[str, ...]]
    seed: int
    epochs: int

    def as_json(self) -> dict[str, Any]:
        """Return what identifies the data: counts and hashes, no text."""
        of = {
            label: {"examples": len(texts), "sha256": _hashed(texts)} for label, texts in self.texts.items()
        }
        return {"data": of, "seed": self.seed, "epochs": self.epochs}

    def shared(self) -> int:
        """Count the texts that stand under more than one label."""
        every = [text for texts in self.texts.values() for text in texts]
        return len(every) - len(set(every))


@dataclass(frozen=True)
class RouterReport:
    """How a router does on examples that neither trained it nor chose its epoch.

    `confusion[i][j]` counts the examples of expert i that it sends to expert j first; `epoch` was kept of `epochs`;
    `cut` inputs were longer than the model's context.
    """

    accuracy: float
    confusion: tuple[tuple[int, ...], ...]
    trained: int
    epoch: int
    epochs: int
    cut: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {**vars(self), "confusion": [list(row) for row in self.confusion]}


def router_data(
    given: Mapping[str, Sequence[str]], experts: Sequence[str], *, seed: int = 0, epochs: int = 50
) -> RouterData:
    """Check examples against the experts' labels, and drop blank and repeated ones.

    Raises:
        RecipeError: a label that no expert has, an expert without examples, no epoch.
        DamagedInputError: fewer than 8 different examples for an expert.
    """
    known = ", ".join(map(printable, experts))
    if unknown := [label for label in given if label not in experts]:
        raise RecipeError(
            f"--router-data: no expert is labelled {printable(unknown[0])!r}", fix=f"use one of: {known}"
        )
    if absent := [label for label in experts if label not in given]:
        raise RecipeError(
            f"--router-data: there is none for {', '.join(map(printable, absent))}",
            fix="give example inputs of every expert",
        )
    if len(experts) < 2:
        raise RecipeError("a router chooses between experts, and there is one", fix="leave --router-data out")
    if epochs < 1:
        raise RecipeError(f"--router-epochs is {epochs}", fix="use 1 or more")
    texts = {label: tuple(dict.fromkeys(text for text in given[label] if text.strip())) for label in experts}
    for label, found in texts.items():
        if len(found) < LEAST:
            raise DamagedInputError(
                f"{len(found)} different examples, and at least {LEAST} are needed",
                where=f"--router-data {printable(label)}",
                fix="give hundreds, one a line",
            )
    return RouterData(texts, seed, epochs)


def divide(counts: Sequence[int], seed: int) -> Divided:
    """Divide examples, numbered through label by label: a tenth chooses, a tenth is reported, at most 5500 train.

    Every label's examples are divided in the same proportion, in an order that the seed decides.
    """
    training: list[int] = []
    choosing: list[int] = []
    reported: list[int] = []
    start = 0
    for label, count in enumerate(counts):
        shuffled = [start + index for index in order(count, "divide", seed, label)]
        held = max(1, round(_HELD_OUT * count))
        choosing += shuffled[:held]
        reported += shuffled[held : 2 * held]
        training += shuffled[2 * held :][:MOST]
        start += count
    return Divided(tuple(training), tuple(choosing), tuple(reported))


def order(count: int, *key: object) -> list[int]:
    """Return a permutation of `count` numbers that depends on nothing but them and the key."""
    digest = hashlib.sha256(repr(("router", *key)).encode()).digest()
    bits = uniform_bits(int.from_bytes(digest[:8], "little"), 0, count)
    return [int(index) for index in np.argsort(bits, kind="stable")]


def _hashed(texts: Sequence[str]) -> str:
    state = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()
