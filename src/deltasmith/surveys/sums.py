"""Surveys that add, count or bound what blocks hold, and several surveys in one pass. No order statistics.

Sums are float64, kept per block and added in (tensor name, index) order; counts are integers; bounds do not
depend on the order. So neither threads nor tiles change what a survey here finds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from deltasmith.operation.protocols import BlockSums, Place, Scope, Survey
from deltasmith.table.checkpoint import Floats

__all__ = ["Bounds", "Counts", "PerModel", "Sums", "Together", "Totals", "chain", "per_model", "together"]

Vector = npt.NDArray[np.float64]
Terms = Callable[[Sequence[Floats], Place], npt.ArrayLike]


@dataclass(frozen=True)
class Totals:
    """What `Sums` found: a float64 vector per tensor, in alphabetical order; empty tensors are absent."""

    by_tensor: dict[str, Vector]

    @property
    def whole(self) -> Vector | None:
        """Add the tensors in alphabetical order; None where no tensor has an element."""
        total: Vector | None = None
        for part in self.by_tensor.values():
            total = part.copy() if total is None else total + part
        return total


@dataclass(frozen=True)
class Sums:
    """Add up the vector that `terms(cells, place)` computes for each block. Compute it in float64."""

    terms: Terms
    scope: Scope = "global"
    sample: int = 0

    def start(self) -> BlockSums:
        """Return an empty tally."""
        return BlockSums()

    def tally(self, acc: BlockSums, cells: Sequence[Floats], place: Place) -> None:
        """Store the block's vector."""
        acc.add(place, self.terms(cells, place))

    def conclude(self, accs: Sequence[BlockSums]) -> Totals:
        """Add the blocks of each tensor in index order."""
        return Totals(BlockSums.total(accs))


@dataclass(frozen=True)
class Counts:
    """Add up the integer that `count(cells, place)` yields for each block."""

    count: Callable[[Sequence[Floats], Place], int]
    scope: Scope = "global"
    sample: int = 0
    blockwise: ClassVar[bool] = False

    def start(self) -> list[int]:
        """Return an empty tally."""
        return [0]

    def tally(self, acc: list[int], cells: Sequence[Floats], place: Place) -> None:
        """Add the block's count."""
        acc[0] += self.count(cells, place)

    def conclude(self, accs: Sequence[list[int]]) -> int:
        """Return the whole count."""
        return sum(acc[0] for acc in accs)


@dataclass(frozen=True)
class Bounds:
    """Find the smallest and the largest number among the arrays that `values(cells, place)` yields."""

    values: Callable[[Sequence[Floats], Place], Floats]
    scope: Scope = "global"
    sample: int = 0

    def start(self) -> list[tuple[float, float]]:
        """Return an empty tally."""
        return []

    def tally(self, acc: list[tuple[float, float]], cells: Sequence[Floats], place: Place) -> None:
        """Widen the bounds by one block."""
        values = self.values(cells, place)
        seen = [(float(values.min()), float(values.max()))] if values.size else []
        acc[:] = self._widest([*acc, *seen])

    def conclude(self, accs: Sequence[list[tuple[float, float]]]) -> tuple[float, float]:
        """Return (smallest, largest); (0, 0) where there was no element."""
        widest = self._widest([bounds for acc in accs for bounds in acc])
        return widest[0] if widest else (0.0, 0.0)

    @staticmethod
    def _widest(seen: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(min(low for low, _ in seen), max(high for _, high in seen))] if seen else []


@dataclass(frozen=True)
class Together:
    """Run several surveys in one pass; the finding is {name: finding}. All have the scope of the first."""

    parts: Mapping[Hashable, Survey]

    @property
    def scope(self) -> Scope:
        """Say whether one conclusion serves each tensor or the whole model."""
        return next(iter(self.parts.values())).scope

    @property
    def sample(self) -> int:
        """Return the largest sample that a part asks for; `together` never mixes samples and full passes."""
        return max(part.sample for part in self.parts.values())

    def start(self) -> dict[Hashable, Any]:
        """Return an empty tally for each part."""
        return {name: part.start() for name, part in self.parts.items()}

    def tally(self, acc: dict[Hashable, Any], cells: Sequence[Floats], place: Place) -> None:
        """Show the block to every part."""
        for name, part in self.parts.items():
            part.tally(acc[name], cells, place)

    def conclude(self, accs: Sequence[dict[Hashable, Any]]) -> dict[Hashable, Any]:
        """Conclude every part."""
        return {name: part.conclude([acc[name] for acc in accs]) for name, part in self.parts.items()}


def chain(findings: Sequence[Any], name: Hashable) -> tuple[Any, ...]:
    """Return what the survey chain `name` has found in a sequence of findings of `Together`, oldest first."""
    return tuple(found[name] for found in findings if name in found)


def together(
    findings: Sequence[Any], chains: Mapping[Hashable, Callable[[tuple[Any, ...]], Survey | None]]
) -> Survey | None:
    """Advance several chains of surveys at once: the next survey of all that need one, or None.

    Each chain is a function from its own findings to its next survey. Chains that want a sample go first: a
    sampling survey must never be shown every block, because it keeps what it is shown.
    """
    asked = {name: step(chain(findings, name)) for name, step in chains.items()}
    parts = {name: survey for name, survey in asked.items() if survey is not None}
    sampling = {name: survey for name, survey in parts.items() if survey.sample}
    return Together(sampling or parts) if parts else None


@dataclass(frozen=True)
class PerModel:
    """Run one survey for each model of the row, however many there are; the finding is {index: finding}.

    Every survey sees all cells of the row; `survey(i)` says what to do with model i. It may be called several
    times for one model, so its surveys must keep their state in their tallies.
    """

    survey: Callable[[int], Survey]

    @property
    def scope(self) -> Scope:
        """Say whether one conclusion serves each tensor or the whole model."""
        return self.survey(0).scope

    @property
    def sample(self) -> int:
        """Return the sample that the survey of the first model asks for."""
        return self.survey(0).sample

    def start(self) -> dict[int, tuple[Survey, Any]]:
        """Return an empty tally."""
        return {}

    def tally(self, acc: dict[int, tuple[Survey, Any]], cells: Sequence[Floats], place: Place) -> None:
        """Show the block to the survey of every model."""
        for i in range(len(cells)):
            if i not in acc:
                survey = self.survey(i)
                acc[i] = (survey, survey.start())
            survey, inner = acc[i]
            survey.tally(inner, cells, place)

    def conclude(self, accs: Sequence[dict[int, tuple[Survey, Any]]]) -> dict[int, Any]:
        """Conclude the survey of every model."""
        models = sorted({i for acc in accs for i in acc})
        return {i: self.survey(i).conclude([acc[i][1] for acc in accs if i in acc]) for i in models}


def per_model(
    findings: Sequence[Any], step: Callable[[int, tuple[Any, ...]], Survey | None]
) -> Survey | None:
    """Advance one chain of surveys per model, all in the same passes; `step(i, findings)` is its next survey.

    The number of models is learnt from the first pass, so a record need not know it.
    """
    if not findings:
        first = step(0, ())
        return None if first is None else PerModel(lambda i: _required(step(i, ())))
    return together(findings, {i: partial(step, i) for i in sorted(findings[0])})


def _required(survey: Survey | None) -> Survey:
    if survey is None:
        raise TypeError("every model must start with a survey")
    return survey
