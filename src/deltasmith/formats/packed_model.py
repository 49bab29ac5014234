"""The fine-tuned model that a packed delta stands for: a checkpoint, and a column of the table."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.protocol import Array, Decoder, Words, read_any
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.packed import PackedDelta
from deltasmith.formats.rooms import Rooms
from deltasmith.formats.safetensors_reader import Identity, refuse_changed
from deltasmith.kernels.decode import decode
from deltasmith.kernels.encode import encode
from deltasmith.table.checkpoint import Checkpoint, Floats, SourceFile, Spec, raw_into

__all__ = ["PackedColumn", "PackedModel", "predict"]

_KEPT_DECODERS = 64


def predict(base: Checkpoint | None, name: str, spec: Spec, start: int, stop: int, rooms: Rooms) -> Words:
    """Return the base's elements [start, stop) as words of the fine-tuned tensor's type; zeros without a base.

    They lie in a buffer of the calling thread, which the next call overwrites.
    """
    out = rooms.take("predicted", (stop - start) * spec.dtype.itemsize, np.uint8)
    if base is None:
        out[:] = 0
    elif base.specs[name].dtype == spec.dtype:
        raw_into(base, name, start, out)
    else:
        values = rooms.take("to predict", stop - start)
        base.read(name, start, values)
        encode(spec.dtype.name, values, out)
    return out.view(f"u{spec.dtype.itemsize}")


class PackedModel:
    """The fine-tuned model that a packed delta stands for, as a checkpoint; its base is found when first needed."""

    def __init__(self, delta: PackedDelta, base: Callable[[], Checkpoint]) -> None:
        """Take the delta, and a call that yields the base it belongs to."""
        self.delta = delta
        self._find = base
        self._base: Checkpoint | None = None
        self._found: list[tuple[str, Identity]] = []
        self._decoders: OrderedDict[str, Decoder] = OrderedDict()
        self._lock = threading.RLock()
        self._rooms = Rooms()
        self.specs: Mapping[str, Spec] = {name: record.spec for name, record in delta.tensors.items()}

    @classmethod
    def over(cls, delta: PackedDelta, base: Checkpoint) -> PackedModel:
        """Return the model over this base, once it is known to be the base that was packed against.

        Raises:
            DamagedInputError: another base (its fingerprint differs).
        """
        delta.check_base(base)
        model = cls(delta, lambda: base)
        _ = model.base  # known from now on, and so one of its sources
        return model

    @property
    def base(self) -> Checkpoint:
        """Return the base, found and checked on first use."""
        with self._lock:
            if self._base is None:
                self._base = self._find()
                paths = [source.path for source in self._base.sources]
                self._found = [(path, Identity.of(Path(path).stat())) for path in paths]
            return self._base

    def check_unchanged(self) -> None:
        """Refuse if a file of the base is no longer as it was when the base was found."""
        for path, identity in self._found:
            refuse_changed(path, identity)

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the container, and the base's files once it is known."""
        return self.delta.packed.sources + (self._base.sources if self._base is not None else ())

    def holds_delta(self, name: str) -> bool:
        """Tell whether the arrays of a tensor stand for a delta, so that `read_delta` yields it without the base."""
        return name in self.specs and self.delta.codec(name).domain == "delta"

    def read_delta(self, name: str, start: int, out: Floats) -> None:
        """Decode elements [start, start + out.size) of the delta itself."""
        self._decode(name, start, out)

    def read(self, name: str, start: int, out: Floats) -> None:
        """Write elements [start, start + out.size) of the fine-tuned tensor: unrounded, where a delta is added."""
        domain = self.delta.codec(name).domain
        if domain == "stored":
            dtype = self.specs[name].dtype
            raw = self._rooms.take("words", out.size * dtype.itemsize, np.uint8)
            self.raw_into(name, start, raw)
            decode(dtype.name, raw, out)
            return
        self._decode(name, start, out)
        if domain == "delta":
            ground = self._rooms.take("base", out.size)
            self.base.read(name, start, ground)
            out += ground

    def raw(self, name: str, start: int, stop: int) -> bytes | memoryview:
        """Return the stored bytes of the fine-tuned tensor: exact, or base plus delta rounded to its type."""
        self._decoder(name)  # which knows whether there is such a tensor, before room is made for it
        out = np.empty((stop - start) * self.specs[name].dtype.itemsize, np.uint8)
        self.raw_into(name, start, out)
        return out.data

    def raw_into(self, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
        """Write what `raw` returns, from element `start` on, into 1-D `out`."""
        spec, rooms = self.specs[name], self._rooms
        if self.delta.codec(name).domain == "stored":
            base = self.base if self.delta.tensors[name].against_base else None
            words = out.view(f"u{spec.dtype.itemsize}")
            self._decode(name, start, words, lambda at, end: predict(base, name, spec, at, end, rooms))
            return
        values = rooms.take("values", out.size // spec.dtype.itemsize)
        self.read(name, start, values)
        if lost := encode(spec.dtype.name, values, out):
            raise RefusedError(
                f"{lost} or more values of {printable(name, 120)} do not fit {spec.dtype}",
                where=self.delta.where,
                fix="pack it again with a `--rule` that keeps this tensor losslessly",
            )

    def _decode(
        self, name: str, start: int, out: Array, ahead: Callable[[int, int], Words] | None = None
    ) -> None:
        try:
            read_any(self._decoder(name), self.specs[name].size, start, out, ahead)
        except ValueError as cause:
            raise self.delta.damaged(name, cause) from cause

    def _decoder(self, name: str) -> Decoder:
        with self._lock:
            if name not in self._decoders:
                self._decoders[name] = self.delta.decoder(name)
            self._decoders.move_to_end(name)
            while len(self._decoders) > _KEPT_DECODERS:  # each may hold arrays: not those of the whole model
                self._decoders.popitem(last=False)
            return self._decoders[name]


class PackedColumn:
    """A packed model as a column of the table: deltas where the arrays hold deltas, full values otherwise."""

    def __init__(self, model: PackedModel) -> None:
        """Take the bound model."""
        self.model = model
        self.specs = model.specs

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the container's file; the base is the table's own."""
        return self.model.delta.packed.sources

    def read(self, name: str, start: int, out: Floats) -> None:
        """Write elements [start, start + out.size): the delta, or the full values."""
        (self.model.read_delta if self.model.holds_delta(name) else self.model.read)(name, start, out)

    def raw(self, name: str, start: int, stop: int) -> bytes | memoryview:
        """Return the stored bytes of the fine-tuned tensor."""
        return self.model.raw(name, start, stop)

    def raw_into(self, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
        """Write the stored bytes of the fine-tuned tensor into `out`."""
        self.model.raw_into(name, start, out)
