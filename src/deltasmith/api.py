"""The Python calls behind the commands: plan, merge, verify, diff."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from deltasmith import __version__
from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.glance import glance
from deltasmith.engine.memory import DEFAULT_MEMORY, Budget, budget
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.run import execute
from deltasmith.engine.workers import Stop
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.layout import Layout, plan_layout
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.output import Output
from deltasmith.recipe.build import Built, build
from deltasmith.recipe.checks import from_dict, load
from deltasmith.recipe.model import Recipe, operation_text, to_mapping
from deltasmith.recipe.publication import files_beside, manifest_of
from deltasmith.table.names import numbered

if TYPE_CHECKING:
    from deltasmith.engine.columns import EditedColumns
    from deltasmith.engine.difference import Difference
    from deltasmith.engine.in_memory import Stored
    from deltasmith.formats.verify import Report

__all__ = [
    "Computed",
    "DiffReport",
    "MergeResult",
    "Planned",
    "compute",
    "diff",
    "merge",
    "open_model",
    "plan",
    "verify",
]

SHARD_BYTES = 5 << 30


@dataclass(frozen=True)
class Planned:
    """A recipe whose inputs have been looked at: the plan, where every byte will go, what it will take."""

    built: Built
    layout: Layout
    limits: Budget
    memory: int

    @property
    def bytes_written(self) -> int:
        """Count the bytes of the weight files."""
        return self.layout.nbytes

    @property
    def bytes_read(self) -> int:
        """Count the bytes of all weight files that are read (once)."""
        return sum(source.nbytes for source in Evaluator(self.built.plan).sources)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Return what the user may not have meant: what headers show, and what a glance at the values shows."""
        return (*self.built.plan.warnings, *glance(self.built.plan))

    @property
    def hash(self) -> str:
        """Hash everything the output depends on: recipe, inputs, layout, version."""
        state = xxhash.xxh3_128(
            repr((__version__, to_mapping(self.built.recipe), self.layout.digest)).encode()
        )
        for label, model in self.built.inputs():
            for source in model.files:
                status = Path(source.path).stat()
                state.update(repr((label, source.name, status.st_size, status.st_mtime_ns)).encode())
        return str(state.hexdigest())

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data: every tensor, the bytes, the notes and warnings."""
        from deltasmith.planning.report import tensors

        plan = self.built.plan
        return {
            "recipe": to_mapping(self.built.recipe),
            "tensors": tensors(plan, operation_text),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "files": [shard.name for shard in self.layout.shards],
            "memory": self.memory,
            "threads": self.limits.threads,
            "notes": list(plan.notes),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class MergeResult:
    """What a merge has written, and what it took."""

    out: str
    tensors: int
    bytes_read: int
    bytes_written: int
    seconds: float
    warnings: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "out": self.out,
            "tensors": self.tensors,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    shard_size: int = SHARD_BYTES,
    seed: int | None = None,
    tile: int | None = None,
) -> Planned:
    """Read the headers of every model and decide what happens to every tensor; nothing is written.

    `recipe` is a file, a mapping, or a `Recipe`; `overrides` are `a.b=value` changes. Raises RecipeError,
    RefusedError, DamagedInputError or ResourceError, with the exit codes the command line would give.
    """
    checked = _recipe(recipe, overrides)
    if seed is not None:
        checked = replace(checked, seed=seed)
    built = build(checked)
    layout = plan_layout([row.spec for row in built.plan.rows], shard_size)
    limits = budget(built.plan, memory, threads or available_threads(), tile)
    return Planned(built, layout, limits, memory)


def _recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return from_dict(recipe, Path(), overrides)
    return load(recipe, overrides)


def available_threads() -> int:
    """Count the processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def merge(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> MergeResult:
    """Carry out a recipe: compute every tensor, write a complete model folder, publish it under `out`.

    `options` are those of `plan`. The output depends on recipe, inputs and seed alone, not on threads, memory or
    interruptions; an interrupted call resumes when repeated. Raises what `plan` raises, and InterruptedRunError.
    """
    began = time.perf_counter()
    planned = plan(recipe, **options)
    built, listener, stopper = planned.built, progress or Silent(), stop or Stop()
    built.refuse_foreign_statistics(lambda: stopper.asked)
    inputs = [path for _, model in built.inputs() for path in _roots(model)]
    with (
        ThreadPoolExecutor(max_workers=1) as hashing,
        Output.open(Path(out), planned.layout, planned.hash, overwrite=overwrite, inputs=inputs) as output,
    ):
        hashes = _hash_inputs(built, hashing, stopper)
        _compute(planned, output, stopper, listener)
        listener.phase("checking the inputs", 0)
        _refuse_changed(built)
        listener.phase("publishing", 0)
        files, warnings = files_beside(built, Path(out).name)
        warnings = (*planned.warnings, *warnings)
        late = output.publish(
            files, manifest_of(built, planned.layout, hashes.result(), output.finished, warnings)
        )
    return MergeResult(
        str(out),
        len(built.plan.rows),
        planned.bytes_read,
        planned.bytes_written,
        time.perf_counter() - began,
        (*warnings, *late),
    )


def _compute(planned: Planned, output: Output, stop: Stop, progress: Progress) -> None:
    """Write every tensor that an earlier run has not finished."""
    try:
        order = [name for shard in planned.layout.shards for name in shard.tensors]
        execute(Evaluator(planned.built.plan), output, order, planned.limits, stop, progress)
    except BaseException:
        stop.ask()  # nobody will want the hashes
        raise


@dataclass(frozen=True)
class Computed:
    """A merged model in memory: what a merge would have written, byte for byte."""

    planned: Planned
    tensors: Mapping[str, Stored]

    @property
    def hash(self) -> str:
        """Identify what decided the tensors: recipe, inputs, version."""
        return self.planned.hash

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what `plan` would warn of."""
        return self.planned.warnings

    @cached_property
    def files(self) -> Mapping[str, bytes | Path]:
        """Return the small files that belong beside the weights: config, tokenizer, card."""
        return files_beside(self.planned.built, "merged")[0]

    def arrays(self) -> dict[str, Any]:
        """Decode every floating tensor into a float32 array of its shape."""
        return {name: stored.values() for name, stored in self.tensors.items() if stored.spec.dtype.floating}


def compute(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    columns: EditedColumns | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> Computed:
    """Carry out a recipe in memory: every tensor as `merge` would write it, and no file.

    `columns` keeps edited deltas between calls, which makes a call that changes only weights, scale or merge a
    matter of arithmetic. `options` are those of `plan`; its `memory` bounds the work, not the result. Raises what
    `merge` raises.
    """
    from deltasmith.engine.in_memory import InMemory

    planned = plan(recipe, **options)
    stopper = stop or Stop()
    planned.built.refuse_foreign_statistics(lambda: stopper.asked)
    table = planned.built.plan
    if columns is not None:
        table = columns.held(table, planned.limits.threads, stopper)
    sink = InMemory(row.spec for row in table.rows)
    order = [row.name for row in table.rows]
    execute(Evaluator(table), sink, order, planned.limits, stopper, progress or Silent())
    _refuse_changed(planned.built)
    return Computed(planned, sink.tensors)


def _roots(model: OpenedModel) -> list[Path]:
    return [model.folder] if model.folder is not None else [Path(s.path) for s in model.files]


def _hash_inputs(built: Built, pool: ThreadPoolExecutor, stop: Stop) -> Future[dict[str, dict[str, str]]]:
    """Hash the input files beside the work, until asked to stop: {label: {file name: sha256}}."""

    def hash_all() -> dict[str, dict[str, str]]:
        return {
            label: {s.name: sha256_of(s.path) for s in m.files if not stop.asked}
            for label, m in built.inputs()
        }

    return pool.submit(hash_all)


def _refuse_changed(built: Built) -> None:
    for _, model in built.inputs():
        model.check_unchanged()


def verify(folder: str | Path, *, threads: int | None = None) -> Report:
    """Check structure, hashes and finiteness of a model folder; VerificationError (exit 6) if anything is wrong.

    Of a packed delta, `PATH#LABEL` too, the whole container is checked.
    """
    from deltasmith.formats.opening import split_label
    from deltasmith.formats.packed import is_packed, open_packed
    from deltasmith.formats.verify import verify as verify_folder

    place, label = split_label(str(folder))
    if label is None or not is_packed(Path(place)):
        return verify_folder(Path(folder), threads=threads or available_threads())
    report = verify_folder(Path(place), threads=threads or available_threads())
    open_packed(place).delta(label)  # refuses a label that is not there
    return report


@dataclass(frozen=True)
class DiffReport:
    """The measured changes of every tensor, and of groups of them."""

    tensors: list[Difference]

    def by(self, group: str) -> list[Difference]:
        """Return the figures per "tensor", "projection", "layer" or "model"."""
        from deltasmith.engine.difference import grouped

        return self.tensors if group == "tensor" else grouped(self.tensors, group)

    def as_json(self) -> dict[str, Any]:
        """Return all groupings as plain data."""
        return {
            group: [d.as_json() for d in self.by(group)]
            for group in ("model", "layer", "projection", "tensor")
        }


def diff(
    base: str | Path, models: Sequence[str | Path], *, threads: int | None = None, stop: Stop | None = None
) -> DiffReport:
    """Measure the deltas of `models` to `base`: mean and max |δ|, relative norm, zeros, sign conflict, cosine.

    Labels are the models' folder names, numbered where two are equal. Refuses what `plan` would refuse.
    """
    from deltasmith.engine.difference import measure

    labels = numbered([Path(m).name or str(m) for m in models], reserved=["base"])
    entries = [{"model": str(m), "label": label} for m, label in zip(models, labels, strict=True)]
    built = build(from_dict({"base": str(base), "models": entries, "merge": "sum"}, Path()))
    return DiffReport(measure(built.plan, threads or available_threads(), stop or Stop()))
