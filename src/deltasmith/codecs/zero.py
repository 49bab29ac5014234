"""Keep nothing: the tensor stays as it is in the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltasmith.codecs.protocol import (
    Array,
    Cell,
    Codec,
    Coded,
    Decoder,
    Encoder,
    Ending,
    Source,
    Stream,
    Words,
)

__all__ = ["Zero"]

_BLOCK = 1 << 16


class Zero(Codec):
    """Replace the delta by zeros; no array is stored.

    What a budget chooses for a tensor whose change is not worth a byte. The relative error is 1.

    >>> import numpy as np
    >>> from deltasmith.table.checkpoint import Spec
    >>> from deltasmith.table.dtypes import DTYPES
    >>> cell = Cell(Spec("w", (2,), DTYPES["float32"]))
    >>> Zero().decode(Zero().encode(np.ones(2, np.float32), cell), cell).tolist()
    [0.0, 0.0]
    """

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to measure what is thrown away."""
        return _Encoder()

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to yield zeros; ValueError if there is an array."""
        if source.specs:
            raise ValueError("there are arrays where none belong")
        return _Decoder()


@dataclass(frozen=True)
class _Encoder:
    @property
    def block(self) -> int:
        return _BLOCK

    @property
    def streams(self) -> Sequence[Stream]:
        return ()

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        wide = values.astype(np.float64)
        return Coded({}, float(wide @ wide))

    def finish(self, tallies: Sequence[Any]) -> Ending:
        lost = float(sum(tallies))
        return Ending({}, lost, lost)


@dataclass(frozen=True)
class _Decoder:
    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        out[:] = 0
