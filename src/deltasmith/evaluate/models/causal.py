"""Questions turned into rows of tokens and back: what every causal model shares, whatever computes it.

Contexts and continuations are cut where they meet, and before the white space there where a tokenizer joins it with
the next word (lm-eval's Hugging Face adapter always cuts before it; see `harness.py`). A departure from it: a text
scored in windows is scored after the beginning-of-sequence token, and that token itself is never scored, where
the adapter scores it once more for tokenizers that add it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltasmith.evaluate.language import Continuation, Decoding, Likelihood, TokenLoss
from deltasmith.evaluate.models.tokens import Tokenizer

__all__ = ["CausalModel", "Row", "Scored", "Watch"]


@dataclass(frozen=True, slots=True)
class Row:
    """Hold what a model reads, and for each entry of `targets` the tokens to be found at its end.

    The last token of every target follows the last input.
    """

    inputs: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """Hold one target's summed log-probability, its tokens, and how many were the likeliest at their place."""

    logprob: float
    tokens: int
    right: int


@dataclass(frozen=True)
class Watch:
    """Decide when one generation is over: after `limit` tokens, at one of `ends`, or once `stop` is spelled."""

    tokenizer: Tokenizer
    limit: int
    ends: frozenset[int]
    stop: tuple[str, ...]

    def over(self, ids: Sequence[int]) -> bool:
        """Tell whether generation ends after `ids`."""
        if len(ids) >= self.limit or (ids and ids[-1] in self.ends):
            return True
        if not self.stop:
            return False
        # A stop sequence that has just been completed lies within so many tokens, four bytes a character at most.
        tail = self.tokenizer.decode(ids[-(4 * max(map(len, self.stop)) + 8) :])
        return any(stop in tail for stop in self.stop)

    def text(self, ids: Sequence[int]) -> str:
        """Spell out what was generated, cut before the first stop sequence."""
        text = self.tokenizer.decode([i for i in ids if i not in self.ends])
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        return text[: min(found)] if found else text


class CausalModel(ABC):
    """Answer in batches of rows alike in length; subclasses compute a batch of scores and a batch of texts."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int], context: int, batch: int) -> None:
        """Take the tokenizer, the tokens that end a generation, the longest input, and the rows of a batch."""
        self._tokenizer = tokenizer
        self._ends = ends | {tokenizer.end}
        self._context = context
        self._batch = batch

    @property
    @abstractmethod
    def runtime(self) -> str:
        """Say what computes, on what, in which precision."""

    @abstractmethod
    def chat(self, instruction: str) -> str:
        """Lay out one user message as a prompt."""

    @abstractmethod
    def _score(self, rows: Sequence[Row]) -> list[list[Scored]]:
        """Score every target of a batch of rows."""

    @abstractmethod
    def _extend(self, prompts: Sequence[Sequence[int]], watches: Sequence[Watch]) -> list[list[int]]:
        """Continue each prompt of a batch greedily until its watch says it is over."""

    @property
    def context(self) -> int:
        """Return the longest sequence, in tokens, the model is made for."""
        return self._context

    def likelihoods(self, asked: Sequence[Continuation]) -> list[Likelihood]:
        """Score continuations, in order.

        A context that is too long loses its front; a continuation longer than the model's context is scored
        piece by piece, each after as much as fits. Without tokens the answer is 0 and greedy.
        """
        pieces = [list(self._pieces(*self._split(one))) for one in asked]
        scored = iter(self._scored([piece for some in pieces for piece in some]))
        found = [[next(scored) for _ in some] for some in pieces]
        return [
            Likelihood(
                math.fsum(s.logprob for s in some),
                tokens := sum(s.tokens for s in some),
                sum(s.right for s in some) == tokens,
            )
            for some in found
        ]

    def windows(self, text: str) -> list[TokenLoss]:
        """Score every token of `text` once, in consecutive windows of at most `context` tokens.

        Each window but the first is read after the last token before it, and the last window, if shorter,
        after as much as fits.
        """
        pieces = list(self._pieces([self._tokenizer.prefix], self._tokenizer.encode_bare(text)))
        return [TokenLoss(-s.logprob, s.tokens, s.right) for s in self._scored(pieces)]

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> list[str]:
        """Continue each prompt greedily and return only what was added, cut before the stop sequence.

        Room for `decoding.tokens` is kept free, up to half the context: a prompt that is longer than the rest
        loses its front. Generation also ends where the context is full.
        """
        room = max(self._context - decoding.tokens, self._context // 2, 1)
        tokens = [(self._tokenizer.encode(p) or [self._tokenizer.prefix])[-room:] for p in prompts]
        spelled = (self._tokenizer.special(stop) for stop in decoding.stop)
        ends = self._ends | {i for i in spelled if i is not None}
        stop = tuple(stop for stop in decoding.stop if stop)
        watches = [
            Watch(self._tokenizer, min(decoding.tokens, self._context - len(t)), ends, stop) for t in tokens
        ]
        texts = [""] * len(prompts)
        wanted = [i for i, watch in enumerate(watches) if watch.limit > 0]
        for batch in self._batches(wanted, [len(t) for t in tokens]):
            found = self._extend([tokens[i] for i in batch], [watches[i] for i in batch])
            for i, ids in zip(batch, found, strict=True):
                texts[i] = watches[i].text(ids)
        return texts

    def _split(self, asked: Continuation) -> tuple[list[int], list[int]]:
        """Return the tokens of context and continuation."""
        end = [self._tokenizer.end] if asked.ends else []
        if not asked.context:
            ids = [*self._tokenizer.encode_bare(asked.text), *end]
            known = ids[:1] == [self._tokenizer.prefix] and len(ids) > 1
            return (ids[:1], ids[1:]) if known else ([self._tokenizer.prefix], ids)
        exact, joined = (self._tokenizer.encode(text) for text in (asked.context, asked.context + asked.text))
        if joined[: len(exact)] == exact and (len(joined) > len(exact) or not asked.text):
            return exact, [*joined[len(exact) :], *end]
        # The tokenizer joins a space before the cut with the word after it: it belongs to the continuation.
        context = asked.context.rstrip()
        text = asked.context[len(context) :] + asked.text
        if not context:
            return self._split(Continuation("", text, asked.ends))
        before, whole = self._tokenizer.encode(context), self._tokenizer.encode(context + text)
        if len(before) >= len(whole) and text:  # a merge took the whole continuation in: score what holds it
            before = whole[:-1] or [self._tokenizer.prefix]
            return before, [*whole[-1:], *end]
        return before, [*whole[len(before) :], *end]

    def _pieces(self, before: Sequence[int], target: Sequence[int]) -> Iterator[Row]:
        """Cut a target into pieces that fit the context, each after as many tokens as fit before it."""
        whole = [*before, *target]
        for start in range(len(before), len(whole), self._context):
            stop = min(start + self._context, len(whole))
            inputs = whole[max(0, stop - 1 - self._context) : stop - 1]
            yield Row(tuple(inputs), (tuple(whole[start:stop]),))

    def _scored(self, rows: Sequence[Row]) -> list[Scored]:
        """Score rows with one target each; those that read the same are computed once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.inputs, []).append(i)
        joined = [Row(inputs, tuple(rows[i].targets[0] for i in some)) for inputs, some in groups.items()]
        members = list(groups.values())
        found: list[Scored | None] = [None] * len(rows)
        for batch in self._batches(range(len(joined)), [len(row.inputs) for row in joined]):
            for group, scores in zip(batch, self._score([joined[i] for i in batch]), strict=True):
                for i, score in zip(members[group], scores, strict=True):
                    found[i] = score
        return [score for score in found if score is not None]

    def _batches(self, wanted: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of neighbours in length, longest first: what does not fit the memory shows at once."""
        order = sorted(wanted, key=lambda i: -lengths[i])
        for start in range(0, len(order), self._batch):
            yield order[start : start + self._batch]
