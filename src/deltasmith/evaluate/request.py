"""What an evaluation is asked to do, checked as a whole before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltasmith.errors import (
    DamagedInputError,
    DeltasmithError,
    MissingExtraError,
    RecipeError,
    RefusedError,
    ResourceError,
    printable,
)
from deltasmith.evaluate.alpaca import AlpacaEval, Example, StoredAnnotations, load_examples
from deltasmith.evaluate.judge import CommandJudge, Judge, ModelJudge
from deltasmith.evaluate.language import Decoding
from deltasmith.evaluate.task import Task

if TYPE_CHECKING:
    from deltasmith.engine.progress import Progress
    from deltasmith.engine.workers import Stop
    from deltasmith.evaluate.models.opening import OpenedLanguageModel, Runtime
    from deltasmith.evaluate.sandbox import Tier

__all__ = ["Prepared", "Request", "RequestErrors", "prepare", "split_specs"]

_ALPACA_TOKENS = 2048  # what the project's own local models are given
_BATCH = 8
_HEEDED = {"lm-eval": ("shots",), "alpaca": ("max_tokens",), "annotations": ()}


@dataclass(frozen=True)
class Request:
    """Hold what the user asked for; the fields are the options of `deltasmith evaluate`.

    `source` is a model folder or a recipe file. `batch` is how many prompts a model reads at once. None stands for
    a default that the task or the model knows best.
    """

    source: str
    tasks: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    train: str | None = None
    chat: bool = False
    max_tokens: int | None = None
    device: str = "cpu"
    runtime: Runtime = "auto"
    batch: int | None = None
    threads: int | None = None
    out: str | None = None
    journal: str | None = None
    overwrite: bool = False
    run_code: bool = False
    sandbox: str = "auto"
    unsafe: bool = False
    include_path: str | None = None
    judge_command: str | None = None
    judge_model: str | None = None
    reference: str | None = None
    overrides: tuple[str, ...] = ()


class RequestErrors(RecipeError):
    """All that is wrong with a request, a line each; the exit code is theirs if they agree, and 2 otherwise."""

    def __init__(self, errors: Sequence[DeltasmithError]) -> None:
        """Hold at least two errors."""
        self.errors = tuple(errors)
        codes = {error.exit_code for error in errors}
        self.exit_code = codes.pop() if len(codes) == 1 else RecipeError.exit_code
        super().__init__(errors[0].what, where=errors[0].where, fix=errors[0].fix)

    def __str__(self) -> str:
        return "\n".join([f"{len(self.errors)} problems", *map(str, self.errors)])

    def __reduce__(self) -> tuple[type[RequestErrors], tuple[tuple[DeltasmithError, ...]]]:
        return RequestErrors, (self.errors,)


@dataclass
class _Found:
    """The errors met so far."""

    errors: list[DeltasmithError] = field(default_factory=list)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note an error of the block, and go on."""
        try:
            yield
        except DeltasmithError as error:
            self.errors.append(error)

    def raise_any(self) -> None:
        """Raise what was noted; an error that several tasks met is said once."""
        errors = list({str(error): error for error in self.errors}.values())
        if errors:
            raise errors[0] if len(errors) == 1 else RequestErrors(errors)


@dataclass(frozen=True)
class Prepared:
    """Hold tasks that are ready to be asked, the sandbox tier they run code in, remarks, and what opens the model."""

    tasks: tuple[Task, ...]
    sandbox: str | None
    notes: tuple[str, ...]
    request: Request

    def open(self, progress: Progress, stop: Stop) -> OpenedLanguageModel:
        """Load the model, or merge the recipe in memory."""
        from deltasmith.evaluate.models.opening import is_recipe

        if is_recipe(self.request.source) and not Path(self.request.source).exists():
            raise DamagedInputError(
                "no such file or folder", where=printable(self.request.source), fix="check the path"
            )
        return _open(self.request.source, self.request, self.request.overrides, progress, stop)


def split_specs(given: Sequence[str]) -> list[str]:
    """Split task specs at commas, except where one `KIND=FILE` is all there is and the file has one in its name.

    >>> import os
    >>> split_specs([f"family,perplexity={os.devnull}", "arc_easy"]) == [
    ...     "family", f"perplexity={os.devnull}", "arc_easy"
    ... ]
    True
    """
    specs: list[str] = []
    for text in given:
        kind, _, file = text.partition("=")
        whole = "," not in kind and file != "" and Path(file).exists()
        specs += [text] if whole else text.split(",")
    return [spec.strip() for spec in specs if spec.strip()]


def prepare(request: Request, stopped: Callable[[], bool]) -> Prepared:
    """Read every task and check every option; all errors are raised together. `stopped` ends waiting judges."""
    found = _Found()
    specs = split_specs(request.tasks)
    tier: Tier | None = None
    if not specs:
        found.errors.append(RecipeError("no task is named", fix="give --tasks family, or --tasks KIND=FILE"))
    with found.noting():
        _check_places(request)
    with found.noting():
        _check_judges(request, specs)
    with found.noting():
        tier = _tier(request)
    tasks = _tasks(specs, request, tier, stopped, found)
    with found.noting():
        _check_names(tasks)
    found.raise_any()
    return Prepared(
        tuple(tasks), tier.describe() if tier is not None else None, _unheeded(specs, request), request
    )


def _tasks(
    specs: Sequence[str], request: Request, tier: Tier | None, stopped: Callable[[], bool], found: _Found
) -> list[Task]:
    """Load every task, in the order they are named; lm-eval's together, where the first of them stands."""
    from deltasmith.evaluate.local.catalogue import is_local, load_tasks, name_apart
    from deltasmith.evaluate.local.common import Options

    options = Options()
    with found.noting():
        options = Options(
            limit=request.limit,
            shots=request.shots,
            train=request.train,
            chat=request.chat,
            max_tokens=request.max_tokens,
            tier=tier,
        )
    tasks: list[Task] = []
    harness = [spec for spec in specs if not is_local(spec)]
    for spec in specs:
        kind, _, path = spec.partition("=")
        with found.noting():
            if kind == "alpaca":
                tasks.append(_alpaca(path, request, stopped))
            elif kind == "annotations":
                tasks.append(StoredAnnotations.load(path))
            elif is_local(spec):
                tasks += load_tasks(spec, options)
            elif spec == harness[0]:
                tasks += _harness(harness, request, tier)
    return name_apart(tasks)


def _check_places(request: Request) -> None:
    """Refuse places where nothing can be written, before hours are spent."""
    for name, path in (("--out", request.out), ("--journal", request.journal)):
        if path is None:
            continue
        if Path(path).is_dir():
            raise RecipeError(f"{name} is a folder", where=path, fix="name a file")
        folder = next(p for p in Path(path).absolute().parents if p.exists())
        if not folder.is_dir():
            raise RecipeError(
                f"{name} lies in something that is no folder", where=path, fix="name another file"
            )
        if not os.access(folder, os.W_OK):
            raise ResourceError("permission denied", where=str(folder), fix=f"write {name} somewhere else")
    if request.out is not None and request.out == request.journal:
        raise RecipeError("--out and --journal are the same file", where=request.out, fix="name two files")


def _check_judges(request: Request, specs: Sequence[str]) -> None:
    named = [
        n
        for n, v in (("--judge-command", request.judge_command), ("--judge-model", request.judge_model))
        if v
    ]
    if len(named) == 2:
        raise RecipeError("--judge-command and --judge-model are both given", fix="name one judge")
    asked = [*named, *(["--reference"] if request.reference else [])]
    if asked and not any(spec.startswith("alpaca=") for spec in specs):
        raise RecipeError(
            f"{asked[0]} is given, but no task alpaca=FILE", fix="add the task, or leave it out"
        )


def _check_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            f"two tasks are called {', '.join(twice)}",
            where="--tasks",
            fix="evaluate them one after the other",
        )


def _tier(request: Request) -> Tier | None:
    """Choose where generated code runs; None where nobody asked that it should."""
    if not request.run_code:
        if request.unsafe:
            raise RecipeError("--unsafe-exec-i-know without --run-code", fix="give both, or neither")
        return None
    from deltasmith.evaluate.sandbox import choose_tier

    try:
        return choose_tier(request.sandbox)
    except RefusedError:
        if not request.unsafe:
            raise
        return choose_tier("unsafe")


def _harness(names: Sequence[str], request: Request, tier: Tier | None) -> Sequence[Task]:
    from deltasmith.evaluate.harness import harness_tasks
    from deltasmith.evaluate.local.catalogue import nearest

    try:
        return harness_tasks(
            names, include_path=request.include_path, limit=request.limit, shots=request.shots, tier=tier
        )
    except MissingExtraError as error:
        near = {name: nearest(name) for name in names}
        misspelt = next((name for name, local in near.items() if local), None)
        if misspelt is None:
            raise
        raise RecipeError(
            f"there is no task {printable(misspelt)}", fix=f"did you mean {near[misspelt]}? {error.what}"
        ) from error


def _unheeded(specs: Sequence[str], request: Request) -> tuple[str, ...]:
    """Say which options each kind of task pays no heed to."""
    from deltasmith.evaluate.local.catalogue import heeded, is_local

    # No worked examples is what a task without a use for them gives anyway.
    given = [name for name in ("shots", "train", "chat", "max_tokens") if getattr(request, name)]
    groups: dict[tuple[str, str], list[str]] = {}
    for spec in specs:
        kind = spec.partition("=")[0]
        found = _HEEDED.get(kind if is_local(spec) else "lm-eval")
        known = heeded(spec) if found is None else found
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given if name not in known)
        if names:
            groups.setdefault((names, "" if is_local(spec) else " (lm-eval)"), []).append(kind)
    return tuple(
        f"{names}: not heeded by {', '.join(dict.fromkeys(kinds))}{whose}"
        for (names, whose), kinds in groups.items()
    )


def _alpaca(path: str, request: Request, stopped: Callable[[], bool]) -> AlpacaEval:
    if request.out is None:
        raise RecipeError(
            "alpaca writes model_outputs.json beside the result",
            where=f"alpaca={path}",
            fix="give --out RESULT.json",
        )
    examples = load_examples(path)
    judge = _judge(request, stopped)
    references = _references(examples, path, request.reference) if judge else []
    return AlpacaEval(
        examples=tuple(examples),
        references=tuple(references),
        outputs=Path(request.out).with_name("model_outputs.json"),
        overwrite="replace" if request.overwrite else "refuse",
        decoding=Decoding(request.max_tokens or _ALPACA_TOKENS),
        judge=judge,
        batch=request.batch or _BATCH,
    )


def _references(examples: Sequence[Example], path: str, reference: str | None) -> list[Example]:
    """Find the reference's answer to every instruction: in `reference`, or in the file of the instructions."""
    rivals = load_examples(reference) if reference else list(examples)
    by_instruction = {e.instruction: e for e in rivals if e.output is not None}
    missing = [e.instruction for e in examples if e.instruction not in by_instruction]
    if missing:
        raise DamagedInputError(
            f"{len(missing)} of {len(examples)} instructions have no reference answer, first {missing[0][:60]!r}",
            where=reference or path,
            fix="give --reference FILE with an output for each",
        )
    return [by_instruction[e.instruction] for e in examples]


def _judge(request: Request, stopped: Callable[[], bool]) -> Judge | None:
    if request.judge_command:
        command = CommandJudge(request.judge_command, stopped)
        command.check()
        return command
    if request.judge_model:
        folder = request.judge_model
        if not (Path(folder) / "config.json").is_file():
            raise DamagedInputError(
                "there is no config.json", where=folder, fix="give --judge-model a model folder"
            )
        return ModelJudge(folder, lambda: _open(folder, request).model, stopped)
    return None


def _open(
    source: str,
    request: Request,
    overrides: tuple[str, ...] = (),
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> OpenedLanguageModel:
    from deltasmith.evaluate.models.opening import open_language_model

    return open_language_model(
        source,
        device=request.device,
        runtime=request.runtime,
        batch=request.batch,
        overrides=overrides,
        threads=request.threads,
        progress=progress,
        stop=stop,
    )
