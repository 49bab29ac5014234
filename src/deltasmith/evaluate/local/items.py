"""Questions with one right answer in our own format, right where greedy decoding would spell it out and stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.items import Item, load_items
from deltasmith.evaluate.language import Continuation, LanguageModel
from deltasmith.evaluate.local.common import LocalTask, Options
from deltasmith.evaluate.local.reading import digest_of, read_text, sha256
from deltasmith.evaluate.task import Outcome

__all__ = ["Items"]

VERSION = 1


@dataclass(frozen=True)
class Items(LocalTask[Item]):
    """Count the answers a model would give exactly, end of sequence included, without generating them.

    Equal to `deltasmith.evaluate.items.score`.
    """

    metric: ClassVar[str] = "exact_match"
    heeds: ClassVar[tuple[str, ...]] = ("chat",)

    chat: bool

    @classmethod
    def load(cls, path: Path | str, options: Options) -> Items:
        """Read objects with `id`, `task`, `prompt` and `answer`, one per line.

        Raises DamagedInputError for a file that is missing, empty or not in this format.
        """
        path = Path(path)
        read_text(path)  # names a missing or undecodable file as every other task does
        questions = {item.id: item for item in load_items(path)}
        if not questions:
            raise DamagedInputError("it holds no question", where=str(path), fix="give one item per line")
        digest = digest_of("items", VERSION, [sha256(path)], limit=options.limit, chat=options.chat)
        return cls("items", str(path), digest, options.first(questions), options.chat)

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Ask for the likelihood of each answer; right is what would have been decoded greedily."""
        asked = [self.questions[name] for name in ids]
        found = model.likelihoods(
            [
                Continuation(model.chat(one.prompt) if self.chat else one.prompt, one.answer, ends=True)
                for one in asked
            ]
        )
        return [
            Outcome(name, float(one.greedy), detail={"logprob": one.logprob, "tokens": one.tokens})
            for name, one in zip(ids, found, strict=True)
        ]
