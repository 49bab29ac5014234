"""Presets: a paper as a few lines of recipe. Each names the edits and the merge it stands for, nothing else.

A preset's own fields are the fields of its operations, written at the top level of the recipe; a field of an
edit may be given per label. Expanding is rewriting: what comes out has no `preset` and means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltasmith.recipe.catalogue import Dialect, Kind, choice
from deltasmith.recipe.problems import Problems, quoted, suggestion
from deltasmith.recipe.tree import Entry, Keyed, Listing, Mark, Node, Scalar, describe, lift, plain

__all__ = ["COMMON", "PRESETS", "Extra", "Preset", "Shape", "Use", "fields_of", "for_label", "labels_of"]

COMMON = (
    "base",
    "models",
    "space",
    "scale",
    "where",
    "rules",
    "tokenizer",
    "dtype",
    "seed",
    "dialect",
    "nonfinite",
)
"""Keys that mean the same with a preset as without."""


@dataclass(frozen=True)
class Use:
    """One operation of a preset, and the values the preset gives its fields unless the recipe does."""

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """What a preset expands to: edits of every model in order, then the merge."""

    merge: Use
    edits: tuple[Use, ...] = ()


@dataclass(frozen=True)
class Extra:
    """A field that belongs to no operation: `apply` turns its value into ordinary keys of the recipe."""

    name: str
    apply: Callable[[Keyed, Entry | None, Mark, Problems], Keyed]
    meaning: str
    default: float | None = None


@dataclass(frozen=True)
class Preset:
    """A named recipe.

    `dialects` holds the shapes of dialects that differ in more than their records; `extra` a field that is no
    operation's; `without` a field, and the shape the preset takes where the recipe leaves that field out.
    """

    name: str
    shape: Shape
    dialects: Mapping[Dialect, Shape] = field(default_factory=dict)
    extra: Extra | None = None
    without: tuple[str, Shape] | None = None

    def in_dialect(self, dialect: Dialect) -> Shape:
        """Return the shape in one dialect."""
        return self.dialects.get(dialect, self.shape)

    def shape_for(self, recipe: Keyed, dialect: Dialect) -> Shape:
        """Return the shape for one recipe: another one where it leaves out the field that `without` names."""
        if self.without is not None and self.without[0] not in recipe:
            return self.without[1]
        return self.in_dialect(dialect)


def _plus_one(value: Any) -> Any:
    """Add 1 to a number, or to every number of a schedule."""
    if isinstance(value, dict):
        return {key: [_plus_one(x) for x in v] if key == "layers" else v for key, v in value.items()}
    if isinstance(value, list):
        return [{**item, "value": _plus_one(item["value"])} for item in value]
    return 1 + value


def _scale_from_alpha(recipe: Keyed, given: Entry | None, mark: Mark, problems: Problems) -> Keyed:
    """ExPO: base + (1 + alpha) delta."""
    if clash := recipe.entry("scale"):
        problems.add(clash.mark, "expo sets scale to 1 + alpha", "remove scale, or leave the preset out")
        return recipe
    alpha = given.value if given else Scalar(EXPO_ALPHA, mark)
    try:
        scale = _plus_one(plain(alpha))
    except (TypeError, KeyError):
        problems.add(alpha.mark, f"alpha must be a number or a schedule, not {describe(alpha)}")
        return recipe
    return recipe.having("scale", lift(scale, alpha.mark), given.mark if given else mark)


def _weights_from_examples(recipe: Keyed, given: Entry | None, mark: Mark, problems: Problems) -> Keyed:
    """FedAvg: every model weighs as many examples as it was trained on."""
    if given is None:
        problems.add(mark, 'fedavg needs "examples"', "write examples: {label: number of training examples}")
        return recipe
    models = recipe.get("models")
    if not isinstance(models, Listing):
        return recipe
    labels = labels_of(models)
    entries: list[Node] = []
    for label, model in zip(labels, models.items, strict=True):
        count = for_label(given, label, labels, problems)
        if isinstance(model, Keyed) and (clash := model.entry("weight")):
            problems.add(clash.mark, "fedavg sets the weights from examples", "remove weight, or the preset")
        elif isinstance(model, Keyed) and count is not None:
            if not _positive(plain(count.value)):
                what = f"examples must be a number above 0, not {describe(count.value)}"
                problems.add(count.value.mark, what)
            model = model.having("weight", count.value, count.mark)
        entries.append(model)
    return recipe.having("models", Listing(tuple(entries), models.mark))


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def labels_of(models: Listing) -> tuple[str, ...]:
    """Return the labels the models have or will get: "m0", "m1", … by position where none is given."""
    given = [model.get("label") if isinstance(model, Keyed) else None for model in models.items]
    return tuple(f"m{i}" if node is None else str(plain(node)) for i, node in enumerate(given))


def for_label(entry: Entry, label: str, labels: tuple[str, ...], problems: Problems) -> Entry | None:
    """Return the entry with the value meant for one model: its own if given per label, else the same.

    `{layers: [...]}` is a schedule, any other mapping is per label and must name every model.
    """
    value = entry.value
    if not isinstance(value, Keyed) or (
        value.keys == ("layers",) and isinstance(value.get("layers"), Listing)
    ):
        return entry
    for inner in value:
        if inner.key not in labels:
            what = f"{entry.key}: no model has the label {quoted(inner.key)}"
            problems.add(inner.mark, what, suggestion(inner.key, labels, "the labels are"))
    own = value.get(label)
    if own is None:
        strange = [key for key in value.keys if key not in labels]
        if not strange:
            what = f"{entry.key} has no value for the model {quoted(label)}"
            problems.add(value.mark, what, f"add {label}: number")
        # The recipe is refused by now; another model's value keeps it from being called incomplete as well.
        own = next((inner.value for inner in value), None)
    return None if own is None else Entry(entry.key, entry.mark, own)


EXPO_ALPHA = 0.3
"""The gentler of the two values the authors' page calls usually good (0.3 and 0.5)."""

_ALPHA = Extra("alpha", _scale_from_alpha, "How far to go beyond the model: scale is 1 + alpha.", EXPO_ALPHA)
_EXAMPLES = Extra("examples", _weights_from_examples, "Training examples of each model: {label: number}.")

_WINDOW = 0.14
"""The example of DELLA's authors; with a window of 0 it would be DARE."""


def _use(name: str, **values: Any) -> Use:
    return Use(name, values)


def _edited(edit: Use, merge: Use) -> Shape:
    return Shape(merge, (edit,))


def _only(name: str) -> Preset:
    """Return a preset that is one merge of the same name."""
    return Preset(name, Shape(Use(name)))


def _magprune(name: str) -> Preset:
    paper = _edited(_use("drop_by_rank", window=_WINDOW), _use("sum"))
    return Preset(name, paper, {"mergekit": _edited(_use("drop_by_rank"), _use("sum"))})


_ALL = (
    Preset("average", Shape(_use("linear"))),
    Preset("bitdelta", _edited(_use("quantise", codec="bitdelta"), _use("sum"))),
    Preset("breadcrumbs", _edited(_use("keep_middle"), _use("sum"))),
    Preset(
        "breadcrumbs_ties",
        _edited(_use("keep_middle"), _use("elect", zero="majority")),
        # mergekit adds the agreeing deltas up; only in ties and della does it divide by their weights.
        {"mergekit": _edited(_use("keep_middle"), _use("elect_sum", zero="positive"))},
    ),
    _only("cabs"),
    _only("consensus"),
    Preset("dare", _edited(_use("drop"), _use("sum"))),
    Preset(
        "dare_ties",
        _edited(_use("drop"), _use("elect", zero="majority")),
        {"mergekit": _edited(_use("drop"), _use("elect_sum", zero="positive"))},
    ),
    Preset(
        "della",
        _edited(_use("drop_by_rank", window=_WINDOW), _use("elect", zero="none")),
        {
            "authors": _edited(_use("drop_by_rank", window=_WINDOW), _use("elect", zero="positive")),
            "mergekit": _edited(_use("drop_by_rank"), _use("elect", zero="positive")),
        },
    ),
    _magprune("della_linear"),
    Preset("dppa", _edited(_use("amplify_partitions"), _use("sum"))),
    # One task's model, or, with no task named, the unified one.
    Preset("emr", Shape(_use("emr")), without=("task", Shape(_use("unify")))),
    Preset("expo", Shape(_use("sum")), extra=_ALPHA),
    Preset("fedavg", Shape(_use("linear")), extra=_EXAMPLES),
    _only("fisher"),
    _only("iso_c"),
    _only("iso_cts"),
    Preset("k_dare", _edited(_use("drop_partly"), _use("sum"))),
    _only("karcher"),
    _only("linear"),
    Preset("magnitude", _edited(_use("keep_largest"), _use("sum"))),
    _magprune("magprune"),
    _only("model_stock"),
    _only("multislerp"),
    _only("nuslerp"),
    _only("passthrough"),
    _only("pcb"),
    _only("regmean"),
    _only("sce"),
    _only("slerp"),
    _only("tall"),
    Preset("task_arithmetic", Shape(_use("sum"))),
    Preset(
        "ties",
        _edited(_use("keep_largest", density=0.2), _use("elect", zero="majority")),
        {"mergekit": _edited(_use("keep_largest", density=1.0), _use("elect", zero="positive"))},
    ),
    _only("tsv"),
    _only("twin"),
    _only("wudi"),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}


def fields_of(preset: Preset, dialect: Dialect = "paper") -> dict[str, tuple[Kind, int]]:
    """Map each field the preset takes from an operation to where it goes: ("edit", position) or ("merge", 0).

    The first operation that has the field gets it. An operation that the dialect does not know has the fields
    of the paper's; that it is unknown is reported when the expansion is read.
    """
    shape = preset.in_dialect(dialect)
    uses: list[tuple[Kind, int, Use]] = [("edit", i, use) for i, use in enumerate(shape.edits)]
    uses.append(("merge", 0, shape.merge))
    found: dict[str, tuple[Kind, int]] = {}
    for kind, position, use in uses:
        chosen = choice(kind, use.name, dialect) or choice(kind, use.name, "paper")
        for name in chosen.load().model_fields if chosen else ():
            found.setdefault(name, (kind, position))
    return found
