"""Marks in a recipe, read: over which numbers each one ranges. How ranges are searched is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deltasmith.recipe.marks import MARK, OPTIONS
from deltasmith.recipe.problems import Problems, quoted, suggestion
from deltasmith.recipe.tree import Keyed, Listing, Mark, Node, Scalar, describe

__all__ = ["Dimension", "Edge", "Ladder", "Number", "Range", "Span", "read_mark"]

Number = int | float
Edge = Literal["lower", "upper"]

_EDGE = 0.02
"""How near to an end of its range, as a fraction of the range, an optimum counts as lying at the edge."""
_DIGITS = 4
"""Significant digits of a searched number: more would pretend a precision that no score can show."""
_MOST_STEPS = 10_000
_LARGEST = 1e15
"""Beyond this, neighbouring whole numbers are no longer told apart by what samplers compute with."""


@dataclass(frozen=True, slots=True)
class Range:
    """Every number from `low` to `high`, evenly or (`log`) by their logarithms; whole ones with `integer`."""

    low: Number
    high: Number
    log: bool = False
    integer: bool = False

    def value(self, raw: float) -> Number:
        """Return the number that a recipe gets: whole, or of four significant digits, and never outside."""
        if self.integer:
            return round(raw)
        return min(max(float(f"{raw:.{_DIGITS}g}"), float(self.low)), float(self.high))

    def position(self, value: Number) -> float:
        """Say where a value lies: 0 at `low`, 1 at `high`."""
        low, high, at = (math.log(v) if self.log else float(v) for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def at(self, position: float) -> Number:
        """Return the value at a position from 0 to 1."""
        if self.log:
            return self.value(self.low * (self.high / self.low) ** position)
        return self.value(self.low + (self.high - self.low) * position)

    def points(self, count: int) -> tuple[Number, ...]:
        """Spread `count` (at least 2) values over the range, ends included; fewer where whole ones coincide."""
        return tuple(dict.fromkeys(self.at(i / (count - 1)) for i in range(count)))

    def raw(self, value: Number) -> Number:
        """Return what a sampler's storage holds for a value."""
        return value

    def edge(self, value: Number) -> Edge | None:
        """Say at which end of the range a value lies, to within 2 % of the range."""
        return _edge(self.position(value))

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


@dataclass(frozen=True, slots=True)
class Ladder:
    """A few numbers in ascending order; they are searched by their ranks, so that order means something."""

    values: tuple[Number, ...]

    def value(self, raw: float) -> Number:
        """Return the number at a rank."""
        return self.values[round(raw)]

    def at(self, position: float) -> Number:
        """Return the value at a position from 0 to 1."""
        return self.values[round(position * (len(self.values) - 1))]

    def points(self, count: int) -> tuple[Number, ...]:
        """Return all values, whatever `count` says."""
        return self.values

    def raw(self, value: Number) -> Number:
        """Return the rank of a value."""
        return self.values.index(value)

    def edge(self, value: Number) -> Edge | None:
        """Say whether a value is the first or the last, or within 2 % of the ranks; None with a single value."""
        last = len(self.values) - 1
        return _edge(self.values.index(value) / last) if last else None

    def __str__(self) -> str:
        shown = [f"{v:g}" for v in self.values]
        return f"[{', '.join(shown if len(shown) <= 6 else [*shown[:2], '…', *shown[-2:]])}]"


Span = Range | Ladder


def _edge(position: float) -> Edge | None:
    # A hair of tolerance: (0.102 - 0.1) / 0.1 is not exactly 0.02.
    if position <= _EDGE + 1e-9:
        return "lower"
    return "upper" if position >= 1 - _EDGE - 1e-9 else None


@dataclass(frozen=True, slots=True)
class Dimension:
    """One mark: the dotted path of its number in the recipe, where it stands, and what it ranges over."""

    name: str
    mark: Mark
    span: Span


def read_mark(node: Keyed, path: str, problems: Problems) -> Dimension | None:
    """Read `{tune: [low, high]}`, with `step`, `log: true` or `integer: true`, or `{tune: {choices: […]}}`.

    None after a report; everything wrong with the mark is reported.
    """
    before = problems.reports
    said = node.get(MARK)
    options = _options(node, problems)
    span: Span | None = None
    if isinstance(said, Listing):
        span = _range(said, options, problems)
    elif isinstance(said, Keyed):
        span = _choices(said, problems)
        for key in OPTIONS:
            if (entry := node.entry(key)) is not None:
                problems.add(entry.mark, f"{key} cannot stand beside choices", "leave it out")
    if span is None or problems.reports > before:
        return None
    return Dimension(path, node.mark, span)


@dataclass(frozen=True, slots=True)
class _Options:
    step: Number | None = None
    log: bool = False
    integer: bool = False


def _options(node: Keyed, problems: Problems) -> _Options:
    options = _Options()
    for key in ("log", "integer"):
        said = node.get(key)
        if said is None:
            continue
        if isinstance(said, Scalar) and isinstance(said.value, bool):
            options = replace(options, **{key: said.value})
        else:
            problems.add(said.mark, f"{key} must be true or false, not {describe(said)}")
    if (said := node.get("step")) is not None:
        step = _number(said, "step", problems)
        if step is not None and step <= 0:
            problems.add(said.mark, f"step must be above 0, not {said}")
        elif step is not None:
            options = replace(options, step=step)
    return options


def _number(node: Node, what: str, problems: Problems) -> Number | None:
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        problems.add(node.mark, f"{what} must be a number, not {describe(node)}")
        return None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        problems.add(node.mark, f"{what} must be finite and at most 1e15, not {describe(node)}")
        return None
    return value


def _range(said: Listing, options: _Options, problems: Problems) -> Span | None:
    fix = "write {tune: [low, high]} or {tune: {choices: [a, b]}}"
    if len(said.items) != 2:
        problems.add(said.mark, f"tune needs two ends, not {len(said.items)} values", fix)
        return None
    ends = [_number(item, "an end of tune", problems) for item in said.items]
    low, high = ends
    if low is None or high is None:
        return None
    if not low < high:
        problems.add(said.mark, f"tune needs low < high, not [{low}, {high}]", "swap or change the ends")
        return None
    if options.log and low <= 0:
        problems.add(said.items[0].mark, f"log needs a low end above 0, not {low}")
        return None
    if options.integer and not all(float(v).is_integer() for v in (low, high, options.step or 1)):
        problems.add(said.mark, "integer needs whole ends and a whole step", "round them")
        return None
    if options.integer:
        low, high = int(low), int(high)
    if options.step is None:
        return Range(low, high, options.log, options.integer)
    return _stepped(said.mark, low, high, options, options.step, problems)


def _stepped(
    mark: Mark, low: Number, high: Number, options: _Options, step: Number, problems: Problems
) -> Span | None:
    if options.log:
        problems.add(mark, "step and log exclude each other", "write {tune: {choices: […]}}")
        return None
    count = math.floor((high - low) / step + 1e-9) + 1
    if not 2 <= count <= _MOST_STEPS:
        what = f"step {step:g} makes {count:,} value{'s' * (count != 1)} of [{low:g}, {high:g}]"
        problems.add(mark, what, f"choose one that makes 2 to {_MOST_STEPS:,}")
        return None
    if options.integer:
        return Ladder(tuple(int(low) + i * int(step) for i in range(count)))
    # Twelve digits: 0.1 + 2 * 0.1 is to be 0.3.
    return Ladder(tuple(float(f"{low + i * step:.12g}") for i in range(count)))


def _choices(said: Keyed, problems: Problems) -> Span | None:
    for entry in said:
        if entry.key != "choices":
            what = f"unknown key {quoted(entry.key)} in tune"
            problems.add(entry.mark, what, suggestion(entry.key, ("choices",), "it takes"))
    choices = said.get("choices")
    if not isinstance(choices, Listing) or not choices.items:
        at = said.mark if choices is None else choices.mark
        problems.add(at, "tune needs a list of choices that is not empty", "write {tune: {choices: [a, b]}}")
        return None
    values = [_number(item, "a choice", problems) for item in choices.items]
    return _ladder([v for v in values if v is not None], choices.mark, problems)


def _ladder(values: Sequence[Number], mark: Mark, problems: Problems) -> Ladder | None:
    if len(set(values)) < len(values):
        problems.add(mark, "a choice occurs twice", "remove one")
        return None
    return Ladder(tuple(sorted(values))) if values else None
