"""Writing a container: code what an earlier run has not, describe it, publish it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from deltasmith import __version__
from deltasmith.codecs.catalogue import codec_text, codec_tree
from deltasmith.codecs.lossless import Lossless
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.codecs.zero import Zero
from deltasmith.engine.coding import CodingTask, code
from deltasmith.engine.progress import Progress
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, printable
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.manifest import shown_source
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.packed_document import BaseRecord, Document, TensorRecord
from deltasmith.formats.packed_writer import PackedOutput, Written
from deltasmith.formats.publish import side_files
from deltasmith.packing.material import Material
from deltasmith.packing.records import hash_files, manifest_of

__all__ = [
    "Order",
    "OverLimitError",
    "PackResult",
    "Resources",
    "open_base",
    "record_of",
    "refuse_strangers",
    "write",
]

_BIT16 = 2
Tensors = Mapping[str, TensorRecord]
Finished = Mapping[str, Written]


@dataclass(frozen=True)
class PackResult:
    """What was packed, and what it takes: `ratio` is bytes written over the models' bytes in 16 bits an element."""

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
class Resources:
    """What a run may use, and whom it tells."""

    threads: int
    memory: int
    progress: Progress
    stop: Stop


@dataclass(frozen=True)
class Order:
    """All that decides a container's bytes.

    `tasks` are coded in their order; `describe` turns what was written into label → tensor → record. `ground` is
    what is known of the base already; without it the base is hashed. Where nothing reads the base it may be None.
    """

    base: OpenedModel | None
    materials: tuple[Material, ...]
    tasks: tuple[CodingTask, ...]
    describe: Callable[[Finished], Mapping[str, Tensors]]
    notes: tuple[str, ...] = ()
    ground: BaseRecord | None = None

    @property
    def models(self) -> list[tuple[str, OpenedModel]]:
        """Return every model on disk with its label, the base first; none twice."""
        given = [pair for material in self.materials for pair in material.opened]
        return given if self.base is None else [("base", self.base), *given]

    @property
    def sources(self) -> list[Any]:
        """Return every file that is read, once."""
        ground = [self.base.checkpoint] if self.base is not None else []
        checkpoints = [*ground, *(material.checkpoint for material in self.materials)]
        return list(dict.fromkeys(source for c in checkpoints if c is not None for source in c.sources))

    @property
    def key(self) -> str:
        """Hash version, notes, codecs, recipes, cells and the state of every input file."""
        parts: list[Any] = [__version__, self.notes, [(m.label, m.recipe) for m in self.materials]]
        parts += [(task.key, task.cell.spec, task.cell.key, codec_tree(task.codec)) for task in self.tasks]
        for source in self.sources:
            status = Path(source.path).stat()
            parts.append((source.name, status.st_size, status.st_mtime_ns, status.st_ino))
        return xxhash.xxh3_128_hexdigest(repr(parts).encode())


class OverLimitError(RefusedError):
    """A container would take `excess` bytes more than it may."""

    def __init__(self, nbytes: int, limit: int, out: str) -> None:
        """Build the message from the two sizes."""
        self.excess = nbytes - limit
        super().__init__(
            f"the container would take {nbytes:,} bytes, more than the {limit:,} of the budget",
            where=printable(out),
            fix="give a larger --budget",
        )


def open_base(base: str) -> OpenedModel:
    """Open the model a delta will belong to; RefusedError unless it is a model on disk or on the hub."""
    ground = open_model(base)
    if ground.checkpoint is None or ground.packed is not None:
        raise RefusedError(
            f"{ground.kind} cannot be the base of another delta",
            where=printable(base),
            fix="unpack it first",
        )
    return ground


def refuse_strangers(cells: Sequence[Cell], base: OpenedModel, label: str) -> None:
    """Refuse a model most of whose elements the base cannot have been the start of."""
    shared = sum(cell.spec.size for cell in cells if cell.base is not None)
    if cells and 2 * shared < sum(cell.spec.size for cell in cells):
        other = next(cell.spec for cell in cells if cell.base is None)
        raise RefusedError(
            f"{printable(label, 80)} is no fine-tune of this base: most of it has other names or shapes, such as "
            f"{printable(other.name, 120)} {list(other.shape)}",
            where=printable(base.source),
            fix="give the base that it was trained from",
        )


def record_of(cell: Cell, codec: Codec, written: Written) -> TensorRecord:
    """Describe one tensor that a codec has written by itself."""
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


def write(
    order: Order, out: Path, resources: Resources, *, overwrite: bool = False, limit: int | None = None
) -> PackResult:
    """Code every tensor that an earlier run has not, and publish the container under `out`.

    Raises OverLimitError, and publishes nothing, if the file would take more than `limit` bytes.
    """
    began = time.perf_counter()
    stop = resources.stop
    keys = [task.key for task in order.tasks for _ in range(_arrays(task))]
    with (
        ThreadPoolExecutor(max_workers=1) as background,
        PackedOutput.open(out, order.key, keys, inputs=_roots(order.models), overwrite=overwrite) as output,
    ):
        digests = background.submit(hash_files, order.models, stop)
        ground = background.submit(_ground, order, stop)
        try:
            _code(order, output, resources)
        except BaseException:
            stop.ask()  # nobody will want the hashes
            raise
        resources.progress.phase("checking the inputs", 0)
        document, inputs = _document(order, output, ground.result()), digests.result()
        if stop.asked:  # some inputs may have no hash
            raise InterruptedRunError("interrupted", fix="run the same command again to resume")
        nbytes = output.size_with(document)
        if limit is not None and nbytes > limit:
            raise OverLimitError(nbytes, limit, str(out))
        for _, opened in order.models:
            opened.check_unchanged()
        folder = order.materials[0].folder
        beside = side_files(folder, folder)
        late = output.publish(
            document,
            beside.files,
            lambda entries: manifest_of(document, order.models, inputs, entries, beside.warnings),
        )
    warnings = (*(w for material in order.materials for w in material.warnings), *beside.warnings, *late)
    return _result(order, document, out, output.nbytes, time.perf_counter() - began, warnings)


def _arrays(task: CodingTask) -> int:
    """Guess how many arrays a tensor will have, for the room of the header; two is what most codecs take."""
    return 0 if isinstance(task.codec, Zero) else max(2, len(task.encoder.streams) + 1)


def _code(order: Order, output: PackedOutput, resources: Resources) -> None:
    code(
        [task for task in order.tasks if task.key not in output.finished],
        output,
        threads=resources.threads,
        memory=resources.memory,
        stop=resources.stop,
        progress=resources.progress,
    )


def _roots(models: Sequence[tuple[str, OpenedModel]]) -> list[Path]:
    return [p for _, m in models for p in ([m.folder] if m.folder else [Path(s.path) for s in m.files])]


def _ground(order: Order, stop: Stop) -> BaseRecord:
    """Say which base it is, by its fingerprint."""
    if order.ground is not None:
        return order.ground
    assert order.base is not None
    assert order.base.checkpoint is not None
    found = fingerprint(order.base.checkpoint, lambda: stop.asked)
    return BaseRecord(shown_source(order.base.name), order.base.revision, found)


def _document(order: Order, output: PackedOutput, base: BaseRecord) -> Document:
    """Describe everything that was written."""
    sources = {m.label: {"name": shown_source(m.name), "revision": m.revision} for m in order.materials}
    deltas = order.describe(output.finished)
    sizes = {entry.name: entry.end - entry.begin for entry in output.file.entries}
    notes = (*order.notes, *_larger(deltas, sizes))
    return Document(__version__, base, deltas, output.hashes(), sources, notes)


def _larger(deltas: Mapping[str, Tensors], sizes: Mapping[str, int]) -> list[str]:
    """Note the tensors that take more room packed than as they were; arrays of several deltas are none's alone."""
    records = [(name, record) for tensors in deltas.values() for name, record in tensors.items()]
    uses = Counter(array for _, record in records for array in record.arrays.values())
    found: dict[Codec, list[str]] = {}
    for name, record in records:
        own = sum(sizes[array] for array in record.arrays.values() if uses[array] == 1)
        if own > record.spec.nbytes and not isinstance(
            record.codec, Lossless
        ):  # which adds a few bytes at most
            found.setdefault(record.codec, []).append(name)
    return [
        f"{printable(names[0], 120)}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {codec_text(codec)} is"
        " larger than the tensor itself"
        for codec, names in found.items()
    ]


def _result(
    order: Order, document: Document, out: Path, nbytes: int, seconds: float, warnings: tuple[str, ...]
) -> PackResult:
    records = [record for tensors in document.deltas.values() for record in tensors.values()]
    norm = sum(record.squared_norm or 0.0 for record in records)
    error = sum(record.squared_error or 0.0 for record in records)
    return PackResult(
        str(out),
        len(records),
        nbytes,
        sum(record.spec.size for record in records),
        sum(source.nbytes for source in order.sources),
        (error / norm) ** 0.5 if norm else 0.0,
        seconds,
        document.notes,
        warnings,
    )
