"""MBPP: short Python programs from a sentence and three tests, prompted as lm-eval's stock `mbpp` task does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.language import Decoding, LanguageModel
from deltasmith.evaluate.local.common import LocalTask, Options, prompts_for
from deltasmith.evaluate.local.programs import Judge, fenced, reasons
from deltasmith.evaluate.local.reading import Record, by_id, digest_of, read_records, sha256
from deltasmith.evaluate.task import Outcome

__all__ = ["Mbpp", "Question"]

VERSION = 1
TOKENS = 256
STOP = ("[DONE]",)
TEST_IDS = range(11, 511)
SHOWN_TESTS = 3
SHOTS = 3
EXAMPLE_IDS = range(2, 11)
"""lm-eval's stock task shows 2, 3 and 4; the paper keeps 1 to 10 for examples."""


@dataclass(frozen=True, slots=True)
class Question:
    """Hold a prompt, the code that prepares the tests, and the tests."""

    prompt: str
    setup: str
    tests: str


@dataclass(frozen=True)
class Mbpp(LocalTask[Question]):
    """Count the generated programs that pass their tests; one greedy sample a question.

    Departure from lm-eval: `test_setup_code` is run, which its stock task leaves out.

    Paper: Austin et al. 2021, "Program Synthesis with Large Language Models", arXiv 2108.07732.
    """

    metric: ClassVar[str] = "pass@1"
    heeds: ClassVar[tuple[str, ...]] = ("shots", "chat", "max_tokens")

    decoding: Decoding
    chat: bool
    judge: Judge

    @classmethod
    def load(cls, path: Path | str, options: Options) -> Mbpp:
        """Read `task_id`, `text`, `code`, `test_list` and `test_setup_code`; ids are the data set's own.

        The questions are those with ids 11 to 510, or with `options.split` "all" every one. The examples
        (default 3, or as many as there are) are the file's own questions 2, 3, 4, …, 10.
        Raises RefusedError without `options.tier`, DamagedInputError for a file that is not in this format,
        holds no question of the split, or fewer examples than were asked for.
        """
        path, judge = Path(path), Judge.of(options)
        records = by_id((_number(one), one, one.where) for one in read_records(path))
        examples = _examples(records, path, options)
        questions = {
            str(number): _question(one, examples)
            for number, one in records.items()
            if options.split == "all" or number in TEST_IDS
        }
        if not questions:
            raise DamagedInputError(
                "it has no test question (ids 11 to 510)", where=str(path), fix="ask for split all"
            )
        decoding = Decoding(options.max_tokens or TOKENS, STOP)
        digest = digest_of(
            "mbpp",
            VERSION,
            [sha256(path)],
            examples=examples,
            split=options.split,
            limit=options.limit,
            chat=options.chat,
            tokens=decoding.tokens,
            limits=judge.facts(),
        )
        return cls("mbpp", str(path), digest, options.first(questions), decoding, options.chat, judge)

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Generate a program for each question and run it against its tests."""
        from deltasmith.evaluate.sandbox import Program

        asked = [self.questions[name] for name in ids]
        texts = model.generate(prompts_for(model, [one.prompt for one in asked], self.chat), self.decoding)
        programs = [
            Program(fenced(text) if self.chat else text, one.tests, one.setup)
            for one, text in zip(asked, texts, strict=True)
        ]
        return self.judge.outcomes(ids, texts, programs)

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Count why programs failed."""
        return reasons(outcomes)


def _number(record: Record) -> int:
    number = record.fields.get("task_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise record.damaged(f"'task_id' is {number!r}, not a whole number")
    return number


def _ask(record: Record) -> str:
    """Lay out one question; lm-eval shows three tests, and there may be more or fewer here."""
    tests = "\n".join(record.texts("test_list")[:SHOWN_TESTS])
    return (
        f"You are an expert Python programmer, and here is your task: {record.text('text')} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _examples(records: Mapping[int, Record], path: Path, options: Options) -> str:
    """Lay out the worked examples that precede every question."""
    known = [records[number] for number in EXAMPLE_IDS if number in records]
    shots = min(SHOTS, len(known)) if options.shots is None else options.shots
    if len(known) < shots:
        raise DamagedInputError(
            f"{shots} examples are asked for, and it holds {len(known)} (questions 2 to 10)",
            where=str(path),
            fix="ask for fewer, or give the data set's own file",
        )
    return "".join(f"{_ask(one)}{one.text('code')}\n[DONE]\n\n" for one in known[:shots])


def _question(record: Record, examples: str) -> Question:
    return Question(
        examples + _ask(record),
        record.text("test_setup_code") if "test_setup_code" in record.fields else "",
        "\n".join(record.texts("test_list")),
    )
