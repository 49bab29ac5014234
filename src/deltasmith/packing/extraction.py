"""Extracting a PEFT adapter from a fine-tuned model: each matrix's delta becomes two factors.

What factors cannot hold and has changed is saved whole, where PEFT can hold it; what it cannot hold is refused by
name. Nothing is left out in silence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith import __version__
from deltasmith.api import available_threads
from deltasmith.engine.coding import code
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError
from deltasmith.formats.adapter import WEIGHTS
from deltasmith.formats.adapter_writer import AdapterOutput, Origin, PairWritten
from deltasmith.formats.array_file import Entry
from deltasmith.formats.manifest import Lineage, Manifest, TensorRecord
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.publish import side_files
from deltasmith.packing.extraction_plan import Extraction, Wish
from deltasmith.packing.material import gather
from deltasmith.packing.records import hash_files
from deltasmith.packing.writing import Resources, open_base
from deltasmith.recipe.publication import input_record
from deltasmith.table.dtypes import BY_CODE
from deltasmith.table.names import projection_of

__all__ = ["ExtractResult", "KindRow", "Wish", "adapter_manifest", "extract_lora"]


@dataclass(frozen=True)
class KindRow:
    """The tensors of one kind: how many, their ranks, Σδ² and Σ(δ − δ̂)²."""

    kind: str
    tensors: int
    ranks: tuple[int, int]
    squared_norm: float
    squared_error: float

    @property
    def relative_error(self) -> float:
        """Return ‖δ − δ̂‖ / ‖δ‖ over all tensors of the kind; 0 where nothing changed."""
        return (self.squared_error / self.squared_norm) ** 0.5 if self.squared_norm else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "kind": self.kind,
            "tensors": self.tensors,
            "ranks": list(self.ranks),
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True)
class ExtractResult:
    """What was extracted: every pair of factors, what was saved whole, what was left out on demand."""

    out: str
    pairs: Mapping[str, PairWritten]
    whole: tuple[str, ...]
    dropped: tuple[str, ...]
    nbytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float:
        """Return ‖δ − δ̂‖ / ‖δ‖ over all tensors in factors."""
        return _row("", list(self.pairs.values())).relative_error

    def kinds(self) -> list[KindRow]:
        """Return one row for every kind of tensor: all `up_proj` of all layers are one kind."""
        groups: dict[str, list[PairWritten]] = {}
        for name, pair in self.pairs.items():
            groups.setdefault(projection_of(name), []).append(pair)
        return [_row(kind, group) for kind, group in groups.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data, tensor by tensor."""
        tensors = {
            name: {"rank": p.rank, "relative_error": _row("", [p]).relative_error}
            for name, p in self.pairs.items()
        }
        return {
            "out": self.out,
            "bytes": self.nbytes,
            "seconds": self.seconds,
            "relative_error": self.relative_error,
            "kinds": [row.as_json() for row in self.kinds()],
            "tensors": tensors,
            "whole": list(self.whole),
            "dropped": list(self.dropped),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def _row(kind: str, pairs: Sequence[PairWritten]) -> KindRow:
    ranks = [p.rank for p in pairs] or [0]
    norm, error = sum(p.squared_norm for p in pairs), sum(p.squared_error for p in pairs)
    return KindRow(kind, len(pairs), (min(ranks), max(ranks)), norm, error)


def extract_lora(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    wish: Wish | None = None,
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> ExtractResult:
    """Write the PEFT adapter that takes `base` nearest to `model`: truncated singular values of each matrix's delta.

    `model` is a folder, a file, a hub id, a packed delta, an adapter, or a recipe (*.yaml). Linear layers, GPT-2's
    Conv1D and convolutions become factors; embeddings and heads too with `embed_lora`. What else has changed is saved
    whole: modules in `modules_to_save`, biases of linear layers in their place (`bias: all`). Tensors that did not
    change take no bytes. A head tied to the embedding comes once. The bytes depend on inputs and wish alone.

    A recipe that only sums adapters is merged in factor space: see `factors.merge_adapters`.

    Raises:
        RefusedError: a vocabulary of another size or order, tensors that PEFT cannot hold and `drop` does not name
            (all listed), a model that does not differ, and what writing to `out` refuses.
        RecipeError: wishes that make no sense, a glob that matches nothing. ResourceError: a matrix does not fit
            `memory`. DamagedInputError: as `open_model`.
    """
    resources = Resources(threads or available_threads(), memory, progress or Silent(), stop or Stop())
    ground = open_base(str(base))
    material = gather(ground, str(model), Path(str(model)).stem or "model", resources.threads, resources.stop)
    job = Extraction(ground, material, wish or Wish())
    job.refuse_strangers()
    job.decide(resources.progress)
    return _write(job, Path(out), resources, overwrite)


def _write(job: Extraction, out: Path, resources: Resources, overwrite: bool) -> ExtractResult:
    """Decompose every matrix, copy what is kept whole, and publish the adapter."""
    began, stop = time.perf_counter(), resources.stop
    models = [("base", job.base), *job.material.opened]
    with (
        ThreadPoolExecutor(max_workers=1) as background,
        AdapterOutput.open(
            out, job.key, job.modules, job.arrangement, inputs=job.inputs, overwrite=overwrite
        ) as output,
    ):
        digests = background.submit(hash_files, models, stop)
        try:
            code(
                job.tasks(),
                output,
                threads=resources.threads,
                memory=resources.memory,
                stop=stop,
                progress=resources.progress,
            )
        except BaseException:
            stop.ask()  # nobody will want the hashes
            raise
        resources.progress.phase("checking the inputs", 0)
        hashes = digests.result()
        if stop.asked:  # some inputs may have no hash
            raise InterruptedRunError("interrupted", fix="run the same command again")
        for _, opened in models:
            opened.check_unchanged()
        late = output.publish(
            Origin(job.base.name, job.base.revision),
            side_files(None, job.material.folder).files,
            lambda entries: adapter_manifest(models, hashes, entries, "extract-lora", job.told),
        )
    whole = (*job.arrangement.whole, *job.arrangement.biases)
    seconds = time.perf_counter() - began
    warnings = (*job.material.warnings, *late)
    return ExtractResult(
        str(out), output.pairs, whole, job.dropped, output.nbytes, seconds, job.notes, warnings
    )


def adapter_manifest(
    models: Sequence[tuple[str, OpenedModel]],
    hashes: Mapping[str, Mapping[str, str]],
    entries: Sequence[Entry],
    kind: str,
    told: Mapping[str, Any],
) -> bytes:
    """Write down what an adapter was made from, and the hash of every tensor in it: `verify` checks them."""
    inputs = [input_record(label, model.name, model, hashes.get(label, {})) for label, model in models]
    tensors = {
        e.name: TensorRecord(BY_CODE[e.code].name, e.shape, WEIGHTS, e.xxh3_128, "packed") for e in entries
    }
    parents = tuple(label for label, _ in models if label != "base")
    return Manifest(
        __version__, {kind: dict(told)}, 0, inputs, Lineage("base", parents, kind), tensors
    ).encode()
