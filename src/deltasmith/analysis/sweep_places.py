"""What a name in `--sweep` means in a recipe's tree: fields of operations, keys, weights; and how each is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, partial
from typing import cast

from deltasmith.recipe.catalogue import DIALECTS, EDITS, Dialect, Kind, choice
from deltasmith.recipe.presets import PRESETS, Preset, fields_of
from deltasmith.recipe.problems import listed, nearest
from deltasmith.recipe.tree import Keyed, Listing, Node, Scalar, plain

__all__ = ["Places", "Setter"]

Setter = Callable[[Keyed, Scalar], Keyed]
"""Return the recipe's tree with a value in all the places that a name means."""

_KEYS = ("scale", "seed", "dialect", "dtype", "nonfinite", "space", "tokenizer", "where")
_COMPLEMENTS = ("p", "rate")
_UNSWEPT = ("statistics",)


@dataclass(frozen=True)
class Places:
    """The places of a recipe that a sweep can vary, by their names.

    >>> from deltasmith.recipe.tree import Mark, lift
    >>> edits = [{"drop": {"density": 0.5}}]
    >>> tree = lift({"base": "b", "models": [{"model": "m", "edits": edits}]}, Mark("recipe"))
    >>> Places(tree).names
    ('density', 'drop.density', 'drop.p', 'p', 'scale', 'seed', 'weight')
    """

    root: Keyed

    @property
    def names(self) -> tuple[str, ...]:
        """List what a message offers: fields with and without their operations, `p`, keys, `weight`."""
        fields = [
            *self._fields,
            *(f"{name}.{field}" for name, has in self._operations.items() for field in has),
        ]
        complements = [
            f"{name[: -len('density')]}p" for name in fields if name.endswith("density") and self._free("p")
        ]
        return tuple(sorted({*fields, *complements, "scale", "seed", "weight"}))

    def suggestion(self, name: str) -> str:
        """Say what was probably meant, or what there is."""
        near = nearest(name, self.names)
        short = [known for known in self.names if "." not in known]
        return f'did you mean "{near}"?' if near else f"what can be swept: {listed(short, 'and')}"

    def setter(self, name: str) -> Setter | None:
        """Return what sets `name` everywhere it means; None where it means nothing."""
        if self.complement(name):
            inner = self._plain_setter(self._direct(name))
            return None if inner is None else partial(_complemented, inner)
        return self._plain_setter(name)

    def complement(self, name: str) -> bool:
        """Tell whether a name stands for 1 - density: `p` or `rate`, where nothing is called that."""
        operation, _, field = name.rpartition(".")
        if field not in _COMPLEMENTS or operation not in ("", *self._operations) or not self._free(field):
            return False
        return "density" in (self._operations[operation] if operation else self._fields)

    def collide(self, first: str, second: str) -> bool:
        """Tell whether two names mean the same place, somewhere."""
        one, other = self._direct(first), self._direct(second)
        (operation, _, field), (again, _, field_again) = one.rpartition("."), other.rpartition(".")
        return one == other or (field == field_again and "" in (operation, again) and field in self._fields)

    def note(self, name: str) -> str:
        """Say that a name means fields of several operations; empty where it does not."""
        direct = self._direct(name)
        owners = [operation for operation, has in self._operations.items() if direct in has]
        if len(owners) < 2:
            return ""
        return (
            f"{name} is swept in {listed(owners, 'and')} at once; {owners[0]}.{name} would mean one of them"
        )

    def _free(self, name: str) -> bool:
        return name not in self._fields

    def _direct(self, name: str) -> str:
        """Return the name with `density` in place of a complement."""
        if not self.complement(name):
            return name
        operation, dot, _ = name.rpartition(".")
        return f"{operation}{dot}density"

    def _plain_setter(self, name: str) -> Setter | None:
        operation, _, field = name.rpartition(".")
        if operation in self._operations and field in self._operations[operation]:
            if self._preset is not None:
                return partial(_set_key, field)
            return partial(_set_fields, field, frozenset([operation]))
        if name in self._fields:
            if self._preset is not None:
                return partial(_set_key, name)
            owners = frozenset(o for o, has in self._operations.items() if name in has)
            return partial(_set_fields, name, owners)
        if name == "weight":
            return _set_weights
        return partial(_set_key, name) if name in _KEYS else None

    @cached_property
    def _preset(self) -> Preset | None:
        said = self.root.get("preset")
        return PRESETS.get(str(plain(said))) if isinstance(said, Scalar) else None

    @cached_property
    def _dialect(self) -> Dialect:
        return _dialect(self.root.get("dialect"), "paper")

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        """List the fields that a bare name may mean."""
        found = dict.fromkeys(field for has in self._operations.values() for field in has)
        if self._preset is not None and self._preset.extra is not None:
            found[self._preset.extra.name] = None
        return tuple(found)

    @cached_property
    def _operations(self) -> dict[str, tuple[str, ...]]:
        """Map the operations of the recipe to their fields; of a preset, those it takes from each."""
        if self._preset is not None:
            shape = self._preset.shape_for(self.root, self._dialect)
            goes = fields_of(self._preset, self._dialect)
            found: dict[str, tuple[str, ...]] = {}
            for kind, position, use in (
                *(("edit", i, use) for i, use in enumerate(shape.edits)),
                ("merge", 0, shape.merge),
            ):
                own = tuple(f for f, place in goes.items() if place == (kind, position) and f not in _UNSWEPT)
                found[use.name] = (*found.get(use.name, ()), *own)
            return found
        known: dict[str, tuple[str, ...]] = {}
        for kind, name, fields in _operations(self.root):
            dialect = _dialect(fields.get("dialect"), self._dialect)
            chosen = choice(kind, name, dialect) or choice(kind, name, "paper")
            if chosen is not None:
                own = tuple(field for field in chosen.load().model_fields if field not in _UNSWEPT)
                known[name] = tuple(dict.fromkeys((*known.get(name, ()), *own)))
        return known


def _dialect(node: Node | None, default: Dialect) -> Dialect:
    said = None if node is None else plain(node)
    return cast(Dialect, said) if said in DIALECTS else default


def _operations(root: Keyed) -> Iterator[tuple[Kind, str, Keyed]]:
    """Yield every edit of every model, and the merge."""
    for edit in _edits(root):
        if (split := _split(edit, among=EDITS)) is not None:
            yield "edit", *split
    merge = root.get("merge")
    if merge is not None and (split := _split(merge)) is not None:
        yield "merge", *split


def _edits(root: Keyed) -> Iterator[Node]:
    models = root.get("models")
    for model in models.items if isinstance(models, Listing) else ():
        edits = model.get("edits") if isinstance(model, Keyed) else None
        yield from edits.items if isinstance(edits, Listing) else ()


def _split(node: Node, among: object = None) -> tuple[str, Keyed] | None:
    """Split an operation into name and fields; None for what is none (the check of the recipe will complain)."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        return node.value, Keyed((), node.mark)
    for entry in node if isinstance(node, Keyed) else ():
        if among is None or entry.key in EDITS:
            inner = entry.value if isinstance(entry.value, Keyed) else Keyed((), entry.mark)
            return entry.key, inner
    return None


def _set_key(key: str, root: Keyed, value: Scalar) -> Keyed:
    return root.having(key, value)


def _complemented(setter: Setter, root: Keyed, value: Scalar) -> Keyed:
    """Set density to 1 - value, exactly as it would be written."""
    rate = value.value
    assert isinstance(rate, (int, float)), "the axis has been checked to hold numbers"
    density = float(1 - Decimal(repr(rate)))
    return setter(root, Scalar(density, value.mark, f"{density:g}"))


def _set_weights(root: Keyed, value: Scalar) -> Keyed:
    return _over_models(root, lambda model: model.having("weight", value))


def _set_fields(field: str, owners: frozenset[str], root: Keyed, value: Scalar) -> Keyed:
    """Set a field in every edit of these names, of all models, and in the merge if it has one of them."""

    def edited(model: Keyed) -> Keyed:
        edits = model.get("edits")
        if not isinstance(edits, Listing):
            return model
        items = tuple(_set_field(edit, field, owners, value) for edit in edits.items)
        return model.having("edits", Listing(items, edits.mark))

    root = _over_models(root, edited)
    merge = root.get("merge")
    return root if merge is None else root.having("merge", _set_field(merge, field, owners, value))


def _over_models(root: Keyed, change: Callable[[Keyed], Keyed]) -> Keyed:
    models = root.get("models")
    if not isinstance(models, Listing):
        return root
    items = tuple(change(model) if isinstance(model, Keyed) else model for model in models.items)
    return root.having("models", Listing(items, models.mark))


def _set_field(node: Node, field: str, owners: frozenset[str], value: Scalar) -> Node:
    """Set a field of one operation, written as a name or with its fields, if it is one of those meant."""
    if isinstance(node, Scalar) and node.value in owners:
        return Keyed((), node.mark).having(
            str(node.value), Keyed((), node.mark).having(field, value), node.mark
        )
    if not isinstance(node, Keyed):
        return node
    for entry in node:
        if entry.key in owners:
            fields = entry.value if isinstance(entry.value, Keyed) else Keyed((), entry.mark)
            return node.having(entry.key, fields.having(field, value), entry.mark)
    return node
