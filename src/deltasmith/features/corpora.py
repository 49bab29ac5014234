"""Corpora numbered and parted: what dictionaries are trained on, and held-out passages on which all is measured.

What is held out, repeated and left out is a function of texts, tokenizer, sizes and seed. All models read the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.analysis.tokenizing import TextTokenizer
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.features.documents import read_texts
from deltasmith.features.numbering import Numbered, number
from deltasmith.features.pieces import Pieces, joined_pieces
from deltasmith.features.study import HeldOut
from deltasmith.kernels.bits import uniform_bits
from deltasmith.operation.randomness import cell_key

__all__ = ["PASSAGE", "Corpora", "Pieces", "read_corpora"]

PASSAGE = 2048
"""Tokens of a passage, at most."""
_PASSAGES = 16
"""A domain's held-out text has so many passages, about, even where it is short: they are what is resampled."""
_REPEATS = 4
"""How often a smaller corpus is repeated before a larger one is cut, where no number of tokens is asked for."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Corpora:
    """The text of a study. `train` is mixed evenly over the domains; `held_out` is in the order of passages.

    `records` tell of each corpus its name, source, sha256, documents and tokens read, tokens held out, tokens trained
    on in one round, and how often a round repeats its text (below 1: that share of it).
    """

    train: Pieces
    held_out: Pieces
    records: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    @cached_property
    def held_out_tokens(self) -> HeldOut:
        """Return the held-out tokens as a study keeps them."""
        return self.held_out.held_out()


def read_corpora(
    sources: Sequence[tuple[str, Path]],
    tokenizer: TextTokenizer,
    *,
    context: int,
    train_tokens: int | None,
    held_out_tokens: int,
    seed: int,
) -> Corpora:
    """Read corpora, (name, path) each, number their documents, and part them into training and held-out pieces.

    A document is cut into pieces of at most `context` tokens (`pieces.cut`), and runs of pieces into passages of at
    most 2,048 tokens, fewer where that leaves a domain fewer than about 16 held-out ones. A hash of seed, corpus,
    document and passage orders the passages; the first are held out until they have a domain's equal share of
    `held_out_tokens`, the last one cut to fit. Only whole passages are apart: the text around a held-out one may be
    trained on.

    Of the rest each domain gives an equal share of `train_tokens`, the smaller corpora repeated, the larger cut, in
    whole pieces. None takes the tokens of the largest corpus from each, but repeats none more than four times. With
    a number, documents are read in hashed order only until there are enough.

    Raises:
        RecipeError: no corpus, two of one name, a context below 2. RefusedError: a corpus is too small for its share
        of the held-out tokens (at most half of it), a token is not in the network's vocabulary.
        DamagedInputError: a text cannot be read, or not be numbered.
    """
    _check(sources, context, train_tokens, held_out_tokens)
    held_shares = _shares(held_out_tokens, len(sources))
    train_shares = [None] * len(sources) if train_tokens is None else _shares(train_tokens, len(sources))
    numbered: list[Numbered] = []
    parts: list[tuple[Pieces, Pieces]] = []
    for domain, (name, path) in enumerate(sources):
        share, wanted = held_shares[domain], train_shares[domain]
        passage = max(1, min(PASSAGE, share // _PASSAGES) // (context - 1))
        enough = None if wanted is None else wanted + 2 * share
        found = number(
            name,
            read_texts(name, path),
            tokenizer,
            context=context,
            passage=passage,
            enough=enough,
            seed=seed,
        )
        numbered.append(found)
        parts.append(_parted(found, domain, share, seed))
    rounds = _wanted([train.tokens for train, _ in parts], train_shares)
    rows = [
        _chosen(train, want, seed, n.name)
        for (train, _), want, n in zip(parts, rounds, numbered, strict=True)
    ]
    trained = [train.taken(some) for (train, _), some in zip(parts, rows, strict=True)]
    held_out = joined_pieces([held for _, held in parts])
    records = [
        _record(found, train, chosen, held_part)
        for found, (train, held_part), chosen in zip(numbered, parts, trained, strict=True)
    ]
    return Corpora(_mixed(trained, seed), held_out, tuple(records), tuple(_notes(numbered, records)))


def _check(
    sources: Sequence[tuple[str, Path]], context: int, train_tokens: int | None, held_out_tokens: int
) -> None:
    if not sources:
        raise RecipeError("no text was given", fix="give NAME=PATH, one for each kind of text")
    names = [name for name, _ in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"two corpora are called {printable(twice[0])!r}", fix="give each its own name")
    least = {"context": (context, 2), "held_out_tokens": (held_out_tokens, len(sources))}
    least |= {} if train_tokens is None else {"train_tokens": (train_tokens, len(sources))}
    for name, (value, bound) in least.items():
        if value < bound:
            raise RecipeError(f"{name.replace('_', ' ')} is {value}", fix=f"give {bound} or more")


def _shares(total: int, count: int) -> list[int]:
    """Split a total into equal shares; the first ones have what is left over."""
    return [total // count + (at < total % count) for at in range(count)]


def _parted(found: Numbered, domain: int, share: int, seed: int) -> tuple[Pieces, Pieces]:
    """Return training pieces and held-out pieces of one domain."""
    pieces = found.pieces
    whole = Pieces(
        pieces.ids,
        pieces.lengths,
        np.full_like(pieces.domain, domain),
        pieces.document,
        pieces.passage,
        pieces.piece,
    )
    keys = _keys(found, seed)
    order = np.argsort(keys, kind="stable")  # of passages
    sizes = np.bincount(whole.passage, weights=whole.analysed, minlength=len(keys)).astype(np.int64)
    count = int(np.searchsorted(np.cumsum(sizes[order]), share)) + 1
    out = np.isin(whole.passage, order[:count])
    train = whole.taken(np.flatnonzero(~out))
    if 2 * share > whole.tokens or not train.tokens:
        raise RefusedError(
            f"the corpus {found.name!r} has {whole.tokens:,} tokens, too few to hold out {share:,} "
            "(its equal share) and to train on the rest",
            where=found.source,
            fix=f"give more text, or ask for fewer held-out tokens than {whole.tokens // 2:,} a corpus",
        )
    return train, _trimmed(whole.taken(np.flatnonzero(out)), order[:count], share)


def _keys(found: Numbered, seed: int) -> npt.NDArray[np.uint64]:
    """Hash every passage by what it is, not by where others are."""
    label = f"held out\0{found.name}"
    return np.array([cell_key(seed, label, f"{d}/{p}") for d, p in found.passages], np.uint64)


def _trimmed(held: Pieces, order: Rows, share: int) -> Pieces:
    """Cut the last passage of the order so that `share` tokens are left, and number the passages anew from 0."""
    surplus = held.tokens - share
    lengths = held.lengths.copy()
    for row in np.flatnonzero(held.passage == order[-1])[::-1]:
        taken = min(surplus, int(held.analysed[row]))
        lengths[row] -= taken
        surplus -= taken
    kept = np.flatnonzero(lengths > held.lengths - held.analysed)
    _, passage = np.unique(held.passage[kept], return_inverse=True)
    _, piece = np.unique(held.piece[kept], return_inverse=True)
    ids = held.ids[kept].copy()
    ids[np.arange(ids.shape[1])[None, :] >= lengths[kept, None]] = 0
    return Pieces(
        ids,
        lengths[kept],
        held.domain[kept],
        held.document[kept],
        passage.astype(np.int32),
        piece.astype(np.int32),
    )


def _wanted(sizes: Sequence[int], shares: Sequence[int | None]) -> list[int]:
    """Return how many tokens each domain gives in a round."""
    if any(share is None for share in shares):
        return [min(max(sizes), _REPEATS * min(sizes))] * len(sizes)
    return [int(share or 0) for share in shares]


def _chosen(train: Pieces, wanted: int, seed: int, name: str) -> Rows:
    """Choose rows with `wanted` tokens, to the nearest piece above: every piece once before any comes again."""
    rounds = math.ceil(wanted / train.tokens)
    orders = [
        np.argsort(_bits(seed, "training", f"{name}\0{turn}", len(train.lengths)), kind="stable")
        for turn in range(rounds)
    ]
    rows = np.concatenate(orders)
    reached = np.cumsum(train.analysed[rows])
    return rows[: int(np.searchsorted(reached, wanted)) + 1]


def _mixed(parts: Sequence[Pieces], seed: int) -> Pieces:
    """Interleave the domains so that any run of pieces has its share of each.

    Piece i of n lies at (i + u) / n of the way, u being drawn: without it every fourth piece of four equal domains
    would be of the same one.
    """
    places = []
    for domain, part in enumerate(parts):
        count = len(part.lengths)
        drawn = _bits(seed, "mixing", str(domain), count) * 2.0**-32
        places.append((np.arange(count) + drawn) / count)
    order = np.argsort(np.concatenate(places), kind="stable")
    return joined_pieces(parts).taken(order)


def _bits(seed: int, label: str, name: str, count: int) -> npt.NDArray[np.uint32]:
    return uniform_bits(cell_key(seed, label, name), 0, count)


def _record(found: Numbered, train: Pieces, chosen: Pieces, held: Pieces) -> dict[str, Any]:
    return {
        "name": found.name,
        "source": found.source,
        "sha256": found.sha256,
        "documents": found.documents,
        "tokens": found.pieces.tokens,
        "held_out_tokens": held.tokens,
        "train_tokens": chosen.tokens,
        "repeats": round(chosen.tokens / train.tokens, 3),
    }


def _notes(numbered: Sequence[Numbered], records: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [note for found in numbered for note in found.notes]
    for record in records:
        if record["repeats"] > _REPEATS:
            notes.append(
                f"{record['name']}: the text is repeated {record['repeats']:.1f} times in a round of training"
            )
        elif record["repeats"] < 0.99:
            notes.append(
                f"{record['name']}: {record['repeats']:.0%} of the text is trained on, as much as of the others"
            )
    return notes
