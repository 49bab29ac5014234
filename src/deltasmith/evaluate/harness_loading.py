"""lm-eval's tasks found and loaded: offline, quiet, with its seeds, and without running generated code."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import logging
import math
import random  # noqa: TID251 - lm-eval's tasks draw from it when they are loaded, and expect its seed
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.errors import (
    DamagedInputError,
    DeltasmithError,
    MissingExtraError,
    RecipeError,
    RefusedError,
    printable,
)

if TYPE_CHECKING:
    from deltasmith.evaluate.sandbox import Tier

__all__ = [
    "SandboxedCodeEval",
    "explained",
    "hushed",
    "load_harness_tasks",
    "running_code",
    "sandboxed_code_eval",
]

_SEED, _OTHER_SEED = 0, 1234  # simple_evaluate's defaults: for `random`; for numpy and the worked examples
_CODE_EVAL = "code_eval"
_TIER: ContextVar[Any] = ContextVar("deltasmith_harness_tier", default=None)


def load_harness_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None,
    shots: int | None,
    tier: Tier | None,
) -> dict[str, Any]:
    """Load lm-eval's task objects by name; see `harness_tasks`."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError(
            f"{printable(names[0])} is a task of lm-eval, which is not installed",
            fix='pip install "deltasmith[eval]"',
        )
    with hushed(), _seeded():
        manager = _manager(names, include_path)
        found: dict[str, Any] = {}
        for name in names:
            with running_code(tier), sandboxed_code_eval(), explained(name), _with_data(name):
                loaded = manager.load([name])["tasks"]
            for task_name, task in loaded.items():
                _check(task_name, task, tier)
                _set_shots(task, shots)
                found[task_name] = task
    return found


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep lm-eval's log lines, progress bars and prints off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def running_code(tier: Tier | None) -> Iterator[None]:
    """Let `SandboxedCodeEval` run generated code behind `tier`, within this block."""
    token = _TIER.set(tier)
    try:
        yield
    finally:
        _TIER.reset(token)


class SandboxedCodeEval:
    """Stands in for the `code_eval` metric that MBPP's and HumanEval's task files ask `evaluate` for.

    The original runs programs in this machine's open; here each runs in our sandbox.
    """

    def compute(
        self, *, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1,)
    ) -> tuple[dict[str, float], dict[int, list[Any]]]:
        """Run every candidate of every problem and return pass@k, averaged over problems, and the verdicts."""
        from deltasmith.evaluate.sandbox import Program, run_many

        tier = _TIER.get()
        if tier is None:
            raise _code_is_off()
        programs = [
            Program(candidate, test)
            for test, candidates in zip(references, predictions, strict=True)
            for candidate in candidates
        ]
        verdicts = iter(run_many(programs, tier))
        found = {i: [next(verdicts) for _ in some] for i, some in enumerate(predictions)}
        counts = [(len(some), sum(verdict.passed for verdict in some)) for some in found.values()]
        rates = {f"pass@{n}": sum(_pass_at(n, *count) for count in counts) / len(counts) for n in k}
        return rates, {i: [(v.passed, v.reason) for v in some] for i, some in found.items()}


def _pass_at(k: int, samples: int, right: int) -> float:
    """Estimate the chance that one of k samples is right (Chen et al. 2021, arXiv 2107.03374, equation 1)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k) if samples >= k else math.nan


def _code_is_off() -> RefusedError:
    return RefusedError("the task runs generated code, and that is off", fix="allow it with --run-code")


@contextlib.contextmanager
def sandboxed_code_eval() -> Iterator[None]:
    """Answer a request for `code_eval` ourselves while task files are loaded; it is never fetched."""
    import evaluate

    original = evaluate.load

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        return SandboxedCodeEval() if path == _CODE_EVAL else original(path, *arguments, **options)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed what lm-eval seeds before it loads tasks, and put back what there was."""
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: TID251, NPY002
    random.seed(_SEED)
    np.random.seed(_OTHER_SEED)  # noqa: TID251, NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: TID251, NPY002


def _manager(names: Sequence[str], include_path: str | Path | None) -> Any:
    """Index the task files: the user's alone if they have all names, for lm-eval's own take seconds."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not Path(include_path).is_dir():
            raise DamagedInputError(
                "there is no such folder", where=str(include_path), fix="check --include-path"
            )
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`lm-eval ls tasks` lists its tasks"
        raise RecipeError(f"lm-eval knows no task {printable(unknown[0])!r}", fix=hint)
    return manager


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Say in one line what a task of lm-eval, which is anybody's code, stumbled over."""
    try:
        yield
    except (DeltasmithError, MemoryError):
        raise
    except ModuleNotFoundError as cause:
        raise MissingExtraError(
            f"lm-eval's task needs the package {cause.name}", where=name, fix=f"pip install {cause.name}"
        ) from cause
    except Exception as cause:
        raise DamagedInputError(
            f"lm-eval fails ({type(cause).__name__}: {_first_line(cause)})",
            where=name,
            fix="check the task's file and data",
        ) from cause


@contextlib.contextmanager
def _with_data(name: str) -> Iterator[None]:
    """Say how to give a data set that lm-eval could not get."""
    try:
        yield
    except (OSError, ValueError) as cause:  # what datasets raises where one is absent, offline or malformed
        raise DamagedInputError(
            f"lm-eval cannot get the data set ({_first_line(cause)})",
            where=name,
            fix="go online once, or copy the task's YAML, give it `dataset_path: json` and data_files, and pass "
            "its folder as --include-path; gsm8k, mbpp, humaneval, ifeval and blimp also work as KIND=FILE",
        ) from cause


def _first_line(cause: Exception) -> str:
    return printable((str(cause).strip().splitlines() or [type(cause).__name__])[0])


def _check(name: str, task: Any, tier: Tier | None) -> None:
    """Refuse tasks that run code without a sandbox, or ask for more than text."""
    if getattr(task, "MULTIMODAL", False):
        raise RefusedError("the task shows pictures or plays sounds", where=name, fix="choose a text task")
    if not getattr(task, "UNSAFE_CODE", False):
        return
    if tier is None:
        raise _code_is_off()
    if not any(isinstance(v, SandboxedCodeEval) for f in _functions(task.config) for v in _globals(f)):
        raise RefusedError(
            "the task runs generated code by means of its own, which the sandbox does not hold",
            where=name,
            fix="choose another, or load the metric `code_eval` in its task file",
        )


def _functions(config: Any) -> list[Any]:
    """List the functions that the task's file names as metric or scorer."""
    named = [entry.get("metric") for entry in config.metric_list or ()]
    return [function for function in (*named, config.process_results) if callable(function)]


def _globals(function: Any) -> list[Any]:
    values: Mapping[str, Any] = getattr(function, "__globals__", {})
    return list(values.values())


def _set_shots(task: Any, shots: int | None) -> None:
    """Set the number of worked examples and their seed as simple_evaluate does."""
    default = task.get_config("num_fewshot")
    if shots is not None and default != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_OTHER_SEED)
