"""A new container from others over the same base: some tensors in packed form, the rest as a merge would write them.

What cannot be calculated in packed form comes from a plan: the recipe with these packed deltas as models, `merge: sum`
and their weights. Its values are rounded once to the tensor's element type and stored losslessly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.api import available_threads
from deltasmith.codecs.catalogue import codec_name
from deltasmith.codecs.lossless import Lossless
from deltasmith.codecs.protocol import Array, Cell, Codec, Coded, Ending, Source, Stream, Words
from deltasmith.engine.coding import CodingTask
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, printable
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.packed import PackedDelta
from deltasmith.formats.packed_document import TensorRecord, is_label
from deltasmith.packing.forms import PackedLike, base_of, open_delta, refuse_other_bases, source_of
from deltasmith.packing.material import CellValues, Material, PlanModel, Rooms, cell_of
from deltasmith.packing.single import label_of
from deltasmith.packing.writing import Finished, Order, PackResult, Resources, record_of, write
from deltasmith.recipe.build import build
from deltasmith.recipe.checks import from_dict
from deltasmith.table.checkpoint import Checkpoint, Spec
from deltasmith.table.names import numbered

__all__ = ["ArrayTask", "Copied", "Copy", "Ready", "Settings", "Term", "Terms", "combine"]

_LONGEST = 80  # characters of a label that numbers may be added to
_STEP = 1 << 22
"""Elements whose bits are copied, or counted, at once."""
_TALLY = 16 << 20
"""Bytes that measuring a tensor takes beside copying it."""


@dataclass(frozen=True)
class Settings:
    """Where the result goes, and what the run may take."""

    out: Path
    label: str
    resources: Resources
    overwrite: bool

    @classmethod
    def of(
        cls,
        out: str | Path,
        label: str | None = None,
        threads: int | None = None,
        memory: int = DEFAULT_MEMORY,
        overwrite: bool = False,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Settings:
        """Fill in what was not given; RecipeError for a label that is none."""
        chosen = label_of(out) if label is None else label
        if not is_label(chosen):
            raise RecipeError(
                f"no delta can be labelled {printable(repr(chosen), 60)}",
                where="pack",
                fix="a label is printable and has no #",
            )
        resources = Resources(threads or available_threads(), memory, progress or Silent(), stop or Stop())
        return cls(Path(out), chosen, resources, overwrite)


@dataclass(frozen=True)
class Term:
    """One packed delta and its weight in the sum."""

    weight: float
    label: str
    source: str
    opened: OpenedModel
    delta: PackedDelta


@dataclass(frozen=True)
class Terms:
    """Packed deltas over one base, and this base, opened when it is first asked for."""

    listed: tuple[Term, ...]
    place: str | Path | None = None

    @classmethod
    def of(cls, weighted: Sequence[tuple[float, PackedLike]], base: str | Path | None) -> Terms:
        """Open all deltas. RecipeError for weights that are no numbers, or no delta at all; RefusedError for others."""
        if not weighted:
            raise RecipeError("there is no packed delta", where="pack", fix="give one or more")
        for weight, _ in weighted:
            if not math.isfinite(weight):
                raise RecipeError(f"a weight of {weight}", where="pack", fix="give finite numbers")
        opened = [open_delta(packed) for _, packed in weighted]
        refuse_other_bases([delta for _, delta in opened])
        names = [label_of(source_of(packed))[:_LONGEST] for _, packed in weighted]
        labels = numbered(names, reserved=["base"])
        terms = cls(
            tuple(
                Term(float(weight), label, source_of(packed), model, delta)
                for (weight, packed), label, (model, delta) in zip(weighted, labels, opened, strict=True)
            ),
            base,
        )
        if base is not None:
            _ = terms.base
        return terms

    @cached_property
    def base(self) -> OpenedModel:
        """Return the base, checked against every delta."""
        found = base_of(self.listed[0].delta, self.place)
        assert found.checkpoint is not None
        for term in self.listed:
            term.delta.check_base(found.checkpoint)
        return found

    @property
    def ground(self) -> Checkpoint:
        """Return the values of the base."""
        assert self.base.checkpoint is not None
        return self.base.checkpoint

    @property
    def text(self) -> str:
        """Write the sum out: `0.5 · math + 0.5 · code`."""
        return " + ".join(f"{term.weight:g} · {printable(term.label, 60)}" for term in self.listed)

    def spec(self, name: str) -> Spec | None:
        """Return the spec of a tensor whose delta all of them hold, equal in shape and type; else None."""
        records = [term.delta.tensors.get(name) for term in self.listed]
        first = records[0]
        same = all(r is not None and first is not None and r.spec == first.spec for r in records)
        deltas = all(r is not None and r.codec.domain == "delta" for r in records)
        return first.spec if first is not None and same and deltas else None

    def plan(self, settings: Settings) -> PlanModel:
        """Return what `deltasmith merge` would write for this sum."""
        models = [{"model": t.source, "label": t.label, "weight": t.weight} for t in self.listed]
        built = build(from_dict({"base": self.base.source, "models": models, "merge": "sum"}, Path()))
        return PlanModel(built.plan, settings.resources.threads, 1 << 18, settings.resources.stop)


Closing = Callable[[Cell], CodingTask | None]
"""What calculates a tensor in packed form; None for one where that is not possible."""


def combine(terms: Terms, close: Closing, settings: Settings, told: str, recipe: str) -> PackResult:
    """Write the container: tensors that `close` takes in their packed form, all others losslessly as merged.

    `told` heads the notes, `recipe` is what the values depend on beside the files.
    """
    names = sorted({name for term in terms.listed for name in term.delta.tensors})
    tasks: dict[str, CodingTask] = {}
    for name in names:
        spec = terms.spec(name)
        task = None if spec is None else close(Cell(spec, spec))
        if task is not None:
            tasks[name] = task
    left: list[str] = []
    if len(tasks) < len(names):
        model, rooms = terms.plan(settings), Rooms()
        merged = model.specs
        tasks = {n: t for n, t in tasks.items() if n in merged and merged[n] == t.cell.spec}
        left = sorted(name for name in merged if name not in tasks)
        for name in left:
            cell = cell_of(merged[name], terms.ground, settings.label, 0)
            ground = terms.ground if cell.base is not None else None
            values = CellValues(model, ground, cell.spec, "stored", settings.label, rooms)
            tasks[name] = CodingTask(cell, Lossless(), values)
    notes = (told, *_notes(tasks, left))
    listed = tuple(tasks[name] for name in sorted(tasks))
    order = _order(terms, listed, settings, notes, recipe, needs_base=bool(left))
    return write(order, settings.out, settings.resources, overwrite=settings.overwrite)


def _notes(tasks: Mapping[str, CodingTask], left: Sequence[str]) -> list[str]:
    """Say which tensors were calculated how."""
    packed: dict[str, int] = {}
    for name, task in tasks.items():
        if name not in left:
            packed[codec_name(task.codec)] = packed.get(codec_name(task.codec), 0) + 1
    notes = []
    if packed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(packed.items()))
        notes.append(
            f"calculated in packed form: {kinds}; their errors are those of this calculation alone, not of the deltas "
            "it began with"
        )
    if left:
        notes.append(
            f"calculated by values, rounded and kept losslessly: {len(left)} tensors, the first "
            f"{printable(left[0], 120)}"
        )
    return notes


def _order(
    terms: Terms,
    tasks: tuple[CodingTask, ...],
    settings: Settings,
    notes: tuple[str, ...],
    recipe: str,
    *,
    needs_base: bool,
) -> Order:
    """Put together what `write` wants; the first delta lends config and tokenizer."""
    first = terms.listed[0]
    materials = [
        Material(
            settings.label if i == 0 else f"#{i}",  # which no delta can be called
            terms.text if i == 0 else term.label,
            _checkpoint(term),
            first.opened.folder if i == 0 else None,
            ((term.label, term.opened),),
            recipe=recipe if i == 0 else "",
        )
        for i, term in enumerate(terms.listed)
    ]

    def describe(finished: Finished) -> dict[str, dict[str, TensorRecord]]:
        return {settings.label: {t.name: record_of(t.cell, t.codec, finished[t.key]) for t in tasks}}

    base = terms.base if needs_base else None
    return Order(base, tuple(materials), tasks, describe, notes, first.delta.packed.base)


def _checkpoint(term: Term) -> Checkpoint:
    assert term.opened.checkpoint is not None
    return term.opened.checkpoint


class _Nothing:
    """No values: what an encoder takes that gets everything from elsewhere."""

    def read(self, start: int, stop: int) -> tuple[Array, Words | None]:
        """Return nothing."""
        return np.zeros(0, np.float32), None


@dataclass
class ArrayTask(CodingTask):
    """A tensor whose arrays follow from others' arrays: it takes `room` bytes, and no values."""

    room: int = 0

    @property
    def needs(self) -> int:
        """Count the bytes that one job takes."""
        return self.room

    @classmethod
    def of(cls, cell: Cell, codec: Codec, by: Ready | Copied, room: int = 0) -> ArrayTask:
        """Make the task of such an encoder."""
        return cls(cell, codec, _Nothing(), by=by, room=room or by.room)


@dataclass(frozen=True)
class Ready:
    """An encoder of arrays that are small, and calculated at once."""

    size: int
    make: Callable[[], Ending]
    room: int
    streams: tuple[Stream, ...] = ()

    @property
    def block(self) -> int:
        """Take the tensor at once."""
        return max(1, self.size)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        """Calculate everything."""
        return Coded({}, self.make())

    def finish(self, tallies: Sequence[Any]) -> Ending:
        """Return what was calculated."""
        ending: Ending = tallies[0] if tallies else self.make()
        return ending


@dataclass(frozen=True)
class Copy:
    """An array put together from ranges of others: (where, array, first element, past the last) each."""

    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[tuple[Source, str, int, int], ...]

    @classmethod
    def of(cls, source: Source, name: str) -> Copy:
        """Take a whole array as it is."""
        spec = source.specs[name]
        return cls(spec.dtype.name, spec.shape, ((source, name, 0, spec.size),))

    def part(self, number: int, count: int) -> bytes:
        """Return the bytes of the `number`-th of `count` equal parts."""
        total = sum(stop - start for _, _, start, stop in self.ranges)
        step = -(-total // count)
        low, high = number * step, min(total, (number + 1) * step)
        found, at = [], 0
        for source, name, start, stop in self.ranges:
            first, last = max(low, at), min(high, at + stop - start)
            if first < last:
                found.append(source.read(name, start + first - at, start + last - at).tobytes())
            at += stop - start
        return b"".join(found)


@dataclass(frozen=True)
class Copied:
    """An encoder of arrays that exist already, copied piece by piece, and of small ones that are made (`end`).

    `tally(start, stop)` is what `end` wants to know of each block.
    """

    size: int
    copies: Mapping[str, Copy]
    end: Callable[[Sequence[Any]], Ending]
    tally: Callable[[int, int], Any] = field(default=lambda start, stop: None)

    @property
    def block(self) -> int:
        """Count the elements whose share of the arrays is copied at once."""
        return _STEP

    @property
    def room(self) -> int:
        """Count the bytes of one block, and of a few megabytes for its tally."""
        count = max(1, -(-self.size // _STEP))
        nbytes = sum(
            (stop - start) * source.specs[name].dtype.itemsize
            for copy in self.copies.values()
            for source, name, start, stop in copy.ranges
        )
        return 3 * nbytes // count + _TALLY

    @property
    def streams(self) -> Sequence[Stream]:
        """List the copies."""
        return [Stream(name, copy.dtype, copy.shape) for name, copy in self.copies.items()]

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        """Copy one block's share."""
        number, count = start // _STEP, -(-self.size // _STEP)
        parts = {name: copy.part(number, count) for name, copy in self.copies.items()}
        return Coded(parts, self.tally(start, min(self.size, start + _STEP)))

    def finish(self, tallies: Sequence[Any]) -> Ending:
        """Make what is left."""
        return self.end(tallies)
