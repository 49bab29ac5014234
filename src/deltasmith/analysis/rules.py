"""Riemann rules: at which points of a path the gradient is taken, and what each point weighs.

A rule is a name in `Rule` and a record in `_RECORDS`; the choices of the command, the most exact of several predictions
and the looks of the pictures follow from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

__all__ = ["RECORDS", "RULES", "Grid", "RiemannRule", "Rule", "points_of"]

Rule = Literal["left", "midpoint", "trapezoid"]
"""`left` is the paper's; on a quadratic loss it errs by -1/(2 steps) of d'Hd, and the other two do not err."""


@dataclass(frozen=True, slots=True)
class RiemannRule:
    """What there is to know of a rule."""

    name: Rule
    weights: Callable[[int], dict[Fraction, Fraction]]
    """Weights of the points that it takes with a number of steps: points in [0, 1], weights that add up to 1."""
    exact: bool
    """Whether it errs nowhere on a quadratic loss, whose slope is linear along the path."""
    trust: int
    """Its place among the rules by how far their predictions are to be trusted, from 1, the most exact."""


def _left(steps: int) -> dict[Fraction, Fraction]:
    width = Fraction(1, steps)
    return {c * width: width for c in range(steps)}


def _midpoint(steps: int) -> dict[Fraction, Fraction]:
    width = Fraction(1, steps)
    return {(c + Fraction(1, 2)) * width: width for c in range(steps)}


def _trapezoid(steps: int) -> dict[Fraction, Fraction]:
    width = Fraction(1, steps)
    inner = {c * width: width for c in range(1, steps)}
    return {Fraction(0): width / 2} | inner | {Fraction(1): width / 2}


_RECORDS = (
    RiemannRule("left", _left, exact=False, trust=3),
    # Where the loss is no parabola, midpoint errs by about half as much as trapezoid.
    RiemannRule("midpoint", _midpoint, exact=True, trust=1),
    RiemannRule("trapezoid", _trapezoid, exact=True, trust=2),
)
RECORDS: Mapping[Rule, RiemannRule] = {record.name: record for record in _RECORDS}
"""Every rule by its name."""
RULES: tuple[Rule, ...] = tuple(RECORDS)


@dataclass(frozen=True, slots=True)
class Grid:
    """One rule with its number of steps. Points are exact fractions of the path, so that grids share them.

    Paper: arXiv 2410.13841, equation 1, is `Grid("left", 5)`.

    >>> Grid("midpoint", 2).weights
    {Fraction(1, 4): Fraction(1, 2), Fraction(3, 4): Fraction(1, 2)}
    """

    rule: Rule
    steps: int

    def __post_init__(self) -> None:
        if self.rule not in RECORDS or self.steps < 1:
            raise ValueError(f"no such grid: {self.rule} with {self.steps} steps")

    @property
    def weights(self) -> dict[Fraction, Fraction]:
        """Return the weight of every point; they add up to 1."""
        return RECORDS[self.rule].weights(self.steps)


def points_of(grids: Iterable[Grid]) -> tuple[Fraction, ...]:
    """Return every point that some grid asks for, in order, each once.

    >>> [str(t) for t in points_of([Grid("left", 2), Grid("trapezoid", 2)])]
    ['0', '1/2', '1']
    """
    return tuple(sorted({t for grid in grids for t in grid.weights}))
