"""The axes of a sweep, `k=-1:1:0.25, p=0.1:0.9:0.2`: what varies in a recipe, over which values, point by point.

Nothing here opens a model; a sweep that a recipe does not allow is refused before anything is computed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from deltasmith.analysis.sweep_places import Places, Setter
from deltasmith.errors import RecipeError, printable
from deltasmith.recipe.checks import from_tree
from deltasmith.recipe.model import Recipe, to_mapping
from deltasmith.recipe.overrides import apply
from deltasmith.recipe.problems import Problem, Problems, RecipeProblems, quoted
from deltasmith.recipe.tree import Keyed, Mark, Scalar
from deltasmith.recipe.yaml_file import parse
from deltasmith.search.marked import parse_recipe

__all__ = ["MOST_POINTS", "Axis", "Plane", "Value", "read_axes", "read_plane"]

Value = bool | int | float | str
"""What a recipe gets at one point of an axis; `p` of an axis is 1 - density of the recipe."""

MOST_POINTS = 10_000
_HAIR = Decimal("1e-6")
"""How far beyond its end, in steps, an axis may come to include it: 0:1:0.333333 reaches 1."""
_FORM = "write NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LARGEST_EXPONENT = 30


@dataclass(frozen=True, slots=True)
class Axis:
    """One name and the values it takes, in the order they are swept; at least one, none twice."""

    name: str
    values: tuple[Value, ...]

    @property
    def numeric(self) -> bool:
        """Tell whether the values are numbers, which can be drawn to scale."""
        return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)


@dataclass(frozen=True)
class Plane:
    """A recipe with axes through it: at every point another recipe, each of which holds together.

    Points come in order, the last axis changing fastest. `notes` say what a reader might not expect.
    """

    axes: tuple[Axis, ...]
    notes: tuple[str, ...]
    _root: Keyed = field(repr=False)
    _folder: Path = field(repr=False)
    _setters: tuple[Setter, ...] = field(repr=False)

    def __len__(self) -> int:
        """Count the points."""
        return math.prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator[dict[str, Value]]:
        """Yield the values at every point, by the names of the axes."""
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield {axis.name: value for axis, value in zip(self.axes, values, strict=True)}

    def tree(self, point: Mapping[str, Value]) -> Keyed:
        """Return the recipe's tree at a point; what an axis sets is marked with the axis and its value."""
        root = self._root
        for axis, setter in zip(self.axes, self._setters, strict=True):
            value = point[axis.name]
            root = setter(root, Scalar(value, _mark(axis.name, value), _text(value)))
        return root

    @property
    def own_problems(self) -> tuple[Problem, ...]:
        """Return what is wrong with the recipe as it is, without any axis."""
        try:
            from_tree(self._root, self._folder)
        except RecipeProblems as error:
            return error.problems
        return ()

    def recipe(self, point: Mapping[str, Value]) -> Recipe:
        """Return the recipe at a point; RecipeError where it does not hold together."""
        return from_tree(self.tree(point), self._folder)


def read_axes(text: str, problems: Problems) -> tuple[Axis, ...]:
    """Read axes separated by commas, NAME=LOW:HIGH:STEP or NAME=VALUE|VALUE|…; report all that is wrong.

    Both ends are included where the step reaches them. Decimals are exact: 0.1:0.9:0.2 is 0.1, 0.3, 0.5, 0.7, 0.9.
    A range runs downwards where LOW is above HIGH and STEP negative. Numbers written without a point are whole.

    >>> read_axes("k=-1:1:0.5, rank=8|16", Problems())
    (Axis(name='k', values=(-1.0, -0.5, 0.0, 0.5, 1.0)), Axis(name='rank', values=(8, 16)))
    """
    found: list[Axis] = []
    parts = text.split(",")
    for part in parts:
        mark = Mark(f"--sweep {printable(part.strip() if len(parts) > 1 else text.strip(), 80)}")
        name, equals, values = (word.strip() for word in part.partition("="))
        if not equals or not name or not values or not all(name.split(".")):
            problems.add(mark, "this is no axis", _FORM)
        elif name in [axis.name for axis in found]:
            problems.add(mark, f"{quoted(name)} is swept twice", "give it one axis")
        elif (read := _values(values, mark, problems)) is not None:
            found.append(Axis(name, read))
    count = math.prod(len(axis.values) for axis in found)
    if count > MOST_POINTS:
        what = f"the sweep has {count:,} points, and the most are {MOST_POINTS:,}"
        problems.add(Mark("--sweep"), what, "take larger steps, or fewer axes")
    return tuple(found)


def _values(text: str, mark: Mark, problems: Problems) -> tuple[Value, ...] | None:
    """Read what stands behind the name; None after a report."""
    if "|" in text:
        return _listed(text.split("|"), mark, problems)
    ends = [part.strip() for part in text.split(":")]
    if len(ends) != 3 or not all(map(_NUMBER.fullmatch, ends)):
        one = "" if ":" in text else ", or --set for a single value"
        problems.add(mark, f"{quoted(text)} is neither a range nor a list", _FORM + one)
        return None
    low, high, step = numbers = [_decimal(end) for end in ends]
    if low is None or high is None or step is None or None in numbers:
        problems.add(mark, "a number is beyond all measure", "use one between 1e-30 and 1e30")
        return None
    if step == 0 or (step > 0) != (high > low):
        way = (
            f"it takes a {'positive' if high > low else 'negative'} step"
            if high != low
            else "the ends are equal"
        )
        problems.add(mark, f"step {ends[2]} never leads from {ends[0]} to {ends[1]}", way)
        return None
    count = int((high - low) / step + _HAIR) + 1
    if count > MOST_POINTS:
        problems.add(
            mark,
            f"step {ends[2]} makes {count:,} points, and the most are {MOST_POINTS:,}",
            "take larger steps",
        )
        return None
    whole = all(not re.search(r"[.eE]", end) for end in ends)
    points = [low + i * step for i in range(count)]
    if abs(points[-1] - high) <= _HAIR * abs(step):
        points[-1] = high
    return tuple(int(point) if whole else float(point) for point in points)


def _decimal(text: str) -> Decimal | None:
    """Read a number exactly; None where nobody can mean it."""
    try:
        found = Decimal(text)
    except InvalidOperation:
        return None
    return found if not found or abs(found.adjusted()) <= _LARGEST_EXPONENT else None


def _listed(words: Iterable[str], mark: Mark, problems: Problems) -> tuple[Value, ...] | None:
    values: list[Value] = []
    for word in words:
        value = _scalar(word.strip())
        if value is None:
            problems.add(mark, f"{quoted(word.strip())} is no value", _FORM)
            return None
        if any(type(value) is type(v) and value == v for v in values):
            problems.add(mark, f"{quoted(word.strip())} is there twice", "remove one")
            return None
        values.append(value)
    return tuple(values)


def _scalar(text: str) -> Value | None:
    """Read one word as YAML would: a number, true or false, or text."""
    try:
        node = parse(text, "--sweep") if text else None
    except RecipeError:
        return None
    if not isinstance(node, Scalar):
        return text or None  # `claq:bits=2` and the like are words here
    return node.value if not isinstance(node.value, float) or math.isfinite(node.value) else None


def read_plane(
    recipe: str | Path | Mapping[str, Any] | Recipe, axes: str, settings: Iterable[str] = ()
) -> Plane:
    """Read the axes, find out what each of them sets in the recipe, and check the recipe at every point.

    A name is a field of an operation of the recipe, which is set in every operation that has it, for all models;
    `drop.density` means that operation alone. Or it is a key of the recipe (`scale`, a field of its preset),
    `weight` of all models, or a path as `--set` takes it. `p` and `rate` stand for 1 - density. `settings` are
    changes made before, as `--set`.

    Raises:
        RecipeError: that holds every problem: of the axes, of the recipe, and of each axis the first value that is
            refused.
    """
    problems = Problems()
    read = read_axes(axes, problems)
    root, folder = _root(recipe, settings)
    places = Places(root)
    setters = {axis: setter for axis in read if (setter := _setter(axis, places, problems)) is not None}
    notes = [note for axis in setters if (note := places.note(axis.name))]
    plane = Plane(tuple(setters), tuple(notes), root, folder, tuple(setters.values()))
    _refuse_collisions(plane, places, problems)
    _check(plane, problems)
    return plane


def _root(recipe: str | Path | Mapping[str, Any] | Recipe, settings: Iterable[str]) -> tuple[Keyed, Path]:
    if isinstance(recipe, Recipe):
        return parse_recipe(to_mapping(recipe), settings)[0], recipe.relative_to
    return parse_recipe(recipe, settings)


def _setter(axis: Axis, places: Places, problems: Problems) -> Setter | None:
    """Return what puts a value of the axis into the recipe; None after a report."""
    mark = Mark(f"--sweep {printable(axis.name, 80)}")
    if (setter := places.setter(axis.name)) is not None:
        if places.complement(axis.name) and not axis.numeric:
            problems.add(mark, f"{axis.name} is 1 - density, and not all of its values are numbers")
            return None
        return setter
    if "." not in axis.name:
        problems.add(mark, f"the recipe has no {quoted(axis.name)} to sweep", places.suggestion(axis.name))
        return None

    def by_path(root: Keyed, value: Scalar) -> Keyed:
        done = apply(root, [f"{axis.name}={value.text}"])
        assert isinstance(done, Keyed), "a path with a dot leads into the recipe"
        return done

    try:
        by_path(places.root, Scalar(axis.values[0], mark))
    except RecipeProblems as error:
        for problem in error.problems:
            problems.add(mark, problem.what, problem.fix or places.suggestion(axis.name))
        return None
    return by_path


def _refuse_collisions(plane: Plane, places: Places, problems: Problems) -> None:
    """Report two axes of which the second overwrites the first."""
    for first, second in itertools.combinations(plane.axes, 2):
        if places.collide(first.name, second.name):
            mark = Mark(f"--sweep {printable(second.name, 80)}")
            problems.add(
                mark, f"it sets the same number as {quoted(first.name)}", "leave one of the axes out"
            )


def _check(plane: Plane, problems: Problems) -> None:
    """Load the recipe for every point, and raise whatever was found until now or is found then.

    Along each axis first, so that each can name its first wrong value; then at all points together. Where an axis is
    wrong by its name, others are checked all the same, but what the recipe then lacks may be that axis' value.
    """
    lame = bool(problems.found)
    corner = {axis.name: axis.values[0] for axis in plane.axes}
    for axis in plane.axes:
        for value in axis.values:
            if not _holds(plane, {**corner, axis.name: value}, problems, axes_alone=lame):
                break
    problems.raise_any()
    for point in plane.points():
        if not _holds(plane, point, problems, axes_alone=False):
            problems.raise_any()


def _holds(plane: Plane, point: Mapping[str, Value], problems: Problems, *, axes_alone: bool) -> bool:
    """Tell whether the recipe holds together at a point, reporting what does not: of the axes alone, or of it all."""
    try:
        plane.recipe(point)
    except RecipeProblems as error:
        marks = {f"--set {name}={_text(value)}": _mark(name, value) for name, value in point.items()}
        known = {*marks.values(), *(problem.mark for problem in plane.own_problems)}
        where = ", ".join(f"{name}={_text(value)}" for name, value in point.items())
        before = problems.reports
        for problem in error.problems:
            mark = marks.get(problem.mark.source, problem.mark)
            what = problem.what if mark in known else f"{problem.what} (at {where})"
            if not axes_alone or mark in marks.values():
                problems.add(mark, what, problem.fix)
        return problems.reports == before
    return True


def _mark(name: str, value: Value) -> Mark:
    return Mark(f"--sweep {printable(name, 80)}={printable(_text(value), 80)}")


def _text(value: Value) -> str:
    """Write a value as a recipe would.

    >>> [_text(v) for v in (True, 0.1, -2, "none")]
    ['true', '0.1', '-2', 'none']
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, (int, float)) else value
