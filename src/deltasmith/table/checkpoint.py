"""What a checkpoint is: a lazy, read-only mapping from tensor names to shapes for free and values on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltasmith.table.dtypes import DTYPES, DType

__all__ = ["Checkpoint", "DictCheckpoint", "Floats", "SourceFile", "Spec", "raw_into", "read_difference"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Spec:
    """The name, shape and element type of one cell: all that a header tells."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        """Count the elements (1 for a scalar, 0 where a dimension is 0)."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Count the bytes of the stored tensor."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a checkpoint reads from: `name` is what the manifest calls it, `path` where it lies."""

    name: str
    path: str
    nbytes: int


class Checkpoint(Protocol):
    """Anything that knows the specs of its cells and yields their values piece by piece.

    Implementations must allow `read` and `raw` from several threads at once. One that can subtract while it decodes
    may have `read_difference(name, start, base, out)`: the same as `read` and a subtraction of `base`. One that can
    write stored bytes where they are wanted may have `raw_into(name, start, out)`; `raw_into` below asks for it.
    """

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Map every tensor name to its spec, without touching values."""

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the files this checkpoint reads, for the manifest."""

    def read(self, name: str, start: int, out: Floats) -> None:
        """Decode elements [start, start + out.size) of a floating tensor, row-major, into float32 `out` (1-D)."""

    def raw(self, name: str, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Return the stored little-endian bytes of elements [start, stop), undecoded (any element type)."""


def read_difference(checkpoint: Checkpoint, name: str, start: int, base: Floats, out: Floats) -> None:
    """Fill 1-D `out` with the values from element `start` on, less `base`: in one go where the checkpoint can."""
    read = getattr(checkpoint, "read_difference", None)
    if read is not None:
        read(name, start, base, out)
    else:
        checkpoint.read(name, start, out)
        np.subtract(out, base, out=out)


def raw_into(checkpoint: Checkpoint, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
    """Write the stored bytes from element `start` on into 1-D `out`, whole elements, as `raw` returns them.

    >>> out = np.empty(4, np.uint8)
    >>> raw_into(DictCheckpoint({"w": np.array([1.0, 2.0], np.float32)}), "w", 1, out)
    >>> out.view(np.float32).tolist()
    [2.0]
    """
    write = getattr(checkpoint, "raw_into", None)
    if write is not None:
        write(name, start, out)
        return
    stop = start + out.size // checkpoint.specs[name].dtype.itemsize
    out[:] = np.frombuffer(checkpoint.raw(name, start, stop), np.uint8)


@dataclass(frozen=True)
class DictCheckpoint:
    """A checkpoint over arrays that are already in memory; float32 unless an array is of an integer type."""

    arrays: Mapping[str, npt.NDArray[np.generic]]
    specs: dict[str, Spec] = field(init=False)
    sources: tuple[SourceFile, ...] = ()

    def __post_init__(self) -> None:
        """Read the specs off the arrays."""
        specs = {n: Spec(n, tuple(a.shape), DTYPES[a.dtype.name]) for n, a in self.arrays.items()}
        object.__setattr__(self, "specs", specs)

    def read(self, name: str, start: int, out: Floats) -> None:
        """Copy elements [start, start + out.size) into `out` as float32."""
        out[:] = self.arrays[name].reshape(-1)[start : start + out.size]

    def raw(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of elements [start, stop)."""
        return np.ascontiguousarray(self.arrays[name].reshape(-1)[start:stop]).tobytes()
