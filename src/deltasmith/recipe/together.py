"""What only several keys together can show to be wrong: merge, space, base, scale, models, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from deltasmith.operation.protocols import Merge, Space
from deltasmith.recipe.catalogue import name_of
from deltasmith.recipe.model import ModelEntry
from deltasmith.recipe.problems import Problems, quoted, suggestion
from deltasmith.recipe.tree import Keyed, Listing, Mark, Node, Scalar, lift, plain

__all__ = ["Together", "merge_node", "reader_of"]

_LABEL_FIELDS = ("task", "model")
_MEANS = ("linear", "mean")


def reader_of(entry: ModelEntry) -> str:
    """Return the name of the first edit of a model that reads its statistics file; empty if none does."""
    readers = (edit.record for edit in entry.edits if edit.record.statistics)
    return next((name_of(record)[0] for record in readers), "")


def merge_node(recipe: Keyed, models: Sequence[ModelEntry]) -> Node:
    """Return the recipe's merge; `statistics` that stand beside the models go into its field of that name.

    `regmean` and `fisher` read a file per model; beside its model it cannot be given to the wrong one. The file of a
    model whose edits read it is theirs.
    """
    said = recipe.get("merge") or Scalar("sum", recipe.mark)
    files = {e.label: e.statistics for e in models if e.statistics is not None and not reader_of(e)}
    if not files:
        return said
    if isinstance(said, Scalar):
        name, fields = str(said.value), Keyed((), said.mark)
    elif isinstance(said, Keyed) and len(said.entries) == 1 and isinstance(said.entries[0].value, Keyed):
        name, fields = said.entries[0].key, said.entries[0].value
    else:
        return said
    if "statistics" in fields:
        return said
    return Keyed((), said.mark).having(name, fields.having("statistics", lift(files, said.mark)), said.mark)


@dataclass(frozen=True)
class Together:
    """One recipe's tree, the merge and the models read from it, and where problems go."""

    recipe: Keyed
    merge: Merge
    models: Sequence[ModelEntry]
    problems: Problems

    @property
    def name(self) -> str:
        """Return the name of the merge."""
        return name_of(self.merge)[0]

    @property
    def labels(self) -> list[str]:
        """Return the labels of the models."""
        return [entry.label for entry in self.models]

    @property
    def mark(self) -> Mark:
        """Return the place of the merge, or of the recipe where it leaves the merge to its default."""
        return (self.recipe.get("merge") or self.recipe).mark

    def check(self) -> None:
        """Report everything that does not fit together."""
        space = self._space()
        self._base(space)
        self._scale(space)
        self._count()
        self._names()
        self._statistics()

    def with_statistics(self) -> tuple[ModelEntry, ...]:
        """Return the models, each with the statistics file that the merge has for it, or its edits."""
        files = getattr(self.merge, "statistics", {})
        return tuple(
            entry if reader_of(entry) else replace(entry, statistics=files.get(entry.label))
            for entry in self.models
        )

    def _space(self) -> str:
        said = self.recipe.get("space")
        space = self.merge.space if said is None else str(plain(said))
        if said is not None and space in get_args(Space) and space not in self.merge.spaces:
            works = " or ".join(self.merge.spaces)
            self.problems.add(said.mark, f"{self.name} works in {works} space, not in {space} space")
        return space

    def _base(self, space: str) -> None:
        if "base" in self.recipe:
            return
        if space == "delta":
            other = ", or ask for space: weight" if "weight" in self.merge.spaces else ""
            what = f"{self.name} merges deltas and there is no base to take them from"
            self.problems.add(self.mark, what, f"add base: PATH{other}")
        elif edits := self._first_edits():
            what = "edits change deltas and there is no base to take them from"
            self.problems.add(edits.mark, what, "add base: PATH")

    def _first_edits(self) -> Node | None:
        models = self.recipe.get("models")
        items = models.items if isinstance(models, Listing) else ()
        edits = (item.get("edits") for item in items if isinstance(item, Keyed))
        return next((node for node in edits if node is not None and plain(node)), None)

    def _scale(self, space: str) -> None:
        scale = self.recipe.get("scale")
        if scale is not None and space == "weight" and plain(scale) != 1:
            fix = "leave it out" + (", or ask for space: delta" if "delta" in self.merge.spaces else "")
            what = "scale multiplies a merged delta, and in weight space there is none"
            self.problems.add(scale.mark, what, fix)

    def _count(self) -> None:
        least, most = self.merge.models
        have = len(self.models)
        if have and not least <= have <= (most or have):
            wanted = f"exactly {least}" if least == most else f"at least {least}"
            what = f"{self.name} takes {wanted} model{'s' * (least > 1)}, not {have}"
            self.problems.add(self.mark, what)
        agreeing = getattr(self.merge, "k", 1)
        if self.name == "consensus" and have and agreeing > have:
            what = f"consensus asks for {agreeing} models that agree, and there are {have}"
            self.problems.add(self._at("k"), what, f"lower k to {have} or less")
        weights = [entry.weight for entry in self.models]
        constant = [weight for weight in weights if isinstance(weight, float)]
        if self.name in _MEANS and weights and len(constant) == have and sum(constant) == 0:
            self.problems.add(self.mark, f"{self.name} divides by the sum of the weights, which is zero")

    def _names(self) -> None:
        for key in _LABEL_FIELDS:
            label = getattr(self.merge, key, None)
            if isinstance(label, str) and label not in self.labels:
                self._unknown_label(label, self._at(key))

    def _statistics(self) -> None:
        self._read_by_edits()
        if "statistics" not in type(self.merge).model_fields:
            return
        files = getattr(self.merge, "statistics", {})
        for label in files:
            if label not in self.labels:
                self._unknown_label(label, self._at("statistics"))
        for label in [entry.label for entry in self.models if not reader_of(entry)]:
            if label not in files:
                what = f"{self.name} needs a statistics file for the model {quoted(label)}"
                self.problems.add(self.mark, what, "write statistics: FILE beside the model")

    def _read_by_edits(self) -> None:
        """Report edits that have no file to read, and those whose model's file the merge reads too."""
        for position, entry in enumerate(self.models):
            name = reader_of(entry)
            if name and "statistics" in type(self.merge).model_fields:
                what = f"{self.name} and {name} both read statistics of the model {quoted(entry.label)}"
                fix = "a model names one file: edit it in a recipe of its own, and merge that"
                self.problems.add(self._edit_at(position, name), what, fix)
            elif name and entry.statistics is None:
                what = f"{name} needs a statistics file for the model {quoted(entry.label)}"
                self.problems.add(
                    self._edit_at(position, name), what, "write statistics: FILE beside the model"
                )

    def _edit_at(self, position: int, name: str) -> Mark:
        """Return the place of an edit of one model, by its name."""
        models = self.recipe.get("models")
        model = models.items[position] if isinstance(models, Listing) else self.recipe
        edits = model.get("edits") if isinstance(model, Keyed) else None
        items = edits.items if isinstance(edits, Listing) else ()
        for item in items:
            if (isinstance(item, Keyed) and name in item) or plain(item) == name:
                return item.mark
        return model.mark

    def _unknown_label(self, label: str, mark: Mark) -> None:
        fix = suggestion(label, self.labels, "the labels are")
        self.problems.add(mark, f"{self.name}: no model has the label {quoted(label)}", fix)

    def _at(self, key: str) -> Mark:
        """Return the place of one of the merge's fields, or of the merge."""
        merge = self.recipe.get("merge")
        fields = merge.entries[0].value if isinstance(merge, Keyed) else None
        value = fields.get(key) if isinstance(fields, Keyed) else None
        return self.mark if value is None else value.mark
