"""Every tensor of a mixture's file, computed from base and experts one matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.engine.in_memory import Stored
from deltasmith.engine.progress import Progress
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, printable
from deltasmith.formats.hashing import ChunkHasher, hash_bytes
from deltasmith.formats.output import Output
from deltasmith.kernels.decode import decode
from deltasmith.kernels.encode import encode
from deltasmith.table.checkpoint import Floats, Spec
from deltasmith.upscaling.factors import Split, factors
from deltasmith.upscaling.inputs import Inputs, read
from deltasmith.upscaling.settings import DENSE, Settings

if TYPE_CHECKING:
    from deltasmith.upscaling.skeleton import Place

__all__ = ["Job", "check_stop"]

_BLOCK = 1 << 22  # elements that are copied at once


def check_stop(stop: Stop) -> None:
    """Raise InterruptedRunError if the caller wants no more."""
    if stop.asked:
        raise InterruptedRunError("interrupted", fix="run the same command again to resume")


@dataclass(frozen=True)
class Job:
    """Everything decided: which modules become mixtures, with which numbers, and how much of Σ δ the base takes.

    With a `shared_scale` λ above 0 the file's base is base + λ Σ δ, and the experts are what they differ from that.
    """

    inputs: Inputs
    settings: Settings
    shared_scale: float
    places: tuple[Place, ...]
    notes: tuple[str, ...]
    progress: Progress
    stop: Stop

    def added(self) -> Iterator[Spec]:
        """Yield the specs of the tensors that the base does not have."""
        for place in self.places:
            yield from self._added(place)

    def _added(self, place: Place) -> Iterator[Spec]:
        kind = self.inputs.specs[place.weight].dtype
        for name, shape in self._shapes(place).items():
            yield Spec(f"{place.stored}.{name}", shape, kind)

    def _shapes(self, place: Place) -> dict[str, tuple[int, ...]]:
        count, rank = len(self.settings.experts), self.settings.rank(place.rows, place.columns)
        shapes: dict[str, tuple[int, ...]] = {}
        if place.kind == "norm":
            shapes["smile_weight"] = (count, place.columns)
        elif place.kind == "linear":
            shapes["smile_gate"] = (count * self.settings.router_rank, place.columns)
        if place.kind != "norm" and rank == DENSE:
            shapes["smile_dense"] = (count * place.rows, place.columns)
        elif place.kind != "norm":
            shapes |= {"smile_svh": (count * rank, place.columns), "smile_u": (place.rows, count * rank)}
        if place.bias:
            shapes["smile_bias"] = (count, self.inputs.specs[place.bias_name].size)
        return shapes

    def write(self, output: Output, split: Split) -> None:
        """Write every tensor that an earlier run has not finished."""
        specs = self.inputs.specs
        self.progress.phase("copying", sum(spec.nbytes for spec in specs.values()))
        for name, spec in specs.items():
            if name not in output.finished:
                check_stop(self.stop)
                self._write_base(output, spec)
            self.progress.advance(spec.nbytes)
        self.progress.phase("factoring", sum(specs[place.weight].nbytes for place in self.places))
        for place in self.places:
            added = list(self._added(place))
            if any(spec.name not in output.finished for spec in added):
                check_stop(self.stop)
                self._write_place(output, place, added, split)
            self.progress.advance(specs[place.weight].nbytes)

    def shared_tensors(self) -> dict[str, Stored]:
        """Compute the shared expert whole, as it is written: it must fit into memory, since it is to be run."""
        found: dict[str, Stored] = {}
        for name, spec in self.inputs.specs.items():
            check_stop(self.stop)
            if self.shared_scale and spec.dtype.floating:
                data = memoryview(_encoded(self._shared(name, 0, spec.size), spec))
            else:
                data = memoryview(bytearray(self.inputs.checkpoint.raw(name, 0, spec.size)))
            found[name] = Stored(spec, data)
        return found

    def _write_base(self, output: Output, spec: Spec) -> None:
        hasher, item = ChunkHasher(spec.nbytes), spec.dtype.itemsize
        for start in range(0, spec.size, _BLOCK):
            stop = min(spec.size, start + _BLOCK)
            if self.shared_scale and spec.dtype.floating:
                data: Any = _encoded(self._shared(spec.name, start, stop), spec)
            else:
                data = memoryview(self.inputs.checkpoint.raw(spec.name, start, stop)).cast("B")
            output.write(spec.name, start * item, data)
            hasher.add(start * item, data)
        output.finish(spec.name, hasher.digest())

    def _shared(self, name: str, start: int, stop: int) -> Floats:
        """Return base + λ Σ δ, summed in the experts' order."""
        base = self.inputs.checkpoint
        total = np.zeros(stop - start, np.float32)
        for expert in self.inputs.experts:
            total += expert.delta(base, name, start, stop)
        return read(base, name, start, stop) + np.float32(self.shared_scale) * total

    def _offset(self, name: str) -> Floats | None:
        """Return how far the tensor as it is written, rounded, lies from the base's; None where it is the base's."""
        if not self.shared_scale:
            return None
        spec = self.inputs.specs[name]
        rounded = np.empty(spec.size, np.float32)
        decode(spec.dtype.name, _encoded(self._shared(name, 0, spec.size), spec), rounded)
        rounded -= read(self.inputs.checkpoint, name, 0, spec.size)
        return rounded

    def _deltas(self, name: str) -> Iterator[Floats]:
        """Yield what each expert differs in from the tensor as it is written."""
        offset, spec = self._offset(name), self.inputs.specs[name]
        for expert in self.inputs.experts:
            delta = expert.delta(self.inputs.checkpoint, name, 0, spec.size)
            if offset is not None:
                delta -= offset
            yield delta.reshape(spec.shape)

    def _write_place(self, output: Output, place: Place, added: Sequence[Spec], split: Split) -> None:
        arrays = self._arrays(place, split)
        if place.bias:
            arrays["smile_bias"] = np.stack(list(self._deltas(place.bias_name)))
        for spec in added:
            data = _encoded(arrays[spec.name.rpartition(".")[2]].reshape(-1), spec)
            output.write(spec.name, 0, data)
            output.finish(spec.name, hash_bytes(data))

    def _arrays(self, place: Place, split: Split) -> dict[str, Floats]:
        deltas = self._deltas(place.weight)
        if place.kind == "norm":
            return {"smile_weight": np.stack(list(deltas))}
        straight = (np.ascontiguousarray(delta.T) if place.transposed else delta for delta in deltas)
        try:
            return factors(straight, place.rows, place.columns, self.settings, split)
        except RefusedError as cause:
            where = cause.where or printable(place.weight)
            raise RefusedError(cause.what, where=where, fix=cause.fix) from cause

    def left_out(self) -> Mapping[str, list[str]]:
        """Return {label: tensors that the expert has changed and no mixture holds}; reads what it must."""
        held = {name for place in self.places for name in (place.weight, place.bias_name)}
        names = sorted(n for n, s in self.inputs.specs.items() if s.dtype.floating and n not in held)
        found: dict[str, list[str]] = {}
        for expert in self.inputs.experts:
            for name in names:
                check_stop(self.stop)
                if expert.changed(self.inputs.checkpoint, name) > 0:
                    found.setdefault(expert.label, []).append(name)
        return found


def _encoded(values: Floats, spec: Spec) -> Any:
    """Round to the stored type; RefusedError for what does not fit."""
    data = np.empty(values.size * spec.dtype.itemsize, np.uint8)
    if lost := encode(spec.dtype.name, np.ascontiguousarray(values), data):
        raise RefusedError(
            f"{lost} or more values are not finite, or do not fit {spec.dtype}",
            where=printable(spec.name),
            fix="use a base stored in bfloat16 or float32",
        )
    return data
