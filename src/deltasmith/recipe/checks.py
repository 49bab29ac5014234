"""From YAML or a dict to a `Recipe`: all that text alone can show to be wrong is reported, all at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from deltasmith.errors import RecipeError
from deltasmith.operation.protocols import Edit, Merge, Space
from deltasmith.recipe import scalars
from deltasmith.recipe.catalogue import DIALECTS, EDITS, Dialect
from deltasmith.recipe.expansion import expand_node
from deltasmith.recipe.marks import replaced
from deltasmith.recipe.model import EditEntry, ModelEntry, Nonfinite, OutputType, Recipe
from deltasmith.recipe.operations import MISSING, read_operation
from deltasmith.recipe.overrides import apply
from deltasmith.recipe.presets import COMMON
from deltasmith.recipe.problems import Problems, RecipeProblems, nearest, quoted, suggestion
from deltasmith.recipe.together import Together, merge_node
from deltasmith.recipe.tree import Keyed, Listing, Mark, Node, Scalar, describe, lift, plain
from deltasmith.recipe.yaml_file import parse, read_text

__all__ = ["MODEL_KEYS", "RECIPE_KEYS", "from_dict", "from_tree", "is_recipe_file", "load", "loads"]

RECIPE_KEYS = (*COMMON, "merge", "preset")
MODEL_KEYS = ("model", "label", "weight", "edits", "statistics")
_RECIPES = (".yaml", ".yml")
_EDIT_KEYS = ("where",)
_MAX_FILES = 20
_MAX_RECIPES = 200

_ELSEWHERE = {
    "merge_method": "write merge: or preset:",
    "method": "write merge: or preset:",
    "base_model": "write base:",
    "lambda": "write scale:",
    "normalize": "merge: mean divides by the weights, merge: sum does not",
    "parameters": "write the fields inside the operation: merge: {name: {field: value}}",
    "density": "it belongs to an edit: edits: [{keep_largest: {density: 0.2}}], or to a preset",
    "out_dtype": "write dtype:",
    "tokenizer_source": "write tokenizer:",
}
"""What people who come from another tool, or from a preset, probably look for."""

_UNSUPPORTED = {
    "slices": "layer ranges",
    "layer_range": "layer ranges",
    "layers": "layer ranges",
    "regex": "regular expressions",
    "vocabulary": "vocabulary remedies",
    "vocab": "vocabulary remedies",
}


def is_recipe_file(source: str | Path) -> bool:
    """Tell by its ending whether a path names a recipe and not a model.

    >>> is_recipe_file("mix.yaml"), is_recipe_file("models/math")
    (True, False)
    """
    return str(source).lower().endswith(_RECIPES)


def load(path: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe file; `settings` are `a.b=c` changes made before it is checked.

    Raises one RecipeError that holds every problem of the file and of the recipes it names.
    """
    path = Path(path)
    reader = _Reader()
    root = parse(read_text(path, str(path)), str(path))
    reader.files.append(path.resolve())
    return reader.finish(apply(root, settings), path.parent)


def loads(
    text: str, folder: str | Path = ".", settings: Iterable[str] = (), *, name: str = "recipe"
) -> Recipe:
    """Read a recipe from YAML text; paths in it count from `folder`, and `name` is what errors call it."""
    return _Reader().finish(apply(parse(text, name), settings), Path(folder))


def from_dict(mapping: Mapping[str, Any], folder: str | Path = ".", settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe from plain data; errors name the path of the value instead of a line.

    >>> from_dict({"models": [{"model": "a"}, {"model": "b"}], "merge": "linear"}).labels
    ('m0', 'm1')
    """
    return _Reader().finish(apply(lift(mapping, Mark("recipe")), settings), Path(folder))


def from_tree(root: Node, folder: str | Path = ".") -> Recipe:
    """Read a recipe from its tree; errors name the places that the nodes carry."""
    return _Reader().finish(root, Path(folder))


@dataclass
class _Reader:
    """Reads one recipe and those it names; `files` is the chain of files that led here."""

    problems: Problems = field(default_factory=Problems)
    files: list[Path] = field(default_factory=list)
    recipes: int = 0

    def finish(self, root: Node, folder: Path) -> Recipe:
        """Read the outermost recipe, and raise whatever was found in it and below."""
        recipe = self.recipe(root, folder)
        self.problems.raise_any()
        return cast(Recipe, recipe)

    def recipe(self, root: Node, folder: Path) -> Recipe | None:
        """Read one recipe; None when something in it is wrong."""
        self.recipes += 1
        if self.recipes > _MAX_RECIPES:
            raise RecipeError(f"more than {_MAX_RECIPES} recipes inside one another", fix="merge in steps")
        if not isinstance(root, Keyed):
            what = f"a recipe must be a mapping of keys to values, not {describe(root)}"
            self.problems.add(root.mark, what, "start with base: and models:")
            return None
        before = self.problems.reports
        if self._marked(root):
            return None
        node = expand_node(root, self.problems)
        self._unknown_keys(node)
        dialect = self._dialect(node)
        base = self._source(said, "base", folder) if (said := node.get("base")) else None
        models = self._models(node, folder, dialect)
        found = read_operation(merge_node(node, models), "merge", dialect, self.problems)
        values = self._plain_keys(node, models)
        if found is None:
            return None
        merge = cast(Merge, found)
        together = Together(node, merge, models, self.problems)
        together.check()
        if self.problems.reports > before:
            return None
        space = values.pop("space", None) or merge.space
        models = together.with_statistics()
        return Recipe(models, merge, base, space, dialect=dialect, relative_to=folder, **values)

    def _marked(self, root: Keyed) -> bool:
        """Report the first number that is still to be searched for, if there is one."""
        marks: list[Mark] = []

        def note(mark: Keyed, path: str) -> Node:
            marks.append(mark.mark)
            return mark

        replaced(root, note)
        if marks:
            what = "{tune: …} stands where a number is needed"
            self.problems.add(marks[0], what, "`deltasmith tune` searches for it in the recipe it is given")
        return bool(marks)

    def _unknown_keys(self, node: Keyed) -> None:
        for entry in node:
            if entry.key == "rules":
                if plain(entry.value) not in ([], None):
                    self.problems.add(entry.mark, "per-tensor overrides (rules) are not supported yet")
            elif entry.key not in RECIPE_KEYS:
                self._unknown(entry.key, entry.mark, RECIPE_KEYS)

    def _unknown(self, key: str, mark: Mark, known: Iterable[str]) -> None:
        if key in _UNSUPPORTED:
            self.problems.add(mark, f"{_UNSUPPORTED[key]} ({key}) are not supported yet")
            return
        fix = _ELSEWHERE.get(key) or suggestion(key, known, "the keys are")
        self.problems.add(mark, f"unknown key {quoted(key)}", fix)

    def _dialect(self, node: Keyed) -> Dialect:
        said = node.get("dialect")
        found = "paper" if said is None else scalars.word(said, "dialect", DIALECTS, self.problems)
        return "paper" if found is MISSING else cast(Dialect, found)

    def _source(self, node: Node, what: str, folder: Path) -> str | Recipe | None:
        """Read a path, an id, an inline recipe, or the recipe that a .yaml path names."""
        if isinstance(node, Keyed):
            return self.recipe(node, folder)
        if not isinstance(node, Scalar) or not isinstance(node.value, str) or not node.value.strip():
            self.problems.add(node.mark, f"{what} must be a path, an id or a recipe, not {describe(node)}")
            return None
        if not node.value.isprintable():
            self.problems.add(node.mark, f"{what} {node} holds unprintable characters")
            return None
        if is_recipe_file(node.value):
            return self._file(node, folder / node.value)
        return node.value

    def _file(self, node: Scalar, path: Path) -> Recipe | None:
        """Read a recipe that another one names; its own problems are reported with its own lines."""
        try:
            text = read_text(path, str(path))
            real = path.resolve()
            if real in self.files:
                self.problems.add(node.mark, f"the recipe {node} leads back to itself", "break the cycle")
                return None
            if len(self.files) >= _MAX_FILES:
                what = f"more than {_MAX_FILES} recipe files inside one another"
                self.problems.add(node.mark, what, "merge in steps")
                return None
            self.files.append(real)
            try:
                return self.recipe(parse(text, str(path)), path.parent)
            finally:
                self.files.pop()
        except RecipeProblems as error:
            for problem in error.problems:
                self.problems.add(problem.mark, problem.what, problem.fix)
        except RecipeError as error:
            self.problems.add(node.mark, error.what, error.fix)
        return None

    def _models(self, node: Keyed, folder: Path, dialect: Dialect) -> tuple[ModelEntry, ...]:
        said = node.get("models")
        if said is None or (isinstance(said, Listing) and not said.items):
            mark = node.mark if said is None else said.mark
            self.problems.add(mark, "the recipe has no models", "write models: [{model: PATH}]")
            return ()
        if not isinstance(said, Listing):
            what = f"models must be a list, not {describe(said)}"
            self.problems.add(said.mark, what, "write models: [{model: PATH}]")
            return ()
        entries = tuple(self._model(item, i, folder, dialect) for i, item in enumerate(said.items))
        labels = [entry.label for entry in entries]
        for i, item in enumerate(said.items):
            if labels[i] in labels[:i]:
                own = item.get("label") if isinstance(item, Keyed) else None
                what = f"the label {quoted(labels[i])} is used twice"
                self.problems.add((own or item).mark, what, "labels must differ: they seed the random masks")
        return entries

    def _model(self, node: Node, position: int, folder: Path, dialect: Dialect) -> ModelEntry:
        """Read one entry of `models`; what is missing is made up, since problems stop the recipe anyway."""
        entry = ModelEntry("", f"m{position}", relative_to=folder)
        if not isinstance(node, Keyed):
            fix = f"write {{model: {node.value}}}" if isinstance(node, Scalar) else "write {model: PATH}"
            self.problems.add(node.mark, f"a model must be a mapping, not {describe(node)}", fix)
            return entry
        strange = [item for item in node if item.key not in MODEL_KEYS]
        for item in strange:
            self._unknown(item.key, item.mark, MODEL_KEYS)
        if (model := node.get("model")) is not None:
            entry = replace(entry, model=self._source(model, "model", folder) or "")
        elif not any(nearest(item.key, MODEL_KEYS) == "model" for item in strange):
            self.problems.add(node.mark, 'a model needs "model"', "write {model: PATH}")
        if (label := node.get("label")) is not None:
            entry = replace(entry, label=scalars.label(label, self.problems))
        if (weight := node.get("weight")) is not None:
            entry = replace(entry, weight=scalars.number(weight, "weight", self.problems))
        if (statistics := node.get("statistics")) is not None:
            entry = replace(entry, statistics=scalars.text(statistics, "statistics", self.problems))
        return replace(entry, edits=self._edits(node.get("edits"), dialect))

    def _edits(self, node: Node | None, dialect: Dialect) -> tuple[EditEntry, ...]:
        if node is None:
            return ()
        if not isinstance(node, Listing):
            what = f"edits must be a list, not {describe(node)}"
            self.problems.add(node.mark, what, "write edits: [{name: {field: value}}]")
            return ()
        return tuple(entry for item in node.items if (entry := self._edit(item, dialect)) is not None)

    def _edit(self, node: Node, dialect: Dialect) -> EditEntry | None:
        where = "*"
        if isinstance(node, Keyed):
            if (said := node.get("where")) is not None:
                where = scalars.glob(said, self.problems)
            operations = [entry.key for entry in node if entry.key in EDITS]
            for entry in node.without(*_EDIT_KEYS, *operations):
                # Whatever stands beside an operation, or can be no operation's name, is a key of the entry.
                if entry.key == "dialect" or entry.key in _UNSUPPORTED or operations:
                    self._beside(entry.key, entry.mark)
                    node = node.without(entry.key)
            node = node.without(*_EDIT_KEYS)
        record = read_operation(node, "edit", dialect, self.problems)
        return None if record is None else EditEntry(cast(Edit, record), where)

    def _beside(self, key: str, mark: Mark) -> None:
        if key == "dialect":
            fix = "write it among the operation's fields: {name: {dialect: …}}"
            self.problems.add(mark, "dialect stands beside the operation", fix)
        else:
            self._unknown(key, mark, _EDIT_KEYS)

    def _plain_keys(self, node: Keyed, models: tuple[ModelEntry, ...]) -> dict[str, Any]:
        """Read the keys that hold a word, a number or a glob."""
        values: dict[str, Any] = {}
        labels, has_base = [entry.label for entry in models], "base" in node
        words = {"space": get_args(Space), "dtype": get_args(OutputType), "nonfinite": get_args(Nonfinite)}
        for key, known in words.items():
            if (said := node.get(key)) is not None:
                values[key] = scalars.word(said, key, known, self.problems)
        if (said := node.get("scale")) is not None:
            values["scale"] = scalars.number(said, "scale", self.problems)
        if (said := node.get("where")) is not None:
            values["where"] = scalars.glob(said, self.problems)
        if (said := node.get("seed")) is not None:
            values["seed"] = scalars.seed(said, self.problems)
        values["tokenizer"] = "base" if has_base or not labels else labels[0]
        if (said := node.get("tokenizer")) is not None:
            values["tokenizer"] = scalars.tokenizer(said, labels, self.problems, has_base=has_base)
        return values
