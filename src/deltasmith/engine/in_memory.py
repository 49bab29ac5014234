"""A sink that keeps finished bytes in memory instead of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from deltasmith.kernels.decode import decode
from deltasmith.table.checkpoint import Floats, Spec

__all__ = ["InMemory", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as a file would hold it: little-endian bytes, row-major."""

    spec: Spec
    data: memoryview

    def values(self) -> Floats:
        """Decode a floating tensor into float32, in its shape."""
        out = np.empty(self.spec.size, np.float32)
        decode(self.spec.dtype.name, np.frombuffer(self.data, np.uint8), out)
        return out.reshape(self.spec.shape)


class InMemory:
    """Take the bytes of every tensor; `finished` stays empty, because nothing outlives the run."""

    def __init__(self, specs: Iterable[Spec]) -> None:
        self._room = {spec.name: (spec, bytearray(spec.nbytes)) for spec in specs}

    @property
    def finished(self) -> dict[str, str]:
        """Return no tensor: there is no earlier run."""
        return {}

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Return the tensors by name."""
        return {name: Stored(spec, memoryview(room)) for name, (spec, room) in self._room.items()}

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Copy a piece of one tensor to its place."""
        self._room[name][1][offset : offset + len(data)] = data

    def finish(self, name: str, digest: str) -> None:
        """Hear that a tensor is whole."""
