"""Scripted language models: every answer is decided by the test, and every question is counted.

A `FakeModel` satisfies `deltasmith.evaluate.language.LanguageModel`. By default it writes nothing, finds every text
equally unlikely per character, and loses one nat per character.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltasmith.evaluate.language import Continuation, Decoding, LanguageModel, Likelihood, TokenLoss

__all__ = ["TASKS", "CrashError", "FakeModel", "oracle"]

TASKS = Path(__file__).parents[1] / "data" / "tasks"
"""Small task files, made by hand in the formats of the data sets."""


class CrashError(RuntimeError):
    """What a model raises once it has answered as many questions as it was allowed."""


def _nothing(prompt: str) -> str:
    return ""


def _one_nat_per_character(asked: Continuation) -> Likelihood:
    tokens = len(asked.text) + asked.ends
    return Likelihood(-float(tokens), tokens, False)


def _one_nat(text: str) -> list[TokenLoss]:
    return [TokenLoss(float(len(text)), len(text), 0)]


@dataclass
class FakeModel:
    """Answer from three functions; `crash_after` questions (of any kind, counted together) raise `crash`."""

    write: Callable[[str], str] = _nothing
    weigh: Callable[[Continuation], Likelihood] = _one_nat_per_character
    lose: Callable[[str], list[TokenLoss]] = _one_nat
    template: str = "{}"
    runtime: str = "fake"
    context: int = 64
    crash_after: int | None = None
    crash: Callable[[], BaseException] = CrashError
    prompts: list[str] = field(default_factory=list)
    asked: list[Continuation] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    decodings: list[Decoding] = field(default_factory=list)
    calls: int = 0

    @property
    def questions(self) -> int:
        """Count what was asked so far."""
        return len(self.prompts) + len(self.asked) + len(self.texts)

    def likelihoods(self, asked: Sequence[Continuation]) -> list[Likelihood]:
        self.calls += 1
        found = []
        for one in asked:
            self._count()
            self.asked.append(one)
            found.append(self.weigh(one))
        return found

    def windows(self, text: str) -> list[TokenLoss]:
        self.calls += 1
        self._count()
        self.texts.append(text)
        return self.lose(text)

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> list[str]:
        self.calls += 1
        self.decodings.append(decoding)
        found = []
        for prompt in prompts:
            self._count()
            self.prompts.append(prompt)
            found.append(_cut(self.write(prompt), decoding.stop))
        return found

    def chat(self, instruction: str) -> str:
        return self.template.format(instruction)

    def _count(self) -> None:
        if self.crash_after is not None and self.questions >= self.crash_after:
            raise self.crash()


def oracle(answers: Mapping[str, str], otherwise: str = "") -> FakeModel:
    """Write the answer whose key the prompt ends with (white space aside), the longest such key first."""

    def write(prompt: str) -> str:
        fitting = [key for key in answers if prompt.rstrip().endswith(key.rstrip())]
        return answers[max(fitting, key=len)] if fitting else otherwise

    return FakeModel(write=write)


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [place for place in (text.find(one) for one in stop if one) if place >= 0]
    return text[: min(ends)] if ends else text


def _is_a_language_model(model: FakeModel) -> LanguageModel:
    """Let the type checker see that the fake keeps the contract."""
    return model
