"""Who descends from whom: from manifests, recipes and packed deltas, or as it is given by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.features.descent import Descent, Given, descent_of
from deltasmith.features.graph import Graph, Node
from deltasmith.recipe.checks import is_recipe_file
from deltasmith.recipe.problems import Problems, suggestion
from deltasmith.recipe.tree import Entry, Keyed, Listing, Scalar, describe
from deltasmith.recipe.yaml_file import parse, read_text

__all__ = ["Lineage", "lineage_of", "resolve"]

_LABEL = re.compile(r"\w[\w.+-]{0,59}")
_LABEL_RULE = "a label is 1 to 60 letters, digits, and _ . + - (not first)"
_KEYS = ("model", "from", "base")
_SYNTAX = "write --parent CHILD=PARENT, or CHILD=PARENT,PARENT@BASE for a merge"


@dataclass(frozen=True)
class Lineage:
    """The graph of the models, and what a reader should know of how it was found."""

    graph: Graph
    notes: tuple[str, ...] = ()


def resolve(models: Sequence[str], parents: Sequence[str] = ()) -> Graph:
    """Return the graph of `lineage_of` without its notes."""
    return lineage_of(models, parents).graph


def lineage_of(models: Sequence[str], parents: Sequence[str] = ()) -> Lineage:
    """Order models so that parents come before children, and find out who they are.

    `models` are LABEL=SOURCE (a folder, a hub id, a packed delta, a recipe), or one YAML file
    `{LABEL: {model: SOURCE, from: LABEL or [LABELS], base: LABEL}}`, whose paths count from its folder. `parents` are
    CHILD=PARENT, or CHILD=PARENT,PARENT@BASE for a merge; what is given by hand, there or by `from`, goes before
    what a model tells of itself. A merged folder tells it by its manifest (the hashes of the weight files say which
    of the given models it was made of), a recipe by its models, a packed delta by its base. Models that a merge
    joins over a base, and that tell nothing of themselves, descend from that base. Sizes are compared first; what
    must be hashed is remembered.

    Raises:
        RefusedError: fewer than two models. RecipeError: a label or option is wrong, a parent is unknown, someone
        descends from himself, or nothing tells where a model comes from. DamagedInputError: a model cannot be read.
    """
    given, by_hand = _from_yaml(Path(models[0])) if _is_yaml(models) else (_from_words(models), {})
    _check_labels(given)
    by_hand = {**by_hand, **_hand(parents, [model.label for model in given])}
    found: dict[str, Descent] = {}
    notes: list[str] = []
    for model in given:
        told = descent_of(model, [other for other in given if other is not model])
        notes += told.notes if told is not None and model.label not in by_hand else ()
        if (said := by_hand.get(model.label)) is not None:
            notes += _difference(model.label, said, told)
            found[model.label] = replace(said, method=None if told is None else told.method)
        elif told is not None and told.parents:
            found[model.label] = told
    notes += _from_bases(found)
    graph = Graph.sorted([_node(model, found.get(model.label)) for model in given])
    _refuse_strangers(graph)
    return Lineage(graph, tuple(notes))


def _node(model: Given, told: Descent | None) -> Node:
    told = told or Descent(())
    return Node(model.label, model.source, model.shown, told.parents, told.base, told.method)


def _is_yaml(models: Sequence[str]) -> bool:
    return (
        len(models) == 1 and is_recipe_file(models[0]) and ("=" not in models[0] or Path(models[0]).is_file())
    )


def _from_words(models: Sequence[str]) -> list[Given]:
    given = []
    for word in models:
        label, sign, source = word.partition("=")
        if not sign or not source or not label:
            raise RecipeError(f"{printable(word)!r} is no model", fix="write LABEL=SOURCE, as in base=./base")
        given.append(Given(label, source))
    return given


def _check_labels(given: Sequence[Given]) -> None:
    """Refuse labels that cannot name files, and two that some file systems take for one; and a single model."""
    if len(given) < 2:
        raise RefusedError(
            f"{'one model is' if given else 'no models are'} given",
            fix="give at least two, a parent and a child, as LABEL=SOURCE",
        )
    seen: set[str] = set()
    for model in given:
        if not _LABEL.fullmatch(model.label):
            raise RecipeError(f"{printable(model.label)!r} cannot be a label", fix=_LABEL_RULE)
        if model.label.casefold() in seen:
            what = f"two models are called {printable(model.label)!r}"
            raise RecipeError(what, fix="give them labels that differ in more than case")
        seen.add(model.label.casefold())


def _hand(parents: Sequence[str], labels: Sequence[str]) -> dict[str, Descent]:
    """Read CHILD=PARENT[,PARENT…][@BASE]."""
    found: dict[str, Descent] = {}
    for word in parents:
        child, sign, rest = word.partition("=")
        listed, at, base = rest.partition("@")
        names = tuple(name.strip() for name in listed.split(","))
        if not sign or not all(names) or (at and not base):
            raise RecipeError(f"--parent {printable(word)!r} cannot be read", fix=_SYNTAX)
        for name in (child, *names, *filter(None, [base])):
            if name not in labels:
                fix = suggestion(name, labels, "the models are")
                raise RecipeError(f"--parent {printable(word)!r} names {name!r}, which is no model", fix=fix)
        if child in found:
            fix = "name all parents in one option: " + _SYNTAX.removeprefix("write ")
            raise RecipeError(f"--parent names the parents of {child!r} twice", fix=fix)
        found[child] = _checked(child, names, base or None)
    return found


def _checked(child: str, parents: tuple[str, ...], base: str | None) -> Descent:
    if child in (*parents, base):
        raise RecipeError(f"{printable(child)!r} cannot descend from itself", where="lineage", fix=_SYNTAX)
    if len(set(parents)) < len(parents):
        raise RecipeError(
            f"a parent of {printable(child)!r} is named twice", where="lineage", fix="name it once"
        )
    return Descent(parents, None if base in parents else base)


def _difference(label: str, said: Descent, told: Descent | None) -> Iterator[str]:
    """Note where what is given by hand is not what the model tells."""
    if told is None or not told.parents or (set(told.parents), told.base) == (set(said.parents), said.base):
        return
    over = f" over {told.base}" if told.base else ""
    yield (
        f"{printable(label, 80)}: by its own record it descends from {', '.join(told.parents)}{over}; "
        f"what was given by hand is used"
    )


def _from_bases(found: dict[str, Descent]) -> list[str]:
    """Let the parents of a merge that tell nothing of themselves descend from the merge's base."""
    notes = []
    for label, told in list(found.items()):
        for parent in told.parents if told.base is not None else ():
            if parent in found or parent in _above(found, str(told.base)):
                continue
            found[parent] = Descent((str(told.base),))
            notes.append(
                f"{printable(parent, 80)} is taken to descend from {printable(str(told.base), 80)}, over which "
                f"{printable(label, 80)} was merged from it"
            )
    return notes


def _above(found: Mapping[str, Descent], label: str) -> set[str]:
    """Return every model that `label` is known to descend from, and itself."""
    seen, queue = {label}, [label]
    while queue:
        told = found.get(queue.pop(), Descent(()))
        new = {*told.parents, *filter(None, [told.base])} - seen
        seen |= new
        queue += new
    return seen


def _refuse_strangers(graph: Graph) -> None:
    """Refuse models that no descent joins with the first one given."""
    groups: list[set[str]] = []
    for node in graph.nodes:
        group = {node.label, *node.parents, *filter(None, [node.base])}
        groups = [g for g in groups if not g & group] + [group.union(*(g for g in groups if g & group))]
    if len(groups) == 1:
        return
    home = next(group for group in groups if graph.root.label in group)
    roots = [n.label for n in graph.nodes if not n.parents and n.label not in home]
    names = ", ".join(printable(label, 80) for label in roots)
    options = " ".join(f"--parent {label}={graph.root.label}" for label in roots)
    raise RecipeError(
        f"nothing tells where {names} {'comes' if len(roots) == 1 else 'come'} from",
        where="lineage",
        fix=f"name the parent of each, for example {options}",
    )


def _from_yaml(path: Path) -> tuple[list[Given], dict[str, Descent]]:
    """Read a file of models; every problem is reported with its place."""
    root, problems = parse(read_text(path, str(path)), str(path)), Problems()
    if not isinstance(root, Keyed):
        problems.add(
            root.mark, f"it must map labels to models, not {describe(root)}", "write LABEL: {model: SOURCE}"
        )
        problems.raise_any()
        raise AssertionError
    given: list[Given] = []
    said: dict[str, Descent] = {}
    for entry in root:
        if not isinstance(entry.value, Keyed):
            problems.add(entry.mark, f"{entry.key} must be a mapping", "write {model: SOURCE, from: LABEL}")
            continue
        source, parents, base = _entry(entry, entry.value, root.keys, problems)
        given.append(Given(entry.key, _placed(source, path.parent)))
        if parents or base is not None:
            said[entry.key] = Descent(
                parents or (str(base),), None if not parents or base in parents else base
            )
    problems.raise_any()
    for label, descent in said.items():
        _checked(label, descent.parents, descent.base)
    return given, said


def _entry(
    entry: Entry, node: Keyed, labels: Sequence[str], problems: Problems
) -> tuple[str, tuple[str, ...], str | None]:
    for item in node:
        if item.key not in _KEYS:
            problems.add(item.mark, f"unknown key {item.key!r}", suggestion(item.key, _KEYS, "the keys are"))
    source = node.get("model")
    if not isinstance(source, Scalar) or not isinstance(source.value, str) or not source.value.strip():
        problems.add(entry.mark, f"{entry.key} needs a model", "write {model: SOURCE}")
    above = node.get("from")
    named = above.items if isinstance(above, Listing) else [above] if above is not None else []
    base = node.get("base")
    for name in (*named, *([base] if base is not None else [])):
        if not isinstance(name, Scalar) or name.value not in labels:
            fix = suggestion(str(getattr(name, "value", "")), labels, "the models are")
            problems.add(name.mark, f"{describe(name)} is no model of this file", fix)
    return (
        str(getattr(source, "value", "")),
        tuple(str(getattr(name, "value", "")) for name in named),
        None if base is None else str(getattr(base, "value", "")),
    )


def _placed(source: str, folder: Path) -> str:
    """Return a source that counts from the working directory."""
    placed = folder / Path(source).expanduser()
    return str(placed) if placed.exists() or source.startswith((".", "/")) else source
