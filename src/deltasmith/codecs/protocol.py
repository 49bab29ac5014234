"""What a codec is: one tensor of a fine-tuned model ↔ named arrays, smaller than the tensor.

A codec says in `domain` what it codes:

- `delta`: float32 fine-tuned minus base. Decoding yields a delta, which is added to the base's values.
- `weight`: the float32 fine-tuned values themselves. Decoding needs no base.
- `stored`: the fine-tuned tensor's stored words, given a prediction of each word (the base's value in the
  fine-tuned tensor's element type; zeros where the base lacks the tensor). Decoding is exact to the bit.

Whoever packs feeds an `Encoder` the tensor block by block, in any order and from several threads, appends what
each block became in block order, and asks for the arrays that only the end can know. Whoever unpacks asks a
`Decoder` for any range of elements, from any thread. `encode` and `decode` are the same for a whole tensor in
memory: the definition that the streaming path must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from deltasmith.operation.record import Record
from deltasmith.table.checkpoint import Floats, Spec
from deltasmith.table.dtypes import DTYPES

__all__ = [
    "Array",
    "Arrays",
    "Cell",
    "Codec",
    "Coded",
    "Decoder",
    "Domain",
    "Encoder",
    "Ending",
    "Held",
    "Source",
    "StoredCodec",
    "Stream",
    "WholeCodec",
    "Words",
    "numpy_type",
    "read_any",
]

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Words = npt.NDArray[Any]
"""Stored elements as unsigned integers of the element's width (uint8, uint16, uint32 or uint64)."""
Domain = Literal["delta", "weight", "stored"]


@dataclass(frozen=True, slots=True)
class Cell:
    """The tensor to be coded, as headers tell it.

    `spec` is the fine-tuned tensor's; `base` the base's of that name, None where the base has none. `key` seeds
    the random bits of this cell. `gram` yields the (in, in) float32 Gram matrix of the layer's inputs, for codecs
    that weigh errors by it; None where no statistics were given.
    """

    spec: Spec
    base: Spec | None = None
    key: int = 0
    gram: Callable[[], Floats] | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """An array that grows block by block: its numpy type and shape; shape None where the end alone tells its length.

    An encoder has at most one stream of unknown length, and lists it last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Coded:
    """What one block became: the next bytes of each stream, and whatever `finish` wants to know of the block."""

    parts: Mapping[str, bytes | bytearray | memoryview | Array] = field(default_factory=dict)
    tally: Any = None


@dataclass(frozen=True, slots=True)
class Ending:
    """The arrays that need the whole tensor, and how far decoding lands from the tensor: Σδ² and Σ(δ − δ̂)²."""

    arrays: Arrays
    squared_norm: float = 0.0
    squared_error: float = 0.0


class Encoder(Protocol):
    """Turns one tensor into arrays, block by block. `encode` may be called from several threads."""

    @property
    def block(self) -> int:
        """Count the elements of one block; the last block of a tensor may be shorter."""

    @property
    def streams(self) -> Sequence[Stream]:
        """List the arrays that blocks add to, in the order in which they are stored."""

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        """Code the block that begins at element `start`.

        `values`: 1-D float32 delta or weights, or for the domain `stored` the words, with `predicted` beside them.
        The arrays belong to the caller and are overwritten after the call.
        """

    def finish(self, tallies: Sequence[Any]) -> Ending:
        """Close the tensor; `tallies` are those of all blocks, in block order."""


class Source(Protocol):
    """The stored arrays of one packed tensor. May be used from several threads."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Map array names to specs."""

    def read(self, name: str, start: int, stop: int) -> Array:
        """Return elements [start, stop) of an array, 1-D, in its stored type (bfloat16 as ml_dtypes.bfloat16)."""

    def whole(self, name: str) -> Array:
        """Return a whole array in its shape; kept in memory for a while, and not to be written to."""


class Decoder(Protocol):
    """Turns arrays back into any range of one tensor. May be used from several threads.

    One that needs the predictions of whole blocks has a `grain`: its reads begin at a multiple of so many elements
    and end at one or at the tensor's end. `read_any` reads any range from any decoder.
    """

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        """Write elements [start, start + out.size) into 1-D `out`: float32, or words for the domain `stored`.

        Raises ValueError if the arrays do not describe such a tensor (the caller knows their names and says so).
        """


def read_any(
    decoder: Decoder, size: int, start: int, out: Array, predict: Callable[[int, int], Words] | None = None
) -> None:
    """Write elements [start, start + out.size) of a tensor of `size` elements, widened to the decoder's grain.

    `predict(start, stop)` yields the predictions of a range; None where the domain needs none.
    """
    grain, stop = int(getattr(decoder, "grain", 1)), start + out.size
    first, last = start - start % grain, min(size, -(-stop // grain) * grain)
    if start == stop:
        return
    room = out if (first, last) == (start, stop) else np.empty(last - first, out.dtype)
    decoder.read(first, room, None if predict is None else predict(first, last))
    if room is not out:
        out[:] = room[start - first : stop - first]


class Codec(Record):
    """One tensor ↔ named arrays. Subclasses define `encoder` and `decoder`, or are a `WholeCodec`.

    `workspace(cell)` is the bytes that coding one block of such a tensor takes beyond its values.
    """

    @property
    def domain(self) -> Domain:
        """Say what is coded."""
        return "delta"

    @property
    def bound(self) -> float:
        """Return a bound on ‖δ − δ̂‖ / ‖δ‖ that holds for every tensor; 0 is exact.

        A bound of 1 means: never further from the fine-tuned model than the base is.
        """
        return 1.0

    def refusal(self, cell: Cell) -> str:
        """Say why this codec cannot code such a tensor, in a few words; empty if it can."""
        return "" if cell.spec.dtype.floating else f"its elements are {cell.spec.dtype}"

    def workspace(self, cell: Cell) -> int:
        """Return the bytes that coding one block takes beyond its values."""
        return 0

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to code a tensor."""
        raise NotImplementedError

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode a tensor; ValueError if the arrays cannot be those of such a tensor."""
        raise NotImplementedError

    def encode(self, values: Array, cell: Cell, predicted: Words | None = None) -> dict[str, Array]:
        """Code a whole tensor in memory; the arrays are those that streaming stores."""
        encoder, flat = self.encoder(cell), values.reshape(-1)
        ahead = None if predicted is None else predicted.reshape(-1)
        coded = []
        for start in range(0, flat.size, encoder.block):
            stop = start + encoder.block
            coded.append(
                encoder.encode(start, flat[start:stop], None if ahead is None else ahead[start:stop])
            )
        arrays = {s.name: _joined(s, [c.parts[s.name] for c in coded]) for s in encoder.streams}
        return arrays | dict(encoder.finish([c.tally for c in coded]).arrays)

    def decode(self, arrays: Arrays, cell: Cell, predicted: Words | None = None) -> Array:
        """Return the whole tensor that the arrays stand for, in its shape."""
        kind = f"u{cell.spec.dtype.itemsize}" if self.domain == "stored" else "f4"
        out = np.empty(cell.spec.size, kind)
        self.decoder(cell, Held(arrays)).read(0, out, None if predicted is None else predicted.reshape(-1))
        return out.reshape(cell.spec.shape)


def _joined(stream: Stream, parts: Sequence[Any]) -> Array:
    pieces = [p.tobytes() if isinstance(p, np.ndarray) else bytes(p) for p in parts]
    array: Array = np.frombuffer(b"".join(pieces), numpy_type(stream.dtype))
    return array if stream.shape is None else array.reshape(stream.shape)


class StoredCodec(Codec):
    """A codec of stored words: it takes every element type, and decodes to the bit."""

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


def numpy_type(name: str) -> np.dtype[Any]:
    """Return the numpy type of an array's element type, bfloat16 included.

    >>> numpy_type("uint8").itemsize, numpy_type("bfloat16").itemsize
    (1, 2)
    """
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


@dataclass(frozen=True)
class Held:
    """Arrays in memory as a `Source`."""

    arrays: Arrays

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Map array names to specs."""
        return {n: Spec(n, tuple(a.shape), DTYPES[a.dtype.name]) for n, a in self.arrays.items()}

    def read(self, name: str, start: int, stop: int) -> Array:
        """Return elements [start, stop)."""
        return self.arrays[name].reshape(-1)[start:stop]

    def whole(self, name: str) -> Array:
        """Return the array."""
        return self.arrays[name]


class WholeCodec(Codec):
    """A codec that needs the whole tensor: subclasses define `encode` and `decode_range`, no more.

    One block is the tensor. Decoding holds the tensor's arrays (not its values) in memory.
    """

    def encoder(self, cell: Cell) -> Encoder:
        """Wrap `encode`."""
        return _WholeEncoder(self, cell)

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Wrap `decode_range`."""
        return _WholeDecoder(self, cell, source)

    def encode(self, values: Array, cell: Cell, predicted: Words | None = None) -> dict[str, Array]:
        """Code a whole tensor; `values` has its shape."""
        raise NotImplementedError

    def decode_range(self, arrays: Arrays, cell: Cell, start: int, out: Floats) -> None:
        """Write elements [start, start + out.size), row-major, into 1-D `out`; ValueError for impossible arrays."""
        raise NotImplementedError


_PIECE = 1 << 18


@dataclass(frozen=True)
class _WholeEncoder:
    codec: WholeCodec
    cell: Cell

    @property
    def block(self) -> int:
        return max(1, self.cell.spec.size)

    @property
    def streams(self) -> Sequence[Stream]:
        return ()

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        arrays = self.codec.encode(values.reshape(self.cell.spec.shape), self.cell)
        norm = error = 0.0
        for at in range(0, values.size, _PIECE):
            piece = values[at : at + _PIECE].astype(np.float64)
            near = np.empty(piece.size, np.float32)
            self.codec.decode_range(arrays, self.cell, at, near)
            norm += float(piece @ piece)
            piece -= near
            error += float(piece @ piece)
        return Coded({}, Ending(arrays, norm, error))

    def finish(self, tallies: Sequence[Any]) -> Ending:
        if tallies:
            ending: Ending = tallies[0]
            return ending
        return Ending(self.codec.encode(np.empty(self.cell.spec.shape, np.float32), self.cell))


@dataclass(frozen=True)
class _WholeDecoder:
    codec: WholeCodec
    cell: Cell
    source: Source

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        arrays = {name: self.source.whole(name) for name in self.source.specs}
        self.codec.decode_range(arrays, self.cell, start, out)
