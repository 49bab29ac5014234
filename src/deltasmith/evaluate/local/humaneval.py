"""HumanEval: Python functions completed from signature and docstring, as lm-eval's stock `humaneval` task does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from deltasmith.evaluate.language import Decoding, LanguageModel
from deltasmith.evaluate.local.common import LocalTask, Options
from deltasmith.evaluate.local.programs import Judge, fenced, reasons
from deltasmith.evaluate.local.reading import Record, by_id, digest_of, read_records, sha256
from deltasmith.evaluate.task import Outcome

__all__ = ["Completion", "HumanEval"]

VERSION = 1
TOKENS = 1024
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_CHAT = "Complete this Python function. Answer with one block of code that holds the whole function.\n\n"
_DEFINED = re.compile(r"(?m)^(?:async )?def (\w+)\(")


@dataclass(frozen=True, slots=True)
class Completion:
    """Hold the beginning of a program and the tests of the function it leaves open."""

    prompt: str
    tests: str


@dataclass(frozen=True)
class HumanEval(LocalTask[Completion]):
    """Count the completed functions that pass their tests; one greedy sample a question.

    With `chat` the model is asked for the whole function in a fenced block, which is appended to the prompt and
    so replaces the open one; that layout is ours.

    Paper: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374.
    """

    metric: ClassVar[str] = "pass@1"
    heeds: ClassVar[tuple[str, ...]] = ("chat", "max_tokens")

    decoding: Decoding
    chat: bool
    judge: Judge

    @classmethod
    def load(cls, path: Path | str, options: Options) -> HumanEval:
        """Read `task_id`, `prompt`, `test` and (where present) `entry_point`; ids are the data set's own.

        Without `entry_point` it is the last function the prompt defines; a test that does not end by calling
        `check` gets that call. Raises RefusedError without `options.tier`, DamagedInputError for a file that
        is not in this format or not for Python.
        """
        path, judge = Path(path), Judge.of(options)
        records = read_records(path)
        questions = by_id((one.text("task_id"), _completion(one), one.where) for one in records)
        decoding = Decoding(options.max_tokens or TOKENS, () if options.chat else STOP)
        digest = digest_of(
            "humaneval",
            VERSION,
            [sha256(path)],
            limit=options.limit,
            chat=options.chat,
            tokens=decoding.tokens,
            limits=judge.facts(),
        )
        return cls("humaneval", str(path), digest, options.first(questions), decoding, options.chat, judge)

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Complete each function and run it against its tests."""
        from deltasmith.evaluate.sandbox import Program

        asked = [self.questions[name] for name in ids]
        prompts = [self._lay_out(model, one.prompt) for one in asked]
        texts = model.generate(prompts, self.decoding)
        programs = [
            Program(one.prompt + (fenced(text) if self.chat else text), one.tests)
            for one, text in zip(asked, texts, strict=True)
        ]
        return self.judge.outcomes(ids, texts, programs)

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Count why programs failed."""
        return reasons(outcomes)

    def _lay_out(self, model: LanguageModel, prompt: str) -> str:
        return model.chat(f"{_CHAT}```python\n{prompt}```") if self.chat else prompt


def _completion(record: Record) -> Completion:
    language = record.fields.get("language", "python")
    if language != "python":
        raise record.damaged(f"its programs are in {language!r}, and only Python is run")
    prompt, test = record.text("prompt"), record.text("test")
    defined = _DEFINED.findall(prompt)
    if "entry_point" not in record.fields and not defined:
        raise record.damaged("the prompt defines no function and 'entry_point' is missing")
    entry = record.text("entry_point") if "entry_point" in record.fields else defined[-1]
    call = f"check({entry})"
    return Completion(prompt, test if test.rstrip().endswith(f"\n{call}") else f"{test}\n{call}")
