"""Plain text files, cut into pieces that do not depend on the model: perplexity and next-token accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.language import LanguageModel, TokenLoss
from deltasmith.evaluate.local.common import LocalTask, Options
from deltasmith.evaluate.local.reading import digest_of, read_text, sha256
from deltasmith.evaluate.task import Average, Outcome

__all__ = ["NextToken", "Perplexity", "pieces"]

VERSION = 1
WINDOW = 4000
"""Characters of a piece unless asked otherwise: about a thousand tokens of English."""


@dataclass(frozen=True)
class _Pieces(LocalTask[str]):
    """A text in pieces; each is read from its own beginning, so a piece knows nothing of the one before."""

    kind: ClassVar[str]

    @classmethod
    def load(cls, path: Path | str, options: Options) -> Self:
        """Cut a UTF-8 text into pieces of at most `options.window` characters; ids are positions, from 0.

        Raises DamagedInputError for a file that is missing, not UTF-8, or blank.
        """
        path = Path(path)
        window = options.window or WINDOW
        text = read_text(path)
        if not text.strip():
            raise DamagedInputError("it holds no text", where=str(path), fix="give a text in UTF-8")
        questions = {str(n): piece for n, piece in enumerate(pieces(text, window))}
        digest = digest_of(cls.kind, VERSION, [sha256(path)], limit=options.limit, window=window)
        return cls(cls.kind, str(path), digest, options.first(questions))

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Score every token of the named pieces, one outcome a piece, weighted by its tokens."""
        return [self._outcome(name, model.windows(self.questions[name])) for name in ids]

    def _outcome(self, name: str, windows: Sequence[TokenLoss]) -> Outcome:
        tokens = sum(window.tokens for window in windows)
        right = sum(window.right for window in windows)
        loss = math.fsum(window.loss for window in windows)
        detail = {"loss": loss, "tokens": tokens, "right": right, "bytes": len(self.questions[name].encode())}
        return Outcome(name, self._score(loss, right) / max(tokens, 1), float(tokens), detail)

    def _score(self, loss: float, right: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Perplexity(_Pieces):
    """Measure how surprised a model is by a text: exp of the mean loss per token.

    Perplexities of models with different tokenizers do not compare; the bits per byte in the notes do.
    """

    kind: ClassVar[str] = "perplexity"
    metric: ClassVar[str] = "perplexity"
    average: ClassVar[Average] = "perplexity"
    higher_is_better: ClassVar[bool] = False

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Give the bits per byte of UTF-8."""
        nbytes = sum(outcome.detail["bytes"] for outcome in outcomes)
        if not nbytes:
            return ()
        bits = math.fsum(outcome.detail["loss"] for outcome in outcomes) / math.log(2)
        return (f"{bits / nbytes:.4f} bits per byte over {nbytes} bytes",)

    def _score(self, loss: float, right: int) -> float:
        return loss


@dataclass(frozen=True)
class NextToken(_Pieces):
    """Count the tokens of a text that were the likeliest at their place."""

    kind: ClassVar[str] = "next_token"
    metric: ClassVar[str] = "accuracy"

    def _score(self, loss: float, right: int) -> float:
        return float(right)


def pieces(text: str, size: int) -> list[str]:
    r"""Cut a text into pieces of at most `size` characters that join to exactly the text again.

    Paragraphs (up to and with the blank lines after them) are packed together while they fit; one that alone
    does not is cut after the last white space that fits, or at `size` where there is none. White space at the
    end that finds no room makes the last piece longer.

    >>> pieces("one two\n\nthree\n\nfour", 10)
    ['one two\n\n', 'three\n\n', 'four']
    """
    found: list[str] = []
    for part in _parts(text, size):
        if found and (len(found[-1]) + len(part) <= size or not part.strip()):
            found[-1] += part
        else:
            found.append(part)
    return found


def _parts(text: str, size: int) -> Iterator[str]:
    """Yield paragraphs, the long ones cut."""
    for found in re.finditer(r"(?s).+?(?:\n[ \t\r]*\n\s*|\Z)", text):
        start, stop = found.span()
        while stop - start > size:
            spaces = [place.end() for place in re.finditer(r"\s", text[start : start + size])]
            end = start + (spaces[-1] if spaces else size)
            yield text[start:end]
            start = end
        yield text[start:stop]
