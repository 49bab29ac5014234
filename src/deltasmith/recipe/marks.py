"""Marks for `tune` in a recipe's tree: telling them from other mappings, and putting something in their place.

What a mark means is read by `search.marks`; a recipe that is to be carried out may not hold any.
"""

from __future__ import annotations

from collections.abc import Callable

from deltasmith.recipe.presets import labels_of
from deltasmith.recipe.tree import Entry, Keyed, Listing, Node, Scalar

__all__ = ["MARK", "OPTIONS", "is_mark", "replaced"]

MARK = "tune"
OPTIONS = ("step", "log", "integer")
"""The keys that may stand beside `tune`."""


def is_mark(node: Node) -> bool:
    """Tell whether a node is a mark: `{tune: [low, high]}` or `{tune: {choices: […]}}`, with or without options.

    A value per label of a model that is called "tune" is none: `{tune: 0.5, math: 0.3}`.
    """
    if not isinstance(node, Keyed) or not all(key in (MARK, *OPTIONS) for key in node.keys):
        return False
    said = node.get(MARK)
    return isinstance(said, (Listing, Keyed)) and not (isinstance(said, Keyed) and "layers" in said)


def replaced(node: Node, by: Callable[[Keyed, str], Node], path: str = "") -> Node:
    """Return the tree with every mark replaced by what `by` makes of it and of its dotted path.

    The path is the one `--set` takes, with labels for models where they are unambiguous: `models.math.weight`.
    """
    if isinstance(node, Keyed):
        if is_mark(node):
            return by(node, path)
        entries = (Entry(e.key, e.mark, replaced(e.value, by, _inner(path, e.key))) for e in node)
        return Keyed(tuple(entries), node.mark)
    if isinstance(node, Listing):
        names = _names(node)
        items = (replaced(item, by, _inner(path, name)) for item, name in zip(node.items, names, strict=True))
        return Listing(tuple(items), node.mark)
    return node


def _inner(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _names(node: Listing) -> list[str]:
    """Name the items of a list: models by their labels, anything else by its position."""
    if not any(
        isinstance(item, Keyed) and isinstance(item.get("model"), (Scalar, Keyed)) for item in node.items
    ):
        return [str(i) for i in range(len(node.items))]
    labels = labels_of(node)
    plain = [label if label.isidentifier() and labels.count(label) == 1 else None for label in labels]
    return [label or str(i) for i, label in enumerate(plain)]
