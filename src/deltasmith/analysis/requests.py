"""The options of a loss analysis, checked before anything heavy is imported or read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from deltasmith.analysis.rules import RULES, Grid, Rule
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.errors import RecipeError, RefusedError, printable

__all__ = [
    "FEW",
    "MOST_EVALUATIONS",
    "NothingMovesError",
    "Precision",
    "Request",
    "Say",
    "SecondOrderKind",
    "listed",
    "silent",
]

SecondOrderKind = Literal["none", "hessian", "fisher"]
Precision = Literal["float32", "float64", "bfloat16"]
FEW = 8
"""Chunks below which an interval is rough."""
Say = Callable[[str, int, int], None]
"""`say(what, done, of)`: hear how far a piece of work has come."""
MOST_EVALUATIONS = 1_000
"""Points of a line search, at most: what it finds is settled after a dozen."""
_MOST = {"steps": 1_000, "probes": 10_000}
"""Beyond these nothing becomes more exact, and the points alone would fill the memory."""
_LEAST = {"steps": 1, "probes": 1, "batch": 1, "length": 2, "limit": 1, "threads": 1}


class NothingMovesError(RefusedError):
    """Start and end of a path are the same weights."""


@dataclass(frozen=True)
class Request:
    """What is asked of an analysis besides its path. RecipeError, naming the option, for what makes no sense."""

    data: Path
    """Documents for a language model, or a `.npz` of a classifier's inputs and labels."""
    rules: Sequence[Rule] = RULES
    steps: int = 5
    """Parts that each rule divides the path into; the paper's C."""
    second_order: SecondOrderKind = "none"
    probes: int = 8
    """Random probes of the second order, each as costly as a point of the path or twice that."""
    device: str = "cpu"
    dtype: Precision = "float32"
    batch: int = 4
    """Examples in a chunk: what is computed, and resampled, together."""
    length: int = 512
    """Tokens of an example, at most."""
    limit: int | None = None
    """Documents that are read, from the first; all by default."""
    margin: float | None = None
    """A change of the loss that counts as none, in nats per token."""
    seed: int = 0
    """Of the resampling and the probes."""
    threads: int | None = None
    memory: int = DEFAULT_MEMORY
    """Bytes for computing a recipe; the networks come on top."""

    def __post_init__(self) -> None:
        if not self.rules:
            raise RecipeError("no rule was asked for", fix=f"use {listed(RULES)}")
        for rule in self.rules:
            _known("rule", rule, RULES)
        _known("second order", self.second_order, get_args(SecondOrderKind))
        _known("element type", self.dtype, get_args(Precision))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{name} is {value}", fix=f"give {least} or more")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise RecipeError(f"{name} is {getattr(self, name)}", fix=f"give {most} or fewer")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            raise RecipeError(f"margin is {self.margin:g}", fix="give 0 or more, in nats per token")

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Return the grid of every rule, each once, in the order asked for."""
        return tuple(Grid(rule, self.steps) for rule in dict.fromkeys(self.rules))


def silent(what: str, done: int, of: int) -> None:
    """Hear nothing: a `Say`."""


def _known(what: str, value: str, among: Sequence[str]) -> None:
    if value not in among:
        raise RecipeError(f"there is no {what} {printable(str(value), 80)!r}", fix=f"use {listed(among)}")


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence: `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
