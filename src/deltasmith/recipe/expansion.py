"""From a preset to the plain recipe it stands for, keeping the place of every value that the recipe gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from deltasmith.recipe.catalogue import DIALECTS, Dialect
from deltasmith.recipe.presets import COMMON, PRESETS, Preset, Shape, Use, fields_of, for_label, labels_of
from deltasmith.recipe.problems import Problems, nearest, quoted, suggestion
from deltasmith.recipe.tree import Entry, Keyed, Listing, Mark, Node, Scalar, lift, plain

__all__ = ["expand", "expand_node"]


def expand(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite a recipe with a preset as the plain recipe it stands for; one without comes back as it is.

    >>> expand({"preset": "task_arithmetic", "base": "b", "models": [{"model": "m"}], "scale": 0.4})
    {'base': 'b', 'models': [{'model': 'm'}], 'scale': 0.4, 'merge': 'sum'}
    """
    problems = Problems()
    expanded = expand_node(cast(Keyed, lift(mapping, Mark("recipe"))), problems)
    problems.raise_any()
    return cast("dict[str, Any]", plain(expanded))


def expand_node(recipe: Keyed, problems: Problems) -> Keyed:
    """Rewrite the tree of a recipe; what the preset adds takes the place of the preset's name."""
    named = recipe.get("preset")
    if named is None:
        return recipe
    preset = PRESETS.get(str(plain(named))) if isinstance(named, Scalar) else None
    common = Keyed(tuple(e for e in recipe if e.key in COMMON), recipe.mark)
    if preset is None:
        what = (
            f"unknown preset {quoted(plain(named))}" if isinstance(named, Scalar) else "preset must be a name"
        )
        near = suggestion(str(plain(named)), PRESETS) if isinstance(named, Scalar) else ""
        problems.add(named.mark, what, near or "see `deltasmith methods`")
        return common  # the keys that mean the same with any preset can still be judged
    said = recipe.get("dialect")
    dialect = cast(Dialect, plain(said)) if said and plain(said) in DIALECTS else "paper"
    shape, goes = preset.shape_for(recipe, dialect), fields_of(preset, dialect)
    given = _own_fields(recipe, preset, tuple(goes), problems)
    if preset.extra is not None:
        common = preset.extra.apply(common, recipe.entry(preset.extra.name), named.mark, problems)
    models = common.get("models")
    if isinstance(models, Listing):
        by_edit = [[e for e in given if goes[e.key] == ("edit", i)] for i in range(len(shape.edits))]
        common = common.having("models", _edit_models(models, shape, by_edit, named.mark, problems))
    merge = _operation(shape.merge, [e for e in given if goes[e.key][0] == "merge"], named.mark)
    return common.having("merge", merge, named.mark)


def _own_fields(recipe: Keyed, preset: Preset, fields: tuple[str, ...], problems: Problems) -> list[Entry]:
    """Return the entries that are fields of the preset's operations; report what is not, nor common."""
    names = (*fields, preset.extra.name) if preset.extra else fields
    own = []
    for entry in recipe:
        if entry.key in fields:
            own.append(entry)
        elif entry.key in ("merge", "edits"):
            fix = f"start from what `deltasmith explain {preset.name}` shows"
            problems.add(entry.mark, f"{entry.key} cannot stand beside preset: {preset.name}", fix)
        elif entry.key not in (*COMMON, "preset", *names):
            near = suggestion(entry.key, (*names, *COMMON)) or suggestion(
                entry.key, names, f"{preset.name} takes"
            )
            problems.add(entry.mark, f"unknown key {quoted(entry.key)}", near)
            meant = nearest(entry.key, (*names, *COMMON))
            if meant in fields and meant not in recipe:  # so that it is checked, and not missed a second time
                own.append(Entry(meant, entry.mark, entry.value))
    return own


def _edit_models(
    models: Listing, shape: Shape, given: list[list[Entry]], mark: Mark, problems: Problems
) -> Listing:
    """Give every model the preset's edits, each field resolved for its label."""
    labels = labels_of(models)
    entries: list[Node] = []
    for label, model in zip(labels, models.items, strict=True):
        if not isinstance(model, Keyed):
            entries.append(model)
            continue
        if clash := model.entry("edits"):
            problems.add(clash.mark, "a preset brings its own edits", "remove these, or write the recipe out")
        edits = tuple(
            _operation(use, [e for entry in own if (e := for_label(entry, label, labels, problems))], mark)
            for use, own in zip(shape.edits, given, strict=True)
        )
        entries.append(model.having("edits", Listing(edits, mark), mark) if edits else model)
    return Listing(tuple(entries), models.mark)


def _operation(use: Use, given: list[Entry], mark: Mark) -> Node:
    """Write one operation: its name, or `{name: {fields}}` with the preset's values under the recipe's."""
    fields = Keyed(tuple(Entry(key, mark, lift(value, mark)) for key, value in use.defaults.items()), mark)
    for entry in given:
        fields = fields.having(entry.key, entry.value, entry.mark)
    if not fields.entries:
        return Scalar(use.name, mark)
    return Keyed((Entry(use.name, mark, fields),), mark)
