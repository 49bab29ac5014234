"""Numbered text as a network reads it: pieces of at most one context, each a row. No text, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from deltasmith.features.study import HeldOut

__all__ = ["FIRST", "Pieces", "cut", "joined_pieces"]

FIRST = 1
"""The first analysed position of every piece: what stands at 0 is read, but its activations are not taken."""

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Hold n pieces of text, a row each.

    `ids` (n, context) int32 are token ids, filled up on the right; `lengths` (n,) counts those that are text, 2 at
    least. A piece begins with the beginning-of-sequence token, or where the tokenizer has none with the token before
    it (in the first piece of a document, with the document's first). That one is read, not analysed: in most models
    the first position, whatever stands there, has activations unlike all others.

    `domain`, `document` (within its domain) and `passage`, all (n,) int32, say where it comes from; `piece` numbers
    different pieces: rows with one number are repetitions of one text.
    """

    ids: Ints
    lengths: Ints
    domain: Ints
    document: Ints
    passage: Ints
    piece: Ints

    @property
    def context(self) -> int:
        """Return the tokens that a row has room for."""
        return int(self.ids.shape[1])

    @property
    def analysed(self) -> npt.NDArray[np.int64]:
        """Count the analysed tokens of each piece, (n,)."""
        return self.lengths.astype(np.int64) - FIRST

    @property
    def tokens(self) -> int:
        """Count the analysed tokens."""
        return int(self.analysed.sum())

    def taken(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> Pieces:
        """Return some rows, in the order asked for."""
        picked = np.asarray(rows, np.int64)
        return Pieces(*(getattr(self, field.name)[picked] for field in fields(self)))

    def of_tokens(self, per_piece: npt.NDArray[np.int32]) -> Ints:
        """Repeat a number of each piece, (n,), for each of its analysed tokens, (tokens,)."""
        return np.repeat(per_piece, self.analysed)

    def held_out(self) -> HeldOut:
        """Return the analysed tokens one after the other, as a study keeps them."""
        inside = np.arange(self.context)[None, :] < self.lengths[:, None]
        inside[:, :FIRST] = False
        numbers = np.arange(len(self.lengths), dtype=np.int32)
        return HeldOut(
            self.ids[inside],
            self.of_tokens(numbers),
            self.of_tokens(self.passage),
            self.of_tokens(self.domain),
        )


def cut(ids: npt.NDArray[np.int32], context: int, start: int | None) -> list[npt.NDArray[np.int32]]:
    """Cut a document's ids into pieces of at most `context`; every token is analysed once.

    `start` is the beginning-of-sequence token. Without one, a piece begins with the last token of the piece before,
    and the document's first token is not analysed.

    >>> [p.tolist() for p in cut(np.arange(5, dtype=np.int32), 3, 9)]
    [[9, 0, 1], [9, 2, 3], [9, 4]]
    >>> [p.tolist() for p in cut(np.arange(5, dtype=np.int32), 3, None)]
    [[0, 1, 2], [2, 3, 4]]
    """
    whole = ids if start is None else np.concatenate(([np.int32(start)], ids))
    edges = [*range(FIRST, len(whole), context - FIRST), len(whole)]
    found = [whole[first - FIRST : end].copy() for first, end in pairwise(edges)]
    if start is not None:
        for piece in found:
            piece[0] = start
    return found


def joined_pieces(parts: Sequence[Pieces]) -> Pieces:
    """Put pieces of one context one after the other; passages and piece numbers are counted on."""
    shifted = []
    passages = pieces = 0
    for part in parts:
        shifted.append(
            (part.ids, part.lengths, part.domain, part.document, part.passage + passages, part.piece + pieces)
        )
        passages += int(part.passage.max(initial=-1)) + 1
        pieces += int(part.piece.max(initial=-1)) + 1
    return Pieces(*(np.concatenate(columns).astype(np.int32) for columns in zip(*shifted, strict=True)))
