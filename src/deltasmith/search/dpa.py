"""DPPA's search for amplification factors as a preset of `tune`: which numbers of a recipe it climbs, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

from deltasmith.errors import RecipeError
from deltasmith.planning.dppa_search import Visit, search, search_as_released
from deltasmith.recipe.catalogue import name_of
from deltasmith.recipe.checks import from_tree
from deltasmith.recipe.marks import MARK
from deltasmith.recipe.tree import Entry, Keyed, Listing, Node, Scalar
from deltasmith.search.marked import MarkedRecipe, read_marks

__all__ = ["STEP", "Climb", "Factors", "climb_of"]

STEP = 0.1
_MOST = 10.0
_MOST_RELEASED = 1000.0
"""The released loop has no upper end; a climb as long as this would take ten thousand trials."""
_FIELD = "factors"

Factors = tuple[float, ...]


@dataclass(frozen=True)
class Climb:
    """A recipe whose factors have become marks, where they start, and the search in the recipe's dialect."""

    marked: MarkedRecipe
    start: Factors
    released: bool

    def visits(self, score: Callable[[Factors], float]) -> Iterator[Visit]:
        """Visit factors, one axis after the other, in steps of 0.1."""
        if self.released:
            return search_as_released(score, self.start, STEP)
        return search(score, self.start, STEP, _MOST)

    def built(self, factors: Factors) -> Factors:
        """Return the factors that a model is made with: the released script prints them with one decimal."""
        return tuple(float(f"{f:.1f}") for f in factors) if self.released else factors


def climb_of(marked: MarkedRecipe) -> Climb:
    """Make marks of all numbers under `factors`, of a `dppa` preset or of `amplify_partitions` edits.

    With `dialect: authors` the search is the released one.

    Raises RecipeError where the recipe has no factors, or has marks.
    """
    if marked.dimensions:
        raise RecipeError(
            "--sampler dpa climbs the factors from the numbers they have",
            where=str(marked.dimensions[0].mark),
            fix="write a number in place of {tune: …}, or choose another --sampler",
        )
    root = marked.root
    recipe = from_tree(root, marked.folder)
    edits = [name_of(edit.record) for entry in recipe.models for edit in entry.edits]
    amplifying = [dialect for name, dialect in edits if name == "amplify_partitions"]
    released = "authors" in amplifying
    start: list[float] = []
    tree = _with_marks(root, False, _MOST_RELEASED if released else _MOST, start)
    if not start or not amplifying:
        raise RecipeError(
            "--sampler dpa needs a recipe with factors",
            where=root.mark.source,
            fix="write preset: dppa and factors: [1.0, 1.0]",
        )
    tree = cast(Keyed, tree)
    return Climb(replace(marked, root=tree, dimensions=read_marks(tree)), tuple(start), released)


def _with_marks(node: Node, inside: bool, most: float, start: list[float]) -> Node:
    """Replace the numbers under `factors` by marks from 0 to `most`, and collect them in `start`."""
    if isinstance(node, Listing):
        return Listing(tuple(_with_marks(item, inside, most, start) for item in node.items), node.mark)
    if isinstance(node, Keyed):
        entries = (
            Entry(e.key, e.mark, _with_marks(e.value, inside or e.key == _FIELD, most, start)) for e in node
        )
        return Keyed(tuple(entries), node.mark)
    if not inside or isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
        return node
    start.append(float(node.value))
    ends = Listing((Scalar(0.0, node.mark), Scalar(most, node.mark)), node.mark)
    return Keyed((Entry(MARK, node.mark, ends),), node.mark)
