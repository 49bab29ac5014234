"""What is packed: a fine-tuned model or a recipe's result, lined up with its base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltasmith.codecs.protocol import Array, Cell, Codec, Domain, Words
from deltasmith.engine.coding import CodingTask
from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.surveying import on_demand, prepare
from deltasmith.engine.values import refuse_nonfinite
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.hf_folder import ShardedCheckpoint
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.packed import comparable
from deltasmith.formats.packed_model import predict
from deltasmith.formats.rooms import Rooms
from deltasmith.formats.safetensors_reader import SafetensorsFile
from deltasmith.kernels.decode import subtract_bfloat16
from deltasmith.kernels.encode import encode
from deltasmith.operation.randomness import cell_key
from deltasmith.planning.plan import Plan
from deltasmith.recipe.build import Built, build
from deltasmith.recipe.checks import from_dict, is_recipe_file, load
from deltasmith.recipe.model import to_mapping
from deltasmith.recipe.statistics import refuse_of_another
from deltasmith.table.checkpoint import Checkpoint, Floats, SourceFile, Spec, raw_into, read_difference

__all__ = ["CellValues", "Material", "PlanModel", "Rooms", "cell_of", "gather", "open_statistics", "task_of"]

_FILES = (SafetensorsFile, ShardedCheckpoint)
_PIECE = 1 << 18  # elements whose words are still in cache when they are subtracted


class PlanModel:
    """A plan's result as a checkpoint of the element types that a merge would write."""

    def __init__(self, plan: Plan, threads: int, tile: int, stop: Stop) -> None:
        """Run the plan's shared surveys, so that any tensor can be computed."""
        self._evaluator = Evaluator(plan, survey_tensor=on_demand(tile))
        prepare(self._evaluator, threads, tile, stop, lambda n: None)
        self.specs: Mapping[str, Spec] = {row.name: row.spec for row in plan.rows}

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the files below the plan."""
        return self._evaluator.sources

    def read(self, name: str, start: int, out: Floats) -> None:
        """Compute elements [start, start + out.size), unrounded."""
        self._evaluator.read(name, start, out)

    def raw(self, name: str, start: int, stop: int) -> bytes | memoryview | bytearray:
        """Return the bytes that a merge would write."""
        row = self._evaluator.plan.by_name[name]
        if row.action == "copy":
            return self._evaluator.raw(name, start, stop)
        values = np.empty(stop - start, np.float32)
        self.read(name, start, values)
        out = np.empty(values.size * row.spec.dtype.itemsize, np.uint8)
        if encode(row.spec.dtype.name, values, out):
            raise RefusedError(
                f"merged values do not fit {row.spec.dtype}",
                where=printable(name),
                fix="use `dtype: bfloat16` or `float32`, or a smaller scale",
            )
        return out.data


@dataclass(frozen=True)
class Material:
    """One model to be packed: its label, what it reads, and the folder its config and tokenizer come from."""

    label: str
    name: str
    checkpoint: Checkpoint
    folder: Path | None
    opened: tuple[tuple[str, OpenedModel], ...]
    warnings: tuple[str, ...] = ()
    revision: str | None = None
    recipe: str = ""
    """What its values depend on beside the files: the expanded recipe."""


def gather(base: OpenedModel, model: str, label: str, threads: int, stop: Stop) -> Material:
    """Open what is to be packed: a model, a recipe (*.yaml), an adapter (merged into `base`), a trainer's delta.

    Raises what opening and planning raise.
    """
    if is_recipe_file(model):
        return _from_plan(build(load(model)), Path(model).stem, label, threads, stop)
    opened = open_model(model)
    if opened.adapter is not None or opened.packed is not None:
        tree = {"base": base.source, "models": [{"model": model, "label": label}], "merge": "sum"}
        return _from_plan(build(from_dict(tree, Path())), opened.name, label, threads, stop)
    checkpoint, folder = opened.checkpoint, opened.folder
    if opened.trainer is not None:  # exact to the bit, which a recipe's difference and sum would not be
        assert base.checkpoint is not None
        checkpoint, folder = opened.trainer.bind(base.checkpoint), base.folder
    assert checkpoint is not None
    return Material(
        label,
        opened.name,
        checkpoint,
        folder,
        ((label, opened),),
        opened.warnings,
        opened.revision,
    )


def _from_plan(built: Built, name: str, label: str, threads: int, stop: Stop) -> Material:
    built.refuse_foreign_statistics(lambda: stop.asked)
    model = PlanModel(built.plan, threads, 1 << 18, stop)
    inputs = tuple((inner, opened) for inner, opened in built.opened() if inner != "base")
    recipe = repr(to_mapping(built.recipe))
    return Material(label, name, model, built.side.folder, inputs, tuple(built.plan.warnings), recipe=recipe)


@dataclass(frozen=True)
class CellValues:
    """The values of one tensor as a codec's domain asks for them."""

    model: Checkpoint
    base: Checkpoint | None
    spec: Spec
    domain: Domain
    label: str
    rooms: Rooms

    def read(self, start: int, stop: int) -> tuple[Array, Words | None]:
        """Return elements [start, stop): a delta, weights, or words with their prediction."""
        name = self.spec.name
        if self.domain == "stored":
            raw = self.rooms.take("words", (stop - start) * self.spec.dtype.itemsize, np.uint8)
            raw_into(self.model, name, start, raw)
            words = raw.view(f"u{self.spec.dtype.itemsize}")
            return words, predict(self.base, name, self.spec, start, stop, self.rooms)
        out = self.rooms.take("values", stop - start)
        if self.domain == "weight" or self.base is None:
            self.model.read(name, start, out)
        elif self._halves():
            self._subtract_halves(start, out)
            return out, None
        else:
            ground = self.rooms.take("base", stop - start)
            self.base.read(name, start, ground)
            read_difference(self.model, name, start, ground, out)
        refuse_nonfinite(out, name, start, self.label)
        return out, None

    def _halves(self) -> bool:
        """Tell whether both tensors lie in files as bfloat16, the common case, which has a faster way."""
        both = (self.model, self.base)
        kinds = [c.specs[self.spec.name].dtype.name for c in both if isinstance(c, _FILES)]
        return kinds == ["bfloat16", "bfloat16"]

    def _subtract_halves(self, start: int, out: Floats) -> None:
        name = self.spec.name
        for at in range(0, out.size, _PIECE):
            part = out[at : at + _PIECE]
            mine = self.rooms.take("words", part.size, np.uint16)
            ground = self.rooms.take("base words", part.size, np.uint16)
            assert self.base is not None
            raw_into(self.model, name, start + at, mine.view(np.uint8))
            raw_into(self.base, name, start + at, ground.view(np.uint8))
            if not subtract_bfloat16(mine, ground, part):
                refuse_nonfinite(part, name, start + at, self.label)


def task_of(
    material: Material, base: Checkpoint, cell: Cell, codec: Codec, rooms: Rooms, suffix: str = ""
) -> CodingTask:
    """Return the coding of one cell of a model: against the base where the cell has a comparable tensor there."""
    ground = base if cell.base is not None else None
    values = CellValues(material.checkpoint, ground, cell.spec, codec.domain, material.label, rooms)
    return CodingTask(cell, codec, values, suffix)


def cell_of(
    spec: Spec, base: Checkpoint, label: str, seed: int, statistics: Checkpoint | None = None
) -> Cell:
    """Return what a codec may know of a tensor; the base counts only if it has a comparable one."""
    ground = base.specs.get(spec.name)
    usable = ground if comparable(spec, ground) else None
    return Cell(spec, usable, cell_key(seed, label, spec.name), _gram(spec, statistics))


def _gram(spec: Spec, statistics: Checkpoint | None) -> Callable[[], Floats] | None:
    """Return the reader of the Gram matrix of a layer's inputs, where the statistics have one for this tensor."""
    name = f"{spec.name}::gram"
    if statistics is None or name not in statistics.specs:
        return None
    shape = statistics.specs[name].shape
    if len(spec.shape) != 2 or shape != (spec.shape[1], spec.shape[1]):
        raise RefusedError(
            f"the statistics hold a Gram matrix of {list(shape)} for a tensor of {list(spec.shape)}",
            where=printable(spec.name),
            fix="collect them from this model",
        )

    def read() -> Floats:
        out = np.empty(shape[0] * shape[1], np.float32)
        statistics.read(name, 0, out)
        return out.reshape(shape)

    return read


def open_statistics(
    path: str | Path | None, material: Material, stop: Stop
) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Open a statistics file (one `NAME::gram` per matrix) and return it with a note that names its contents.

    Raises DamagedInputError if it is none, RefusedError if it was taken of another model than the one to be packed.
    """
    if path is None:
        return None, ()
    opened = open_model(str(path))
    if opened.checkpoint is None or not any(name.endswith("::gram") for name in opened.checkpoint.specs):
        raise DamagedInputError(
            "not a file of Gram matrices",
            where=printable(str(path)),
            fix="it holds one `NAME::gram` per matrix",
        )
    if not material.recipe:
        for label, model in material.opened:
            refuse_of_another(label, model, opened, lambda: stop.asked)
    digest = sha256_of(opened.files[0].path)
    return opened.checkpoint, (f"errors weighed by {printable(opened.name, 80)} (sha256 {digest[:16]}…)",)
