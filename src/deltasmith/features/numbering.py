"""The documents of one corpus as token ids, cut into pieces and passages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltasmith.analysis.tokenizing import TextTokenizer
from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.features.documents import Document, Texts
from deltasmith.features.pieces import Pieces, cut
from deltasmith.kernels.bits import uniform_bits
from deltasmith.operation.randomness import cell_key

__all__ = ["Numbered", "number"]

_CHUNK = 1 << 18
"""Characters that are numbered at once: a longer text is cut behind a line end (if there is one), where few tokens
reach across. Tokenizers take memory many times the text."""
_UNKNOWN = 0.01


@dataclass(frozen=True, eq=False)
class Numbered:
    """One corpus as `pieces` (of domain 0), in the order of documents; `documents` counts those read.

    `passages` names each passage that the pieces count: its document, and which of that document's it is.
    """

    name: str
    source: str
    sha256: str
    pieces: Pieces
    passages: tuple[tuple[int, int], ...]
    documents: int
    notes: tuple[str, ...]


def number(
    name: str,
    texts: Texts,
    tokenizer: TextTokenizer,
    *,
    context: int,
    passage: int,
    enough: int | None,
    seed: int,
) -> Numbered:
    """Number documents and cut them into pieces of at most `context` tokens, `passage` of which make a passage.

    With `enough`, documents are taken in an order hashed from `seed` until there are that many analysed tokens.

    Raises:
        DamagedInputError: a document cannot be numbered, or none has a token to analyse. RefusedError: a token lies
        outside the network's vocabulary.
    """
    rows: list[npt.NDArray[np.int32]] = []
    origin: list[tuple[int, int]] = []
    unknown = tokens = read = 0
    for at in _order(name, len(texts.documents), enough, seed):
        if enough is not None and tokens >= enough:
            break
        ids = _ids(texts.documents[at], tokenizer)
        unknown += 0 if tokenizer.unknown is None else int((ids == tokenizer.unknown).sum())
        found = cut(ids, context, tokenizer.start)
        rows += found
        origin += [(at, index // passage) for index in range(len(found))]
        tokens += sum(len(piece) - 1 for piece in found)
        read += 1
    if not rows:
        raise DamagedInputError(
            f"the corpus {name!r} has no token to analyse",
            where=printable(texts.source),
            fix="give longer texts",
        )
    notes = [*texts.notes]
    if read < len(texts.documents):
        notes.append(
            f"{name}: {read:,} of {len(texts.documents):,} documents are enough, and no more were read"
        )
    if unknown > _UNKNOWN * tokens:
        notes.append(f"{name}: {unknown / tokens:.1%} of the tokens are unknown to the tokenizer")
    in_order = sorted(
        range(len(rows)), key=lambda row: origin[row]
    )  # stable: pieces of a passage stay in order
    laid, passages = _laid([rows[row] for row in in_order], [origin[row] for row in in_order], context)
    return Numbered(name, printable(texts.source), texts.sha256, laid, passages, read, tuple(notes))


def _order(name: str, count: int, enough: int | None, seed: int) -> Sequence[int]:
    if enough is None:
        return range(count)
    bits = uniform_bits(cell_key(seed, "documents", name), 0, count)
    order: list[int] = np.argsort(bits, kind="stable").tolist()
    return order


def _ids(document: Document, tokenizer: TextTokenizer) -> npt.NDArray[np.int32]:
    """Number one document, without special tokens around it."""
    try:
        parts = [np.array(tokenizer.encode_bare(chunk).ids, np.int64) for chunk in _chunks(document.text)]
    except Exception as cause:  # a tokenizer may raise anything over a text
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise DamagedInputError(
            f"it does not tokenise ({printable(lines[0])})", where=document.where, fix="take the document out"
        ) from cause
    ids = np.concatenate(parts)
    if len(ids) and (ids.min() < 0 or ids.max() >= tokenizer.vocabulary):
        raise RefusedError(
            f"the token {int(ids.max())} is not among the {tokenizer.vocabulary} that the network knows",
            where=document.where,
            fix="take model and tokenizer from one place",
        )
    return ids.astype(np.int32)


def _chunks(text: str) -> Iterator[str]:
    """Cut a long text behind line ends."""
    at = 0
    while len(text) - at > _CHUNK:
        end = text.rfind("\n", at, at + _CHUNK) + 1
        end = end if end > at else at + _CHUNK
        yield text[at:end]
        at = end
    yield text[at:]


def _laid(
    rows: Sequence[npt.NDArray[np.int32]],
    origin: Sequence[tuple[int, int]],
    context: int,
) -> tuple[Pieces, tuple[tuple[int, int], ...]]:
    """Lay pieces out as rows, filled up with zeros, and number their passages."""
    ids = np.zeros((len(rows), context), np.int32)
    for row, piece in enumerate(rows):
        ids[row, : len(piece)] = piece
    passages = tuple(dict.fromkeys(origin))
    numbers = {name: number for number, name in enumerate(passages)}
    count = len(rows)
    pieces = Pieces(
        ids,
        np.array([len(piece) for piece in rows], np.int32),
        np.zeros(count, np.int32),
        np.array([document for document, _ in origin], np.int32),
        np.array([numbers[name] for name in origin], np.int32),
        np.arange(count, dtype=np.int32),
    )
    return pieces, passages
