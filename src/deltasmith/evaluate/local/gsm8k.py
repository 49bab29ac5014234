"""GSM8K word problems, read, prompted and scored as lm-eval's stock `gsm8k` task does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.evaluate.language import Decoding, LanguageModel
from deltasmith.evaluate.local.common import LocalTask, Options, mean_of, percent, prompts_for
from deltasmith.evaluate.local.reading import Record, digest_of, read_records, sha256
from deltasmith.evaluate.task import Outcome

__all__ = ["FILTERS", "Gsm8k", "WordProblem", "extract", "same_answer"]

VERSION = 1
SHOTS = 5
TOKENS = 256
STOP = ("Question:", "</s>", "<|im_end|>")
FILTERS = ("strict-match", "flexible-extract")
_NOTHING = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_REFERENCE = re.compile(r"#### \$?-?\$?[.,]?[0-9]")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


@dataclass(frozen=True, slots=True)
class WordProblem:
    """Hold a prompt, examples included, and the reference solution, which ends in `#### NUMBER`."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Gsm8k(LocalTask[WordProblem]):
    """Count the final numbers that are right.

    The score is lm-eval's `strict-match` (the number after `#### `), which it lists first; `flexible-extract`
    (the last number) is in the details and the notes. Departure: the examples are the first of the train file,
    which is lm-eval's `first_n` sampler, where its stock task draws them at random.

    Paper: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
    """

    metric: ClassVar[str] = "exact_match"
    heeds: ClassVar[tuple[str, ...]] = ("shots", "train", "chat", "max_tokens")

    decoding: Decoding
    chat: bool

    @classmethod
    def load(cls, path: Path | str, options: Options) -> Gsm8k:
        """Read `question` and `answer` of every line; ids are positions, from 0.

        `options.shots` examples (default 5) come from `options.train`; without that file there are none.
        Raises DamagedInputError for a file that is not in this format or an answer without its number,
        RecipeError for examples without a train file, or more of them than it holds.
        """
        path = Path(path)
        examples, trained = _examples(options)
        records = read_records(path)
        questions = {
            str(n): WordProblem(examples + _ask(one), _solution(one)) for n, one in enumerate(records)
        }
        decoding = Decoding(options.max_tokens or TOKENS, STOP)
        digest = digest_of(
            "gsm8k",
            VERSION,
            [sha256(path), *trained],
            examples=examples,
            limit=options.limit,
            chat=options.chat,
            tokens=decoding.tokens,
        )
        return cls("gsm8k", str(path), digest, options.first(questions), decoding, options.chat)

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Generate a solution of each problem and compare its final number."""
        asked = [self.questions[name] for name in ids]
        texts = model.generate(prompts_for(model, [one.prompt for one in asked], self.chat), self.decoding)
        return [_outcome(*each) for each in zip(ids, asked, texts, strict=True)]

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Give the score by either filter."""
        if not outcomes:
            return ()
        shares = ", ".join(f"{name} {percent(mean_of(outcomes, name))}" for name in FILTERS)
        return (f"{shares}; the score is {FILTERS[0]}",)


def extract(text: str, how: str) -> str:
    """Return the answer a filter of `FILTERS` finds in a generated text, `[invalid]` where it finds none."""
    if how == "strict-match":
        found = _STRICT.search(text)
        return found[1].strip() if found else _NOTHING
    numbers = _NUMBER.findall(text)
    return numbers[-1].strip() if numbers else _NOTHING


def same_answer(extracted: str, reference: str) -> bool:
    """Compare what a filter found with a reference solution: commas, dollars, a last full stop do not count."""
    return _bare(extracted) == _bare(reference)


def _bare(text: str) -> str:
    for ignored in _IGNORED:
        text = ignored.sub("", text)
    return text.lower()


def _ask(record: Record) -> str:
    return f"Question: {record.text('question')}\nAnswer:"


def _solution(record: Record) -> str:
    """Return the reference solution; without its number nothing could be right, so that is refused."""
    text = record.text("answer")
    if not _REFERENCE.search(text):
        raise record.damaged("'answer' holds no #### NUMBER")
    return text


def _examples(options: Options) -> tuple[str, list[str]]:
    """Lay out the worked examples that precede every question, and hash the file they come from."""
    if options.train is None:
        if options.shots:
            raise RecipeError(f"{options.shots} examples are asked for and no train file", fix="name one")
        return "", []
    train = Path(options.train)
    shots = SHOTS if options.shots is None else options.shots
    records = read_records(train)
    if len(records) < shots:
        raise DamagedInputError(
            f"{shots} examples are asked for and it holds {len(records)}",
            where=str(train),
            fix="ask for fewer",
        )
    return "".join(f"{_ask(one)} {one.text('answer')}\n\n" for one in records[:shots]), [sha256(train)]


def _outcome(name: str, problem: WordProblem, text: str) -> Outcome:
    found = {how: extract(text, how) for how in FILTERS}
    right = {how: float(same_answer(found[how], problem.answer)) for how in FILTERS}
    return Outcome(name, right[FILTERS[0]], detail={"text": text, "extracted": found, **right})
