"""Packing: a fine-tuned model becomes a packed delta over its base."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from deltasmith import __version__
from deltasmith.api import available_threads
from deltasmith.codecs.catalogue import codec_from, codec_tree
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.engine.coding import CodingTask, code
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.manifest import shown_source
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.packed_document import BaseRecord, Document, TensorRecord
from deltasmith.formats.packed_writer import PackedOutput, Written
from deltasmith.formats.publish import side_files
from deltasmith.packing.choosing import LINEARS, choose_all, rules_of
from deltasmith.packing.material import CellValues, Material, cell_of, gather
from deltasmith.packing.records import hash_files, manifest_of

__all__ = ["PackResult", "pack"]

CodecLike = str | Mapping[str, Any] | Codec
_BIT16 = 2


@dataclass(frozen=True)
class PackResult:
    """What was packed, and what it takes: `ratio` is bytes written over the model's bytes in 16 bits an element."""

    out: str
    tensors: int
    nbytes: int
    elements: int
    bytes_read: int
    relative_error: float
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Return packed bytes / (2 · elements)."""
        return self.nbytes / (_BIT16 * self.elements) if self.elements else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {**vars(self), "ratio": self.ratio, "notes": list(self.notes), "warnings": list(self.warnings)}


@dataclass(frozen=True)
class _Order:
    """All that decides a container's bytes."""

    base: OpenedModel
    material: Material
    cells: tuple[Cell, ...]
    codecs: Mapping[str, Codec]
    notes: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        """Hash version, codecs, seed and the state of every input file."""
        assert self.base.checkpoint is not None
        parts: list[Any] = [__version__, self.seed, self.material.label]
        parts += [(name, codec_tree(codec)) for name, codec in self.codecs.items()]
        for source in (*self.base.checkpoint.sources, *self.material.checkpoint.sources):
            status = Path(source.path).stat()
            parts.append((source.name, status.st_size, status.st_mtime_ns, status.st_ino))
        return xxhash.xxh3_128_hexdigest(repr(parts).encode())

    def tasks(self) -> list[CodingTask]:
        """Return one task per tensor, in order."""
        assert self.base.checkpoint is not None
        tasks = []
        for cell in self.cells:
            codec = self.codecs[cell.spec.name]
            ground = self.base.checkpoint if cell.base is not None else None
            values = CellValues(
                self.material.checkpoint, ground, cell.spec, codec.domain, self.material.label
            )
            tasks.append(CodingTask(cell, codec, values))
        return tasks


def pack(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    codec: CodecLike = "bitdelta",
    where: str = LINEARS,
    rules: Sequence[tuple[str, CodecLike]] = (),
    rest: CodecLike = "lossless",
    label: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> PackResult:
    """Write the packed delta of `model` over `base` to the folder `out`.

    `model` is a folder, a file, a hub id, an adapter, or a recipe (*.yaml) whose result is packed. Each tensor gets
    the codec of the first of `rules` (glob, codec) that matches it, else `codec` if `where` matches it (`linears`:
    the matrices of numbered layers), else `rest`. The bytes do not depend on threads, memory or interruptions.

    Raises what `merge` raises; RecipeError for codecs that do not exist.
    """
    began = time.perf_counter()
    stopper, listener = stop or Stop(), progress or Silent()
    count = threads or available_threads()
    ground = open_base(str(base))
    material = gather(ground, str(model), label or _label(model), count, stopper)
    order = _ordered(ground, material, rules_of(codec, where, rules), _codec(rest), seed)
    return write(order, Path(out), count, memory, overwrite, listener, stopper, began)


def open_base(base: str) -> OpenedModel:
    """Open the model a delta will belong to; RefusedError unless it is a model on disk or on the hub."""
    ground = open_model(base)
    if ground.checkpoint is None or ground.packed is not None:
        raise RefusedError(
            "an adapter or packed delta cannot be the base of another",
            where=printable(base),
            fix="unpack it first",
        )
    return ground


def _label(model: str | Path) -> str:
    return Path(str(model).partition("#")[0].partition("@")[0]).stem or "model"


def _codec(codec: CodecLike) -> Codec:
    return codec if isinstance(codec, Codec) else codec_from(codec)


def _ordered(base: OpenedModel, material: Material, rules: Any, rest: Codec, seed: int) -> _Order:
    assert base.checkpoint is not None
    specs = material.checkpoint.specs
    cells = tuple(cell_of(specs[name], base.checkpoint, material.label, seed) for name in sorted(specs))
    refuse_strangers(cells, base, material)
    codecs, notes = choose_all(cells, rules, rest)
    missing = [name for name in base.checkpoint.specs if name not in specs]
    if missing:
        notes.append(
            f"{len(missing)} tensors of the base are not in the model, the first {printable(missing[0], 120)}"
        )
    return _Order(base, material, cells, codecs, tuple(notes), seed)


def refuse_strangers(cells: Sequence[Cell], base: OpenedModel, material: Material) -> None:
    """Refuse a model most of whose elements the base cannot have been the start of."""
    shared = sum(cell.spec.size for cell in cells if cell.base is not None)
    if cells and 2 * shared < sum(cell.spec.size for cell in cells):
        other = next(cell.spec for cell in cells if cell.base is None)
        raise RefusedError(
            f"{material.label} is no fine-tune of this base: most of it has other names or shapes, such as "
            f"{printable(other.name, 120)} {list(other.shape)}",
            where=printable(base.source),
            fix="give the base that it was trained from",
        )


def write(
    order: _Order,
    out: Path,
    threads: int,
    memory: int,
    overwrite: bool,
    progress: Progress,
    stop: Stop,
    began: float,
) -> PackResult:
    """Code every tensor that an earlier run has not, and publish the container."""
    base, material = order.base, order.material
    assert base.checkpoint is not None
    tasks = order.tasks()
    models = [("base", base), *material.opened]
    with (
        ThreadPoolExecutor(max_workers=1) as background,
        PackedOutput.open(
            out, order.key, [t.name for t in tasks], inputs=_roots(models), overwrite=overwrite
        ) as output,
    ):
        digests = background.submit(lambda: hash_files(models, stop))
        print_of = background.submit(fingerprint, base.checkpoint)
        try:
            code(
                [task for task in tasks if task.key not in output.finished],
                output,
                threads=threads,
                memory=memory,
                stop=stop,
                progress=progress,
            )
        except BaseException:
            stop.ask()  # nobody will want the hashes
            raise
        progress.phase("checking the inputs", 0)
        ground = BaseRecord(shown_source(base.name), base.revision, print_of.result())
        document = document_of(order, ground, output)
        for _, opened in models:
            opened.check_unchanged()
        beside = side_files(material.folder, material.folder)
        inputs = digests.result()
        late = output.publish(
            document,
            beside.files,
            lambda entries: manifest_of(document, models, inputs, entries, beside.warnings),
        )
    return _result(order, out, output, document, time.perf_counter() - began, (*material.warnings, *late))


def _roots(models: Sequence[tuple[str, OpenedModel]]) -> list[Path]:
    return [
        p
        for _, m in models
        for p in ([m.folder] if m.folder is not None else [Path(s.path) for s in m.files])
    ]


def document_of(order: _Order, base: BaseRecord, output: PackedOutput) -> Document:
    """Describe everything that was written."""
    material = order.material
    tensors = {
        cell.spec.name: _record(cell, order.codecs[cell.spec.name], output.finished[cell.spec.name])
        for cell in order.cells
    }
    source = {"name": shown_source(material.name), "revision": material.revision}
    return Document(
        __version__, base, {material.label: tensors}, output.hashes(), {material.label: source}, order.notes
    )


def _record(cell: Cell, codec: Codec, written: Written) -> TensorRecord:
    measured = codec.domain != "stored"
    return TensorRecord(
        cell.spec,
        codec,
        written.arrays,
        written.squared_norm if measured else None,
        written.squared_error if measured else None,
        written.xxh3_128,
        cell.base is not None,
    )


def _result(
    order: _Order,
    out: Path,
    output: PackedOutput,
    document: Document,
    seconds: float,
    warnings: tuple[str, ...],
) -> PackResult:
    records = next(iter(document.deltas.values())).values()
    norm = sum(r.squared_norm or 0.0 for r in records)
    error = sum(r.squared_error or 0.0 for r in records)
    assert order.base.checkpoint is not None
    sources = (*order.base.checkpoint.sources, *order.material.checkpoint.sources)
    return PackResult(
        str(out),
        len(order.cells),
        output.nbytes,
        sum(cell.spec.size for cell in order.cells),
        sum(source.nbytes for source in dict.fromkeys(sources)),
        (error / norm) ** 0.5 if norm else 0.0,
        seconds,
        order.notes,
        warnings,
    )
