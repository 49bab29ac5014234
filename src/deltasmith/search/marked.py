"""A recipe with marks: its numbers found, filled in, checked, left out; its paths made good from anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deltasmith.errors import RecipeError
from deltasmith.recipe.checks import from_tree
from deltasmith.recipe.marks import MARK, is_mark, replaced
from deltasmith.recipe.model import Recipe
from deltasmith.recipe.overrides import apply
from deltasmith.recipe.problems import Problems, RecipeProblems
from deltasmith.recipe.tree import Entry, Keyed, Listing, Mark, Node, Scalar, describe, lift, plain
from deltasmith.recipe.yaml_file import parse, read_text
from deltasmith.search.marks import Dimension, Number, read_mark

__all__ = ["MarkedRecipe", "Values", "load_marked", "parse_recipe"]

Values = Mapping[str, Number]

_PATHS = ("base", "model", "statistics")
_INSIDE = 0.382
"""A position within every range at which a recipe is tried first; a round one might be whole by accident."""


@dataclass(frozen=True)
class MarkedRecipe:
    """A recipe's tree, the folder its paths count from, and its marks in the order they stand."""

    root: Keyed
    folder: Path
    dimensions: tuple[Dimension, ...]

    def tree(self, values: Values) -> Node:
        """Return the tree with numbers in place of the marks; each keeps the place of its mark."""

        def filled(mark: Keyed, path: str) -> Node:
            return Scalar(values[path], mark.mark, repr(values[path]))

        return replaced(self.root, filled)

    def check(self, values: Values) -> Recipe:
        """Check the recipe with these numbers; RecipeError, with lines, where it does not hold together."""
        return from_tree(self.tree(values), self.folder)

    def accepts(self, values: Values) -> bool:
        """Tell whether the recipe holds together with these numbers."""
        try:
            self.check(values)
        except RecipeError:
            return False
        return True

    def mapping(self, values: Values, below: Path | None = None) -> dict[str, Any]:
        """Return plain data with absolute paths, or relative to the folder `below` where they were relative."""
        return cast("dict[str, Any]", plain(_moved(self.tree(values), self._place(below))))

    def inside(self) -> dict[str, Number]:
        """Return numbers well inside every range."""
        return {d.name: d.span.at(_INSIDE) for d in self.dimensions}

    def check_ends(self) -> None:
        """Refuse a recipe without marks, a wrong one, and marks that range over numbers it does not allow.

        The recipe is tried inside all ranges, then at both ends of each. What fails for another reason than
        the value at the mark, such as two fields that must ascend, is left to the trials.
        """
        if not self.dimensions:
            raise RecipeError(
                "the recipe has no marks",
                where=self.root.mark.source,
                fix="write {tune: [low, high]} in place of a number",
            )
        inside, problems = self.inside(), Problems()
        self.check(inside)
        for dimension in self.dimensions:
            for end in (0.0, 1.0):
                try:
                    self.check({**inside, dimension.name: dimension.span.at(end)})
                except RecipeProblems as error:
                    for problem in error.problems:
                        if problem.mark == dimension.mark:
                            problems.add(problem.mark, problem.what, "narrow the range that tune searches")
        problems.raise_any()

    def default(self) -> MarkedRecipe | None:
        """Return the recipe without the marked fields, as its defaults have it; None where it needs them."""
        stripped = cast(Keyed, _stripped(self.root))
        try:
            from_tree(stripped, self.folder)
        except RecipeError:
            return None
        return MarkedRecipe(stripped, self.folder, ())

    def _place(self, below: Path | None) -> Callable[[str], str]:
        def moved(source: str) -> str:
            path = self.folder / Path(source).expanduser()
            if not path.exists():  # an id of the hub, or something that opening it will complain about
                return source
            if below is None:
                return os.path.abspath(path)  # noqa: PTH100 - links in it are the user's, and stay
            if Path(source).expanduser().is_absolute():
                return source
            relative = Path(os.path.relpath(path, below)).as_posix()
            return relative if relative.startswith(".") else f"./{relative}"

        return moved


def _moved(node: Node, place: Callable[[str], str]) -> Node:
    """Rewrite the sources of a recipe and of the recipes written inside it."""
    if isinstance(node, Listing):
        return Listing(tuple(_moved(item, place) for item in node.items), node.mark)
    if not isinstance(node, Keyed):
        return node
    entries: list[Entry] = []
    for entry in node:
        value = entry.value
        if entry.key in _PATHS and isinstance(value, Scalar) and isinstance(value.value, str):
            moved = place(value.value)
            entries.append(Entry(entry.key, entry.mark, Scalar(moved, value.mark, moved)))
        elif entry.key in (*_PATHS, "models"):
            entries.append(Entry(entry.key, entry.mark, _moved(value, place)))
        else:
            entries.append(entry)
    return Keyed(tuple(entries), node.mark)


def _stripped(node: Node) -> Node | None:
    """Return the tree without marked fields; a schedule that holds a mark goes as a whole."""
    if is_mark(node):
        return None
    if isinstance(node, Listing):
        items = [_stripped(item) for item in node.items]
        whole = [item for item in items if item is not None]
        return Listing(tuple(whole), node.mark) if len(whole) == len(items) else None
    if isinstance(node, Keyed):
        kept = [(entry, _stripped(entry.value)) for entry in node]
        entries = tuple(Entry(e.key, e.mark, value) for e, value in kept if value is not None)
        lost = [entry.key for entry, value in kept if value is None]
        if lost in (["layers"], ["value"]):  # of a schedule, there is no such thing as its default
            return None
        return Keyed(entries, node.mark)
    return node


def parse_recipe(recipe: str | Path | Mapping[str, Any], settings: Iterable[str] = ()) -> tuple[Keyed, Path]:
    """Read a recipe file, or plain data, as a tree with `settings` applied, and the folder its paths count from."""
    if isinstance(recipe, Mapping):
        root, folder = lift(recipe, Mark("recipe")), Path()
    else:
        path = Path(recipe)
        root, folder = parse(read_text(path, str(path)), str(path)), path.parent
    root = apply(root, settings)
    if not isinstance(root, Keyed):
        problems = Problems()
        what = f"a recipe must be a mapping of keys to values, not {describe(root)}"
        problems.add(root.mark, what, "start with base: and models:")
        raise problems.error()
    return root, folder


def load_marked(recipe: str | Path | Mapping[str, Any], settings: Iterable[str] = ()) -> MarkedRecipe:
    """Read a recipe's marks, if it has any; the recipe around them is not checked yet.

    Marks in recipes that this one names by their files are not searched; the check refuses them.

    Raises:
        RecipeError: with line and column of everything that is wrong with the marks.
    """
    root, folder = parse_recipe(recipe, settings)
    return MarkedRecipe(root, folder, read_marks(root))


def read_marks(root: Keyed) -> tuple[Dimension, ...]:
    """Read every mark of a tree, or report all that is wrong with them."""
    problems = Problems()
    found: list[Dimension | None] = []

    def read(mark: Keyed, path: str) -> Node:
        found.append(read_mark(mark, path, problems))
        return mark

    _report_strange(replaced(root, read), problems, _labels(root))
    problems.raise_any()
    return tuple(d for d in found if d is not None)


def _labels(root: Keyed) -> Sequence[str]:
    models = root.get("models")
    items = models.items if isinstance(models, Listing) else ()
    return [str(plain(label)) for m in items if isinstance(m, Keyed) and (label := m.get("label"))]


def _report_strange(node: Node, problems: Problems, labels: Sequence[str]) -> None:
    """Report mappings that were probably meant to be marks."""
    if isinstance(node, Listing):
        for item in node.items:
            _report_strange(item, problems, labels)
    elif isinstance(node, Keyed) and MARK in node and not is_mark(node) and MARK not in labels:
        fix = (
            "write {tune: [low, high]}, with step:, log: true or integer: true, or {tune: {choices: [a, b]}}"
        )
        problems.add(node.mark, "this is no mark that tune can read", fix)
    elif isinstance(node, Keyed):
        for entry in node:
            _report_strange(entry.value, problems, labels)
