"""Statistics of a model on data, written as the file that merges and edits read: gradient, Fisher diagonal, Grams.

How each is computed is in `statistics`; here is the file: names as the checkpoint has them, one float32 tensor per
parameter, the same bytes for the same input, whole under its name or not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from deltasmith import api
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.evaluate.models.opening import is_recipe
from deltasmith.evaluate.models.transformers_loading import require_transformers
from deltasmith.formats.array_file import ArrayFile, room_for
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.opening import open_model
from deltasmith.formats.system import resource_error
from deltasmith.recipe.model import Recipe
from deltasmith.recipe.statistics import FINGERPRINT, MODEL, on_disk
from deltasmith.table.checkpoint import Floats

if TYPE_CHECKING:
    from deltasmith.analysis.networks import Dtype

__all__ = ["FORMAT", "GRAM_MEMORY", "Kind", "Saved", "check_place", "save", "stored_names"]

Kind = Literal["gradient", "fisher", "gram"]
FORMAT = "deltasmith-stats-1"
"""What the file's metadata calls its format; beside it stand the kind, the number of examples, and whose they are."""

GRAM_MEMORY = 4 << 30
"""Bytes of Gram matrices that are collected at once unless another number is given."""

Shapes = Mapping[str, tuple[int, ...]]
Written = tuple[str, Floats]


@dataclass(frozen=True)
class Saved:
    """What was written: the file, how many tensors it holds, over how many examples they were taken, and notes."""

    file: str
    tensors: int
    examples: int
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "file": self.file,
            "tensors": self.tensors,
            "examples": self.examples,
            "notes": list(self.notes),
        }


def save(
    kind: Kind,
    model: str | Path | Mapping[str, Any] | Recipe,
    *,
    data: str | Path,
    out: str | Path,
    device: str = "cpu",
    dtype: Dtype = "float32",
    batch: int = 4,
    length: int = 512,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    stop: Stop | None = None,
    memory: int = GRAM_MEMORY,
    say: Callable[[int, int], None] = lambda done, of: None,
) -> Saved:
    """Take a statistic of a model over data, and write it to `out`, a .safetensors file.

    `gradient`: the mean gradient of the loss, a tensor for every parameter (`bias_by_gradient` reads it). `fisher`:
    the diagonal of the Fisher information of one token, with labels drawn from the model by `seed` (the merge
    `fisher`). `gram`: X'X / tokens of the inputs X of every linear layer, (in, in), as `NAME::gram` (the merge
    `regmean`, and `pack --statistics`). `model` and `data` are what `loss` takes; a `.npz` of labelled inputs asks
    for a classifier. `memory` bounds the Gram matrices, in bytes: where they do not fit at once, the data are read
    again for every group of layers; the file does not depend on it. Of a model on disk the file keeps name and
    fingerprint, and who reads it refuses it for another model.

    Tensors are called as the checkpoint calls them, and written in float32 whatever `dtype` is. A second copy of the
    weights is needed for `gradient` and `fisher`.

    Raises:
        RecipeError: an option makes no sense. MissingExtraError: torch or transformers is missing.
        RefusedError: `out` exists and is not to be overwritten, or lies in the model's folder; a parameter has no
            tensor in the checkpoint that would correspond to it; a value is not finite.
        DamagedInputError: model or data do not load. ResourceError: memory or disk do not suffice.
        InterruptedRunError: asked to stop; nothing is written.
    """
    if kind not in get_args(Kind):
        known = ", ".join(get_args(Kind))
        raise RecipeError(f"there is no statistic {printable(str(kind))!r}", fix=f"use {known}")
    target = Path(out)
    check_place(target, model, overwrite=overwrite)
    require_transformers("taking a statistic", "analysis")
    from deltasmith.analysis import statistics  # torch, from here on

    shapes, taken_of = _shapes(model), _whose(model, stop or Stop())
    ready = statistics.prepare(
        model, data, device=device, dtype=dtype, batch=batch, length=length, limit=limit, stop=stop
    )
    names = stored_names({n: tuple(p.shape) for n, p in ready.parameters.items()}, shapes, ready.name)
    run = statistics.Run(ready, names, seed, memory, stop or Stop(), say)
    metadata = {"format": FORMAT, "kind": kind, "examples": str(ready.examples), **taken_of}
    compute: Mapping[Kind, Callable[[], Iterator[Written]]] = {
        "gradient": run.gradient,
        "fisher": run.fisher,
        "gram": run.grams,
    }
    count = _write(target, compute[kind](), run.planned(kind), metadata, overwrite=overwrite)
    return Saved(str(target), count, ready.examples, (*ready.notes, *run.notes))


def stored_names(parameters: Shapes, shapes: Shapes, where: str) -> dict[str, str]:
    """Map the names of a network's parameters to the names its tensors have in the checkpoint, (same shape).

    A network may put a prefix before the names, or leave one out (`transformer.h.0…` of `h.0…`): where exactly one
    tensor of the same shape has a name that ends with the other, it is meant.

    Raises:
        RefusedError: no tensor of the checkpoint corresponds to a parameter.

    >>> stored_names({"model.w": (2,), "b": (1,)}, {"w": (2,), "b": (1,), "c": (1,)}, "m")
    {'model.w': 'w', 'b': 'b'}
    """
    found = {name: name for name, shape in parameters.items() if shapes.get(name) == shape}
    free = [name for name in shapes if name not in found]
    for name, shape in parameters.items():
        if name in found:
            continue
        alike = [
            other
            for other in free
            if shapes[other] == shape and (name.endswith(f".{other}") or other.endswith(f".{name}"))
        ]
        if len(alike) != 1:
            raise RefusedError(
                f"no tensor of the checkpoint is {printable(name)} {list(shape)} as the network computes with it "
                "(transformers converts this architecture's tensors when it loads them)",
                where=printable(where),
                fix="statistics of such an architecture cannot be written yet",
            )
        found[name] = alike[0]
        free.remove(alike[0])
    return {name: found[name] for name in parameters}


def _shapes(model: str | Path | Mapping[str, Any] | Recipe) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the floating tensors of a model, or of what a recipe would write."""
    if is_recipe(model):
        specs = [row.spec for row in api.plan(model).built.plan.rows]
    else:
        checkpoint = open_model(str(model)).checkpoint
        specs = list(checkpoint.specs.values()) if checkpoint is not None else []
    return {spec.name: spec.shape for spec in specs if spec.dtype.floating}


def _whose(model: str | Path | Mapping[str, Any] | Recipe, stop: Stop) -> dict[str, str]:
    """Return name and fingerprint of a model on disk, as the file keeps them; nothing of what is computed."""
    if is_recipe(model):
        return {}
    opened = open_model(str(model))
    checkpoint = on_disk(opened)
    if checkpoint is None:
        return {}
    return {MODEL: opened.name, FINGERPRINT: fingerprint(checkpoint, lambda: stop.asked)}


def check_place(out: Path, model: object, *, overwrite: bool) -> None:
    """Refuse a place where the statistics of a model may not be written, before anything is computed.

    Raises:
        RecipeError: it is not called .safetensors. RefusedError: there is a file, which is not to be overwritten, or a
            folder; it lies in the model's own folder, or in a folder that does not exist.
    """
    if out.suffix != ".safetensors":
        raise RecipeError(
            f"a statistics file cannot be called {printable(out.name)}", fix="name it .safetensors"
        )
    _refuse_existing(out, overwrite=overwrite)
    if not out.parent.is_dir():
        raise RefusedError(
            "there is no such folder to write into",
            where=printable(str(out.parent)),
            fix="make it first, or correct the path",
        )
    if (
        isinstance(model, str | Path)
        and Path(model).is_dir()
        and out.resolve().parent == Path(model).resolve()
    ):
        raise RefusedError(
            "the statistics would lie among the model's own weights",
            where=printable(str(out)),
            fix="write them beside the model's folder",
        )


def _refuse_existing(out: Path, *, overwrite: bool) -> None:
    if os.path.lexists(out) and (not overwrite or out.is_dir()):
        raise RefusedError(
            "there is a file already" if not out.is_dir() else "this is a folder",
            where=printable(str(out)),
            fix="choose another name" + ("" if out.is_dir() else ", or give --overwrite"),
        )


def _write(
    out: Path, tensors: Iterator[Written], names: list[str], metadata: Mapping[str, str], *, overwrite: bool
) -> int:
    """Write tensors as they come, under another name until all are there; return how many there were."""
    count = 0
    with _fresh(out) as path:
        file = ArrayFile(path, room_for(names))
        try:
            for name, values in tensors:
                _refuse_nonfinite(name, values)
                file.end({name: np.ascontiguousarray(values, np.float32)})
                count += 1
            file.seal(metadata)
        finally:
            file.close()
        _refuse_existing(out, overwrite=overwrite)
    return count


@contextmanager
def _fresh(out: Path) -> Iterator[Path]:
    """Yield a path beside `out`, which takes its place at the end and is gone after an error."""
    path = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield path
        path.replace(out)
    except OSError as cause:
        raise resource_error(cause, cause.filename or out) from cause
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _refuse_nonfinite(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise RefusedError(
            "a value of the statistic is not finite",
            where=printable(name),
            fix="use a wider --dtype (float64 is the widest), or leave the documents out that it comes from",
        )
