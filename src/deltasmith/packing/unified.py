"""EMR: several fine-tunes of one base as one vector that all share, and one bit per element and number each.

Huang et al. 2024, EMR-Merging, arXiv 2405.17461. The first pass sums what the rescalers follow from; the second
writes the unified vector and the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.api import available_threads
from deltasmith.codecs.catalogue import CodecLike, codec_from, codec_text
from deltasmith.codecs.emr import Emr, mask_block, unified_block
from deltasmith.codecs.protocol import Array, Cell, Codec, Coded, Ending, Stream, Words
from deltasmith.engine.coding import CodingTask
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.values import refuse_nonfinite
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.packed_document import TensorRecord
from deltasmith.formats.packed_writer import key_of
from deltasmith.kernels.encode import encode
from deltasmith.kernels.sign_bits import packed_size
from deltasmith.merges.emr import RESCALERS
from deltasmith.operation.protocols import BLOCK
from deltasmith.packing.choosing import Rule, choose_all, rules_of
from deltasmith.packing.material import Material, Rooms, gather, task_of
from deltasmith.packing.single import cells_of, label_of
from deltasmith.packing.writing import Finished, Order, PackResult, Resources, open_base, record_of, write
from deltasmith.surveys.sums import Totals
from deltasmith.table.checkpoint import Checkpoint, Floats, Spec
from deltasmith.table.names import numbered

__all__ = ["pack_unified"]

_PIECE = 16 * BLOCK
Sums = dict[str, npt.NDArray[np.float64]]
"""Tensor → (models, 6) sums of `codecs.emr.mask_block`."""


def pack_unified(
    base: str | Path,
    models: Sequence[str | Path],
    out: str | Path,
    *,
    codec: CodecLike = "emr",
    where: str = "*",
    rules: Sequence[tuple[str, CodecLike]] = (),
    rest: CodecLike = "lossless",
    seed: int = 0,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> PackResult:
    """Write one container from which each of `models` opens as `OUT#LABEL`: unified vector, masks, rescalers.

    Floating tensors that `where` names and no rule does, and that base and models all have in one shape, share a
    unified vector; the others are kept for each model by `rules` and `rest`, as in `pack`. Labels are the models'
    folder names, numbered where two are equal. The errors told are those before the unified vector is rounded to its
    element type.

    Raises what `pack` raises; RefusedError for fewer than two models.
    """
    if len(models) < 2:
        raise RefusedError(
            "emr unifies two models or more", where="pack", fix="give more, or another --codec"
        )
    resources = Resources(threads or available_threads(), memory, progress or Silent(), stop or Stop())
    emr = codec_from(codec)
    if not isinstance(emr, Emr):
        raise RecipeError(f"{codec_text(emr)} codes one model", where="pack", fix="several are packed by emr")
    ground = open_base(str(base))
    materials = _gathered(ground, models, resources)
    family = _Family.of(ground, materials, Rule(where, emr), rules_of(rest, "*", rules), seed)
    assert ground.checkpoint is not None
    sums = _survey(ground.checkpoint, materials, family.shared, resources)
    order = _order(family, emr, sums)
    return write(order, Path(out), resources, overwrite=overwrite)


def _gathered(base: OpenedModel, models: Sequence[str | Path], resources: Resources) -> tuple[Material, ...]:
    labels = numbered([label_of(model) for model in models])
    return tuple(
        gather(base, str(model), label, resources.threads, resources.stop)
        for model, label in zip(models, labels, strict=True)
    )


@dataclass(frozen=True)
class _Family:
    """Base, models, and which tensor is coded how: `shared` by the unified vector, `own` by a codec per model."""

    base: OpenedModel
    materials: tuple[Material, ...]
    cells: Mapping[str, Sequence[Cell]]
    shared: Mapping[str, Spec]
    own: Mapping[str, Sequence[tuple[Cell, Codec]]]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, base: OpenedModel, materials: tuple[Material, ...], emr: Rule, rules: tuple[Rule, ...], seed: int
    ) -> _Family:
        """Line the models up; the last of `rules` is for whatever no other rule and no unified vector takes.

        Raises RecipeError where `emr` or a rule names no tensor.
        """
        *special, rest = rules
        lined = {m.label: cells_of(base, m, seed) for m in materials}
        cells = {label: found[0] for label, found in lined.items()}
        every = [cell for found in cells.values() for cell in found]
        choose_all(every, special, rest.codec)  # refuses rules that name nothing
        shared = _shared(materials, cells, emr, special)
        if not shared:
            raise RecipeError(
                f"{printable(repr(emr.where), 80)} names no floating tensor that base and models share for emr",
                where="pack",
                fix="widen --where, or take back a --rule",
            )
        own, notes = {}, [f"{label}: {note}" for label, found in lined.items() for note in found[1]]
        for label, found in cells.items():
            kept = [cell for cell in found if cell.spec.name not in shared]
            firsts = {next((n for n, rule in enumerate(special) if rule.names(cell)), None) for cell in kept}
            used = [rule for n, rule in enumerate(special) if n in firsts]
            codecs, more = choose_all(kept, used, rest.codec)
            own[label] = [(cell, codecs[cell.spec.name]) for cell in kept]
            notes += [f"{label}: {note}" for note in more]
        return cls(base, materials, cells, shared, own, tuple(notes))


def _shared(
    materials: Sequence[Material], cells: Mapping[str, Sequence[Cell]], emr: Rule, special: Sequence[Rule]
) -> dict[str, Spec]:
    """Return the tensors that one unified vector can stand for, with the specs of the first model."""
    first, *others = materials
    shared = {}
    for cell in cells[first.label]:
        spec = cell.spec
        theirs = [m.checkpoint.specs.get(spec.name) for m in others]
        same = all(other is not None and other.shape == spec.shape for other in theirs)
        ruled = any(rule.names(cell) for rule in special)
        if same and cell.base is not None and spec.dtype.floating and emr.names(cell) and not ruled:
            shared[spec.name] = spec
    return shared


@dataclass(frozen=True)
class _Deltas:
    """The deltas of all models for one tensor, as rows of (n, models): the values of the shared encoder."""

    base: Checkpoint
    materials: tuple[Material, ...]
    name: str
    rooms: Rooms

    def read(self, start: int, stop: int) -> tuple[Array, Words | None]:
        """Return (n, models) deltas; each column lies in one piece."""
        n = stop - start
        ground = self.rooms.take("base", n)
        self.base.read(self.name, start, ground)
        deltas = self.rooms.take("values", n * len(self.materials)).reshape(len(self.materials), n)
        for material, out in zip(self.materials, deltas, strict=True):
            material.checkpoint.read(self.name, start, out)
            np.subtract(out, ground, out=out)
            refuse_nonfinite(out, self.name, start, material.label)
        return deltas.T, None


def _survey(
    base: Checkpoint, materials: tuple[Material, ...], shared: Mapping[str, Spec], resources: Resources
) -> Sums:
    """Sum, per tensor and model, what the rescalers follow from; neither threads nor pieces change the sums."""
    rooms = Rooms()
    found: dict[tuple[str, int], npt.NDArray[np.float64]] = {}
    resources.progress.phase("surveying", sum(spec.nbytes for spec in shared.values()))

    def jobs() -> Iterator[tuple[Spec, int]]:
        for spec in shared.values():
            for start in range(0, spec.size, _PIECE):
                yield spec, start

    def work(job: tuple[Spec, int], _: int) -> None:
        spec, start = job
        stop = min(spec.size, start + _PIECE)
        values, _none = _Deltas(base, materials, spec.name, rooms).read(start, stop)
        deltas = values.T
        unified = unified_block(deltas)
        found[spec.name, start] = np.stack([mask_block(unified, delta)[1] for delta in deltas])
        resources.progress.advance((stop - start) * spec.dtype.itemsize)

    run_jobs(jobs(), work, range(resources.threads), resources.stop)
    return {
        name: np.cumsum(
            np.concatenate([found[name, at] for at in range(0, spec.size, _PIECE)], axis=1), axis=1
        )[:, -1]
        if spec.size
        else np.zeros((len(materials), 6))
        for name, spec in shared.items()
    }


def _rescaler(emr: Emr, sums: Sums, model: int) -> float:
    """Find one model's λ from the sums of all its tensors, in order of names."""
    totals = Totals({name: rows[model, :5] for name, rows in sorted(sums.items()) if rows[model, 4]})
    return float(np.float32(RESCALERS[emr.rescaler](totals)))


def _order(family: _Family, emr: Emr, sums: Sums) -> Order:
    base, materials, rooms = family.base.checkpoint, family.materials, Rooms()
    assert base is not None
    scales = {m.label: _rescaler(emr, sums, i) for i, m in enumerate(materials)}
    tasks = []
    for name, spec in family.shared.items():
        cell = Cell(spec, spec)
        by = _Encoder(emr.stored_type(cell), spec, tuple(scales.items()))
        tasks.append(CodingTask(cell, emr, _Deltas(base, materials, name, rooms), by=by))
    for m in materials:
        tasks += [task_of(m, base, cell, codec, rooms, f".{m.label}") for cell, codec in family.own[m.label]]

    def describe(finished: Finished) -> dict[str, dict[str, TensorRecord]]:
        return {
            m.label: _records(
                family, emr, {n: rows[i] for n, rows in sums.items()}, m.label, scales, finished
            )
            for i, m in enumerate(materials)
        }

    told = ", ".join(f"{printable(label, 60)} {scale:.6g}" for label, scale in scales.items())
    notes = (f"emr of {len(materials)} models; rescalers ({emr.rescaler}): {told}",)
    return Order(family.base, materials, tuple(tasks), describe, (*notes, *family.notes))


def _records(
    family: _Family,
    emr: Emr,
    sums: Sums,
    label: str,
    scales: Mapping[str, float],
    finished: Finished,
) -> dict[str, TensorRecord]:
    """Describe one model's tensors: shared ones by the common vector and the model's own mask."""
    scale, records = scales[label], {}
    for name in family.shared:
        arrays = finished[name].arrays
        own = {"unified": arrays["unified"]} | {p: arrays[f"{p}.{label}"] for p in ("mask", "rescaler")}
        dot, square, norm = sums[name][2], sums[name][3], sums[name][5]
        error = max(0.0, float(norm - 2 * scale * dot + scale * scale * square))
        mine = next(cell.spec for cell in family.cells[label] if cell.spec.name == name)
        records[name] = TensorRecord(mine, emr, own, float(norm), error)
    for cell, codec in family.own[label]:
        records[cell.spec.name] = record_of(cell, codec, finished[key_of(cell.spec.name, f".{label}")])
    return dict(sorted(records.items()))


@dataclass(frozen=True)
class _Encoder:
    """Writes the unified vector of one tensor, rounded, and every model's mask, taken before the rounding."""

    dtype: str
    spec: Spec
    scales: tuple[tuple[str, float], ...]

    @property
    def block(self) -> int:
        return _PIECE

    @property
    def streams(self) -> Sequence[Stream]:
        mask = (packed_size(self.spec.size),)
        unified = Stream("unified", self.dtype, self.spec.shape)
        return (unified, *(Stream(f"mask.{label}", "uint8", mask) for label, _ in self.scales))

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        deltas: Floats = values.T
        unified = unified_block(deltas)
        last = start + len(values) >= self.spec.size
        parts: dict[str, Any] = {"unified": self._rounded(unified)}
        for (label, _), delta in zip(self.scales, deltas, strict=True):
            bits = mask_block(unified, delta)[0]
            parts[f"mask.{label}"] = bits if last else bits[: len(values) // 8]
        return Coded(parts)

    def _rounded(self, unified: Floats) -> npt.NDArray[np.uint8]:
        out = np.empty(unified.size * (4 if self.dtype == "float32" else 2), np.uint8)
        if encode(self.dtype, unified, out):
            raise ValueError(f"a unified delta does not fit {self.dtype}")
        return out

    def finish(self, tallies: Sequence[Any]) -> Ending:
        return Ending({f"rescaler.{label}": np.array([scale], np.float32) for label, scale in self.scales})
