"""The data of a distillation: documents from a file, cut into pieces of tokens, held out, and put in order.

Nothing here computes with a model; what a step sees is a function of file, tokenizer and seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.local.reading import read_bytes, read_records, read_text
from deltasmith.kernels.bits import uniform_bits

__all__ = ["Data", "Piece", "batches", "prepare", "read_documents"]

Piece = tuple[int, ...]
"""Token ids that the models read together, from their first position on."""

_HELD_OUT = 0.1
_LEAST, _MOST = 8, 128
"""Pieces held out: a tenth, within these; never more than half."""


@dataclass(frozen=True)
class Data:
    """Pieces of at most `length` tokens to learn from and to choose by, no document among both.

    `documents` were read from a file of this `sha256`.
    """

    training: tuple[Piece, ...]
    validation: tuple[Piece, ...]
    documents: int
    length: int
    sha256: str


def read_documents(path: Path) -> list[str]:
    """Read a file of documents: one a line, or for `.jsonl` and `.json` one object each.

    An object holds `text`, or `prompt` and `answer`, which are joined as they stand. Blank lines are passed over.
    Raises DamagedInputError for a file that is missing, not UTF-8, not JSON, or without a document.
    """
    if path.suffix in (".jsonl", ".json"):
        found = []
        for record in read_records(path):
            if "text" in record.fields or "prompt" not in record.fields:
                found.append(record.text("text"))
            else:
                found.append(record.text("prompt") + record.text("answer"))
    else:
        found = read_text(path).split("\n")
    documents = [text for text in found if text.strip()]
    if not documents:
        raise DamagedInputError("it holds no document", where=str(path), fix="give one document a line")
    return documents


def prepare(path: Path, encode: Callable[[str], Sequence[int]], length: int, seed: int) -> Data:
    """Read, shuffle, cut and divide: pieces of at most `length` tokens, a tenth of them held out.

    `encode` numbers a document's tokens. A piece of one token is dropped, whose logits depend on nothing that was
    fine-tuned for; so is what a document held out has beyond the pieces wanted. Raises what `read_documents` raises,
    and DamagedInputError where fewer than two documents are left, since none could then be held out.
    """
    documents = [tuple(map(int, encode(text))) for text in read_documents(path)]
    cut = [[doc[at : at + length] for at in range(0, len(doc), length)] for doc in documents]
    pieces = [kept for doc in cut if (kept := [piece for piece in doc if len(piece) > 1])]
    if len(pieces) < 2:
        raise DamagedInputError(
            "fewer than two documents have more than a token, and some must be held out",
            where=str(path),
            fix="give one document a line, hundreds of them",
        )
    total = sum(map(len, pieces))
    wanted = min(max(round(_HELD_OUT * total), _LEAST), _MOST, total // 2)
    validation: list[Piece] = []
    order = _order(len(pieces), seed, 0)
    taken = 0
    while taken < len(order) - 1 and (not taken or len(validation) < wanted):
        validation += pieces[order[taken]]
        taken += 1
    training = [piece for index in order[taken:] for piece in pieces[index]]
    digest = hashlib.sha256(read_bytes(path)).hexdigest()
    return Data(tuple(training), tuple(validation[: max(wanted, 1)]), len(documents), length, digest)


def batches(pieces: Sequence[Piece], size: int, seed: int) -> Iterator[list[Piece]]:
    """Yield batches of `size` pieces without end; every round is another order of all pieces.

    A batch may span two rounds, so that no piece is seen less often than another.
    """
    at, stream = 1, _order(len(pieces), seed, 1)
    while True:
        while len(stream) < size:
            at += 1
            stream += _order(len(pieces), seed, at)
        head, stream = stream[:size], stream[size:]
        yield [pieces[index] for index in head]


def _order(count: int, seed: int, turn: int) -> list[int]:
    """Return a permutation that depends on nothing but count, seed and turn."""
    key = int.from_bytes(hashlib.sha256(f"distill {seed} {turn}".encode()).digest()[:8], "little")
    return [int(index) for index in np.argsort(uniform_bits(key, 0, count), kind="stable")]
