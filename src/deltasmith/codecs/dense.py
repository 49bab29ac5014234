"""Dense: the stored words as they are, for tensors that nothing makes smaller and for those the base lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from deltasmith.codecs.protocol import (
    Array,
    Cell,
    Codec,
    Coded,
    Decoder,
    Domain,
    Encoder,
    Ending,
    Source,
    Stream,
    Words,
)
from deltasmith.table.checkpoint import Spec

__all__ = ["Dense"]

_BLOCK = 1 << 18
_BITS = {"float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}  # types that numpy lacks are held as their bits


class Dense(Codec):
    """Store every word as it is: no smaller, exact, of any element type, and readable without the base.

    One array, `values`, of the tensor's shape and element type (uint8 for the 8-bit floats).

    >>> from deltasmith.table.dtypes import DTYPES
    >>> cell = Cell(Spec("position_ids", (3,), DTYPES["int16"]))
    >>> Dense().encode(np.array([0, 1, 65535], np.uint16), cell)["values"].tolist()
    [0, 1, -1]
    """

    lossless: ClassVar[bool] = True

    @property
    def domain(self) -> Domain:
        """Code stored words."""
        return "stored"

    @property
    def bound(self) -> float:
        """Return 0: exact."""
        return 0.0

    def refusal(self, cell: Cell) -> str:
        """Refuse nothing."""
        return ""

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to code a tensor."""
        return _DenseEncoder(cell.spec)

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
class _DenseEncoder:
    spec: Spec

    @property
    def block(self) -> int:
        return _BLOCK

    @property
    def streams(self) -> Sequence[Stream]:
        return (Stream("values", _kind(self.spec), self.spec.shape),)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        return Coded({"values": values.tobytes()})

    def finish(self, tallies: Sequence[Any]) -> Ending:
        return Ending({})


@dataclass(frozen=True)
class _DenseDecoder:
    source: Source

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        stored = self.source.read("values", start, start + out.size)
        out[:] = np.ascontiguousarray(stored).view(out.dtype)
