"""Dense: the stored words as they are, for tensors that nothing makes smaller and for those the base lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltasmith.codecs.protocol import (
    Array,
    Cell,
    Coded,
    Decoder,
    Encoder,
    Ending,
    Source,
    StoredCodec,
    Stream,
    Words,
)
from deltasmith.table.checkpoint import Spec

__all__ = ["Dense", "DenseEncoder"]

_BLOCK = 1 << 18
_BITS = {"float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}  # types that numpy lacks are held as their bits


class Dense(StoredCodec):
    """Store every word as it is: no smaller, exact, of any element type, and readable without the base.

    One array, `values`, of the tensor's shape and element type (uint8 for the 8-bit floats).

    >>> from deltasmith.table.dtypes import DTYPES
    >>> cell = Cell(Spec("position_ids", (3,), DTYPES["int16"]))
    >>> Dense().encode(np.array([0, 1, 65535], np.uint16), cell)["values"].tolist()
    [0, 1, -1]
    """

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to code a tensor."""
        return DenseEncoder(cell.spec, _kind(cell.spec))

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode; ValueError if there is no array of the tensor's size and type."""
        found = source.specs.get("values")
        kind = _kind(cell.spec)
        if found is None or found.size != cell.spec.size or found.dtype.name != kind:
            raise ValueError(f"values is not an array of {cell.spec.size} elements of {kind}")
        return _DenseDecoder(source)


def _kind(spec: Spec) -> str:
    return _BITS.get(spec.dtype.name, spec.dtype.name)


@dataclass(frozen=True)
class DenseEncoder:
    """Copies stored words into the array `values` of the element type `kind`."""

    spec: Spec
    kind: str

    @property
    def block(self) -> int:
        """Count the elements of one block."""
        return _BLOCK

    @property
    def streams(self) -> Sequence[Stream]:
        """List the one array."""
        return (Stream("values", self.kind, self.spec.shape),)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        """Copy a block."""
        return Coded({"values": values.tobytes()})

    def finish(self, tallies: Sequence[Any]) -> Ending:
        """Add nothing."""
        return Ending({})


@dataclass(frozen=True)
class _DenseDecoder:
    source: Source

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        stored = self.source.read("values", start, start + out.size)
        out[:] = np.ascontiguousarray(stored).view(out.dtype)
