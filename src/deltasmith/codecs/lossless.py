"""Lossless: the stored words, to the bit, as compressed distances from the base's.

Layout. `index`: uint32, the bytes of each block of 2^18 elements (the last may be shorter). `stream`: uint8, the
blocks one after the other, each a block of `word_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.block_index import block_ends
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
from deltasmith.codecs.word_blocks import WordBlocks

__all__ = ["BLOCK", "Lossless"]

BLOCK = 1 << 18
"""The elements of one block: what has to be decoded to read any element of it."""


class Lossless(StoredCodec):
    """Store every word exactly, as its distance from the base's in units in the last place, compressed.

    Any element type; integers by plain difference. NaN payloads and the sign of zero survive. Blocks that equal the
    base's take four bytes. The smaller the change, the smaller the result: of the 16 bits of bfloat16, 0.1 remain
    where one element in a hundred moved by one unit, 5.5 to 9.2 of the fine-tunes measured in
    benchmarks/exact_codecs.py, 11 without a base. Reading needs the base's words of whole blocks of 2^18 elements,
    and is limited to them: `protocol.read_any` widens a range and cuts it again.

    Planes of bytes by significance before an entropy coder are those of ZipNN (Hershcovitch et al. 2024, arXiv
    2411.05239), which knows no base; here one byte is compressed, and what lies below it is noise and packed.

    >>> from deltasmith.table.checkpoint import Spec
    >>> from deltasmith.table.dtypes import DTYPES
    >>> base = np.full(1000, 0x3F80, np.uint16)
    >>> cell = Cell(Spec("w", (1000,), DTYPES["bfloat16"]))
    >>> arrays = Lossless().encode(base + np.arange(1000, dtype=np.uint16) % 2, cell, base)
    >>> arrays["stream"].size < 100, Lossless().decode(arrays, cell, base)[:3].tolist()
    (True, [16256, 16257, 16256])
    """

    def workspace(self, cell: Cell) -> int:
        """Return the scratch of one thread: words thrice, tokens, bits, compressed bytes; of 8 bytes, the widest."""
        return 5 * 8 * BLOCK

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to code a tensor."""
        return _LosslessEncoder(WordBlocks.of(cell.spec.dtype))

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode; ValueError if the index does not fit the tensor or the stream."""
        ends = block_ends(source, cell.spec.size, BLOCK)
        return _LosslessDecoder(WordBlocks.of(cell.spec.dtype), cell.spec.size, source, ends)


@dataclass(frozen=True)
class _LosslessEncoder:
    blocks: WordBlocks

    @property
    def block(self) -> int:
        return BLOCK

    @property
    def streams(self) -> Sequence[Stream]:
        return (Stream("stream", "uint8"),)

    def encode(self, start: int, values: Array, predicted: Words | None = None) -> Coded:
        data = self.blocks.encode(values, np.zeros_like(values) if predicted is None else predicted)
        return Coded({"stream": data}, len(data))

    def finish(self, tallies: Sequence[Any]) -> Ending:
        return Ending({"index": np.array(tallies, "<u4")})


@dataclass(frozen=True)
class _LosslessDecoder:
    blocks: WordBlocks
    size: int
    source: Source
    ends: npt.NDArray[np.int64]

    @property
    def grain(self) -> int:
        """Reads begin at a multiple of so many elements, and end at one or at the tensor's end."""
        return BLOCK

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        stop = start + out.size
        if start % BLOCK or (stop % BLOCK and stop != self.size):
            raise ValueError(f"elements {start} to {stop} are not whole blocks of {BLOCK}")
        for at in range(0, out.size, BLOCK):
            piece = out[at : at + BLOCK]
            ahead = np.zeros_like(piece) if predicted is None else predicted[at : at + BLOCK]
            block = (start + at) // BLOCK
            try:
                self._read_block(block, piece, ahead)
            except ValueError as error:
                raise ValueError(f"block {block}: {error}") from error

    def _read_block(self, block: int, out: Words, ahead: Words) -> None:
        start, stop = int(self.ends[block]), int(self.ends[block + 1])
        if start == stop:
            out[:] = ahead
        else:
            self.blocks.decode(self.source.read("stream", start, stop), out, ahead)
