"""The codecs that a budget chooses from, and what each makes of one tensor: bytes and error, measured by coding it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deltasmith.codecs.catalogue import CodecLike, codec_from
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.engine.coding import CodingTask
from deltasmith.packing.budget import Option

__all__ = ["CANDIDATES", "candidates", "measure"]

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


def candidates(cell: Cell, among: Sequence[CodecLike] = CANDIDATES) -> list[Codec]:
    """Return those of the codecs that can code this tensor, in the order given.

    A codec of deltas needs a base of the tensor's shape.
    """
    codecs = map(codec_from, among)
    return [codec for codec in codecs if (codec.domain != "delta" or cell.base) and not codec.refusal(cell)]


def measure(task: CodingTask) -> Option:
    """Code one tensor, keep none of it, and return its bytes and its squared error.

    The bytes are those of all arrays and of what the container says of them (estimated). Memory: one block and the
    arrays that end the tensor. Raises what the codec raises.
    """
    encoder, name, size = task.encoder, task.name, task.cell.spec.size
    nbytes = 0
    tallies: list[Any] = []
    for start in range(0, size, encoder.block):
        block, predicted = task.values.read(start, min(size, start + encoder.block))
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
    return Option(task.codec, nbytes, ending.squared_error, ending.squared_norm)
