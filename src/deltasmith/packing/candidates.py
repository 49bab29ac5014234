"""The codecs that a budget chooses from, and what each makes of one tensor: bytes and error, measured by coding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Array, Cell, Codec, Domain, Words
from deltasmith.packing.budget import Option

__all__ = ["CANDIDATES", "Read", "candidates", "measure"]

Read = Callable[[int, int], tuple[Array, Words | None]]
"""Elements [start, stop) of a tensor as a codec's domain asks for them."""

CANDIDATES: Sequence[str] = (
    "zero",
    "bitdelta",
    "residual_bits:passes=2",
    "residual_bits:passes=3",
    "residual_bits:passes=4",
    "magnitude_blocks:blocks=2",
    "magnitude_blocks:blocks=4",
    "magnitude_blocks:blocks=8",
    "magnitude_blocks:blocks=16",
    "low_rank:rank=4",
    "low_rank:rank=16",
    "low_rank:rank=64",
    "claq:bits=2",
    "claq:bits=2.12",
    "claq:bits=2.5",
    "claq:bits=3",
    "claq:bits=3.12",
    "claq:bits=4",
    "sparse",
    "lossless",
    "dense",
)

_PER_TENSOR, _PER_ARRAY = 190, 150
"""Bytes that the container's document and header spend on a tensor and on an array, names aside."""


def candidates(cell: Cell, among: Sequence[str | Codec] = CANDIDATES) -> list[Codec]:
    """Return those of the codecs that can code this tensor, in the order given.

    A codec of deltas needs a base of the tensor's shape.
    """
    codecs = (codec if isinstance(codec, Codec) else codec_from(codec) for codec in among)
    return [codec for codec in codecs if (codec.domain != "delta" or cell.base) and not codec.refusal(cell)]


def measure(codec: Codec, cell: Cell, read: Callable[[Domain], Read]) -> Option:
    """Code one tensor, keep none of it, and return its bytes and its squared error.

    `read(domain)` yields the tensor's values as the codec's domain asks for them, block by block. The bytes are those
    of all arrays and of what the container says of them (estimated; a little too high). Memory: one block and the
    arrays that end the tensor. Raises what the codec raises.
    """
    encoder, values = codec.encoder(cell), read(codec.domain)
    name, size = cell.spec.name, cell.spec.size
    nbytes = 0
    tallies: list[Any] = []
    for start in range(0, size, encoder.block):
        block, predicted = values(start, min(size, start + encoder.block))
        coded = encoder.encode(start, block, predicted)
        nbytes += sum(
            part.nbytes if isinstance(part, memoryview | np.ndarray) else len(part)
            for part in coded.parts.values()
        )
        tallies.append(coded.tally)
    ending = encoder.finish(tallies)
    nbytes += sum(array.nbytes for array in ending.arrays.values())
    labels = [*(stream.name for stream in encoder.streams), *ending.arrays]
    # An array's name (tensor and label) stands in the header, the record and the list of hashes.
    nbytes += _PER_TENSOR + len(name) + sum(_PER_ARRAY + 3 * (len(name) + len(label)) for label in labels)
    return Option(codec, nbytes, ending.squared_error, ending.squared_norm)
