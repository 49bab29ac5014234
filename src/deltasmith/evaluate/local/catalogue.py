"""The explicit table of local tasks: what each kind reads, and the task a `kind=FILE` stands for.

A kind is written "module:Class" and imported when it is first asked for, so that this table costs nothing.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from deltasmith.errors import RecipeError
from deltasmith.evaluate.local.common import LocalTask, Options
from deltasmith.evaluate.local.items import Items
from deltasmith.evaluate.task import Task
from deltasmith.recipe.problems import listed, suggestion

__all__ = [
    "FAMILY",
    "KINDS",
    "Kind",
    "heeded",
    "is_local",
    "load_task",
    "load_tasks",
    "name_apart",
    "nearest",
]

FAMILY = ("math", "code", "ins")
"""The tasks of the bundled family."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Hold a task class by name, and one line on what it reads and counts."""

    target: str
    help: str

    def load(self) -> type[LocalTask[Any]]:
        """Import the class; it is built by its `load(path, options)`."""
        module, _, name = self.target.partition(":")
        found: type[LocalTask[Any]] = getattr(import_module(f"deltasmith.evaluate.local.{module}"), name)
        return found


KINDS: Mapping[str, Kind] = {
    "blimp": Kind(
        "blimp:Blimp", "grammatical against ungrammatical: BLiMP.zip, its folder, or one .jsonl of it"
    ),
    "gsm8k": Kind("gsm8k:Gsm8k", "word problems, the final number right: GSM8K's .jsonl"),
    "humaneval": Kind("humaneval:HumanEval", "functions to complete, run in the sandbox: HumanEval's .jsonl"),
    "ifeval": Kind("ifeval:IfEval", "checkable instructions followed: IFEval's .jsonl"),
    "items": Kind("items:Items", "one exact answer: .jsonl of id, task, prompt, answer"),
    "mbpp": Kind("mbpp:Mbpp", "short programs, run in the sandbox: MBPP's .jsonl"),
    "next_token": Kind("texts:NextToken", "likeliest tokens that are right: a text file"),
    "perplexity": Kind("texts:Perplexity", "exp of the mean loss per token: a text file"),
}


def nearest(name: str) -> str | None:
    """Return the local task that a name may have meant, as it would be written, if one is near."""
    found = difflib.get_close_matches(name, ["family", *KINDS], n=1)
    return None if not found else found[0] if found[0] == "family" else f"{found[0]}=FILE"


def is_local(spec: str) -> bool:
    """Tell whether a task is named as a local one: `KIND=FILE` of any kind, or the bundled `family`."""
    return "=" in spec or spec.partition(":")[0] == "family"


def heeded(spec: str) -> tuple[str, ...]:
    """Name the options, of those that not every local task heeds, that the tasks of a valid `spec` do."""
    kind, given, _ = spec.partition("=")
    return KINDS[kind].load().heeds if given else Items.heeds


def load_task(spec: str, **options: Any) -> LocalTask[Any]:
    """Build the one task that `kind=FILE` or `family:math` stands for; `options` are the fields of `Options`.

    Raises RecipeError for an unknown option, or a name that stands for several tasks; what `load_tasks` raises
    otherwise.
    """
    found = load_tasks(spec, _options(options))
    if len(found) > 1:
        names = listed((task.name for task in found), "and")
        raise RecipeError(f"{spec} stands for {len(found)} tasks ({names})", fix="load them with load_tasks")
    return found[0]


def load_tasks(spec: str, options: Options) -> list[LocalTask[Any]]:
    """Build the tasks that `kind=FILE`, `family` or a part of it stands for, each named after its kind.

    Raises RecipeError for an unknown kind or part; what the kind's `load` raises otherwise.
    """
    kind, given, file = spec.partition("=")
    if not given:
        if kind.partition(":")[0] == "family":
            return _family(kind, options)
        fix = suggestion(kind, [*KINDS, "family"], "kinds")
        raise RecipeError(f"{spec!r} names no local task", fix=fix or "write KIND=FILE")
    if kind not in KINDS:
        raise RecipeError(f"{kind!r} is no kind of local task", fix=suggestion(kind, KINDS, "kinds"))
    if not file:
        raise RecipeError(f"{spec!r} names no file", fix=f"write {kind}=FILE")
    return [KINDS[kind].load().load(Path(file), options)]


def name_apart(tasks: Sequence[Task]) -> list[Task]:
    """Give tasks of one name `:` and their file's stem, or the whole path where the stems agree too.

    Tasks that are no local ones, and those of the family, keep their names.
    """
    renamed = list(tasks)
    for label in (_stem, _path):
        counts = Counter(task.name for task in renamed)
        renamed = [label(task) if counts[task.name] > 1 else task for task in renamed]
    return renamed


def _options(given: Mapping[str, Any]) -> Options:
    known = [field.name for field in fields(Options)]
    for name in given:
        if name not in known:
            raise RecipeError(
                f"{name!r} is no option of a local task", fix=suggestion(name, known, "options")
            )
    return Options(**given)


def _family(spec: str, options: Options) -> list[LocalTask[Any]]:
    """Load the bundled items: `family`, `family:math`, `family:validation`, `family:validation:math`."""
    parts = spec.split(":")[1:]
    validation = parts[:1] == ["validation"]
    chosen = parts[1:] if validation else parts
    known = FAMILY if validation else (*FAMILY, "validation")
    if len(chosen) > 1 or (chosen and chosen[0] not in FAMILY):
        raise RecipeError(f"{spec!r} names nothing of the family", fix=suggestion(chosen[0], known, "it has"))
    folder = Path(str(files("deltasmith"))) / "family" / "items"
    prefix, suffix = ("validation_", ":validation") if validation else ("", "")
    return [
        replace(Items.load(folder / f"{prefix}{name}.jsonl", options), name=f"{name}{suffix}")
        for name in (chosen or FAMILY)
    ]


def _stem(task: Task) -> Task:
    return replace(task, name=f"{task.name}:{Path(task.source).stem}") if _renamable(task) else task


def _path(task: Task) -> Task:
    return replace(task, name=f"{task.name.partition(':')[0]}:{task.source}") if _renamable(task) else task


def _renamable(task: Task) -> TypeGuard[LocalTask[Any]]:
    return isinstance(task, LocalTask) and task.name.partition(":")[0] in KINDS
