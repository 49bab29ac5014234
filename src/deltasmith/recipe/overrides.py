"""`--set a.b=c`: changes to a recipe's tree before it is checked; a bad value is reported like any other."""

from __future__ import annotations

from collections.abc import Iterable

from deltasmith.errors import RecipeError, printable
from deltasmith.recipe.presets import labels_of
from deltasmith.recipe.problems import Problem, RecipeProblems, quoted, suggestion
from deltasmith.recipe.tree import Entry, Keyed, Listing, Mark, Node, Scalar
from deltasmith.recipe.yaml_file import parse

__all__ = ["apply"]


def apply(recipe: Node, settings: Iterable[str]) -> Node:
    """Return the tree with every `path=value` set, in order.

    A path is keys, list positions and labels joined by dots: `scale=1.1`, `models.0.weight=0.5`,
    `models.math.edits.0.drop.density=0.3`. The last part may be new, the others must exist. Values are YAML.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        mark = Mark(f"--set {printable(setting, limit=120)}")
        if not equals or not all(path.split(".")):
            raise RecipeError(f"{mark} is not of the form key=value", fix="write --set models.0.weight=0.5")
        recipe = _set(recipe, path.split("."), _value(text, mark), mark)
    return recipe


def _value(text: str, mark: Mark) -> Node:
    """Read the value as YAML; every place in it is the option itself."""
    try:
        return Scalar(None, mark) if not text.strip() else _moved(parse(text, mark.source), mark)
    except RecipeError as error:
        raise RecipeError(f"{mark}: the value is not valid YAML", fix="quote it") from error


def _moved(node: Node, mark: Mark) -> Node:
    if isinstance(node, Scalar):
        return Scalar(node.value, mark, node.text)
    if isinstance(node, Listing):
        return Listing(tuple(_moved(item, mark) for item in node.items), mark)
    return Keyed(tuple(Entry(e.key, mark, _moved(e.value, mark)) for e in node), mark)


def _set(node: Node, path: list[str], value: Node, mark: Mark) -> Node:
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(node, Scalar) and node.value == step:
        # An operation written as its name alone: `merge.elect.zero=none` where the recipe has `merge: elect`.
        return Keyed((Entry(step, node.mark, _set(Keyed((), node.mark), rest, value, mark)),), node.mark)
    if isinstance(node, Keyed):
        found = node.get(step)
        if found is None and rest:
            _unknown(step, node.keys, mark)
        return node.having(
            step, value if found is None else _set(found, rest, value, mark), _key_mark(node, step, mark)
        )
    if isinstance(node, Listing):
        position = _position(node, step, mark)
        # Naming an edit by its operation selects it; the operation is then also the first step inside.
        inner = path if _names_operation(node.items[position], step) else rest
        items = (
            _set(item, inner, value, mark) if i == position else item for i, item in enumerate(node.items)
        )
        return Listing(tuple(items), node.mark)
    raise RecipeProblems([Problem(mark, f"there is nothing inside {node} to set {quoted(step)} in")])


def _key_mark(node: Keyed, key: str, mark: Mark) -> Mark:
    entry = node.entry(key)
    return entry.mark if entry else mark


def _names_operation(item: Node, step: str) -> bool:
    if isinstance(item, Scalar):
        return item.value == step
    return isinstance(item, Keyed) and step in item and "model" not in item


def _position(node: Listing, step: str, mark: Mark) -> int:
    """Find the item a step means: a position, a model's label, or the operation of an edit."""
    if step.isdecimal() and int(step) < len(node.items):
        return int(step)
    models = any(isinstance(item, Keyed) and "model" in item for item in node.items)
    labels = labels_of(node) if models else ()
    chosen = [
        i for i, item in enumerate(node.items) if step in labels[i : i + 1] or _names_operation(item, step)
    ]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise RecipeProblems(
            [Problem(mark, f"{quoted(step)} is there {len(chosen)} times", "give its position")]
        )
    numbers = [str(i) for i in range(len(node.items))]
    _unknown(step, (*labels, *_operations(node)) or numbers, mark)
    raise AssertionError("unreachable")


def _operations(node: Listing) -> list[str]:
    names = [str(item.value) for item in node.items if isinstance(item, Scalar)]
    return names + [
        key for item in node.items if isinstance(item, Keyed) and "model" not in item for key in item.keys
    ]


def _unknown(step: str, known: Iterable[str], mark: Mark) -> None:
    fix = suggestion(step, known, "there is")
    raise RecipeProblems([Problem(mark, f"the recipe has no {quoted(step)} there", fix)])
