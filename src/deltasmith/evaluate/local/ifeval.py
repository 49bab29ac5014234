"""IFEval: instructions whose fulfilment a program can check, with strict and loose accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.language import Decoding, LanguageModel
from deltasmith.evaluate.local.common import LocalTask, Options, percent, prompts_for
from deltasmith.evaluate.local.instructions import Arguments, Check, Detector, NotCheckableError, check_for
from deltasmith.evaluate.local.reading import Record, by_id, digest_of, read_records, sha256
from deltasmith.evaluate.task import Outcome

__all__ = ["IfEval", "Instructed", "language_detector", "variants"]

VERSION = 1
TOKENS = 1280
_NAMED = 10
_ENGLISH = ("change_case:english_capital", "change_case:english_lowercase")


@dataclass(frozen=True, slots=True)
class Instructed:
    """Hold a prompt, its instructions and their checks; with an `obstacle` there are none, and it says why."""

    prompt: str
    instructions: tuple[str, ...]
    checks: tuple[Check, ...]
    obstacle: str = ""


@dataclass(frozen=True)
class IfEval(LocalTask[Instructed]):
    """Count the responses that follow every instruction of their prompt as written (prompt-level strict).

    The details hold each instruction's verdict, strict and loose (also right where it is without first line, last
    line or asterisks); the notes the four accuracies of the paper. A prompt with an instruction that cannot be
    checked is not generated for, weighs nothing, and is named in the notes.

    Paper: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911,
    section 3; departures are in `instructions`.
    """

    metric: ClassVar[str] = "prompt_level_strict_acc"
    heeds: ClassVar[tuple[str, ...]] = ("chat", "max_tokens")

    decoding: Decoding
    chat: bool
    english: bool

    @classmethod
    def load(cls, path: Path | str, options: Options) -> IfEval:
        """Read `prompt` (or `original_prompt`), `instruction_id_list` and `kwargs`; ids are `key`.

        A key that comes again gets `.2`, `.3` and so on; a question without one its position. Instructions
        without arguments in the file are checked where they need none. Languages are told by langdetect where it
        is installed. Raises DamagedInputError for a file that is not in this format, or without a single question
        that can be checked.
        """
        path, detect = Path(path), language_detector()
        records = read_records(path)
        questions = by_id(_numbered(records, detect))
        obstacles = [one.obstacle for one in questions.values()]
        if all(obstacles):
            raise DamagedInputError(
                f"none of its {len(obstacles)} questions can be checked ({obstacles[0]})",
                where=str(path),
                fix="give a file with kwargs",
            )
        decoding = Decoding(options.max_tokens or TOKENS)
        digest = digest_of(
            "ifeval",
            VERSION,
            [sha256(path)],
            limit=options.limit,
            chat=options.chat,
            tokens=decoding.tokens,
            langdetect=version("langdetect") if detect else None,
        )
        return cls(
            "ifeval", str(path), digest, options.first(questions), decoding, options.chat, detect is not None
        )

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Generate a response to each prompt that can be checked, and check it."""
        asked = {name: self.questions[name] for name in ids}
        able = [name for name, one in asked.items() if not one.obstacle]
        prompts = prompts_for(model, [asked[name].prompt for name in able], self.chat)
        texts = dict(zip(able, model.generate(prompts, self.decoding), strict=True)) if able else {}
        return [_outcome(name, one, texts.get(name)) for name, one in asked.items()]

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Give the four accuracies, what could not be checked, and the departures that touch these outcomes."""
        able = [outcome.detail for outcome in outcomes if outcome.weight]
        notes = [_accuracies(able)] if able else []
        obstacles = [outcome for outcome in outcomes if not outcome.weight]
        if obstacles:
            reasons = Counter(str(one.detail["not_checked"]) for one in obstacles)
            named = ", ".join(one.id for one in obstacles[:_NAMED]) + (
                ", …" if len(obstacles) > _NAMED else ""
            )
            why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(_NAMED))
            notes.append(f"{len(obstacles)} prompts are left out as not checkable ({named}); {why}")
        used = {name for detail in able for name in detail["instructions"]}
        if not self.english and used & {*_ENGLISH}:
            notes.append(
                "without langdetect, English in capitals or small letters is judged by its letters alone"
            )
        if "length_constraints:number_sentences" in used:
            notes.append("sentences are split by a rule, not by nltk's trained splitter")
        return tuple(notes)


def variants(response: str) -> tuple[str, ...]:
    """Return the eight forms the loose accuracy accepts: first line, last line and asterisks each kept or cut."""
    lines = response.split("\n")
    whole = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    whole[0] = response
    return (*whole, *(text.replace("*", "") for text in whole))


def language_detector() -> Detector | None:
    """Return a detector of languages that gives the same answer every time, or None without langdetect."""
    if find_spec("langdetect") is None:
        return None
    module = import_module("langdetect.detector_factory")
    cannot_tell = import_module("langdetect.lang_detect_exception").LangDetectException

    @cache
    def factory() -> Any:
        made = module.DetectorFactory()
        if not made.langlist:
            made.load_profile(module.PROFILES_DIRECTORY)
        return made

    def detect(text: str) -> str | None:
        detector = factory().create()
        detector.seed = 0
        detector.append(text)
        try:
            return str(detector.detect())
        except cannot_tell:
            return None

    return detect


def _numbered(records: Sequence[Record], detect: Detector | None) -> Iterator[tuple[str, Instructed, str]]:
    seen: Counter[str] = Counter()
    for number, record in enumerate(records):
        key = str(record.fields.get("key", number))
        seen[key] += 1
        name = key if seen[key] == 1 else f"{key}.{seen[key]}"
        yield name, _instructed(record, detect), record.where


def _instructed(record: Record, detect: Detector | None) -> Instructed:
    names = tuple(record.texts("instruction_id_list"))
    if not names:
        raise record.damaged("'instruction_id_list' is empty")
    given = _arguments(record, len(names))
    # A file of rewriting requests keeps the benchmark's own prompt under this name.
    prompt = record.text("original_prompt" if "original_prompt" in record.fields else "prompt")
    try:
        checks = [
            check_for(name, Arguments(one, record.where, detect))
            for name, one in zip(names, given, strict=True)
        ]
    except NotCheckableError as obstacle:
        return Instructed(prompt, names, (), str(obstacle))
    return Instructed(prompt, names, tuple(checks))


def _arguments(record: Record, count: int) -> list[Mapping[str, Any]]:
    if "kwargs" not in record.fields:
        return [{}] * count
    given = record.fields["kwargs"]
    if not isinstance(given, list) or len(given) != count or not all(isinstance(one, dict) for one in given):
        raise record.damaged(f"'kwargs' is not a list of {count} objects, one for each instruction")
    return given


def _outcome(name: str, question: Instructed, text: str | None) -> Outcome:
    if text is None:
        return Outcome(name, 0.0, 0.0, {"not_checked": question.obstacle})
    strict = [check(text) for check in question.checks]
    forms = variants(text)
    loose = [any(check(form) for form in forms) for check in question.checks]
    detail = {"text": text, "instructions": list(question.instructions), "strict": strict, "loose": loose}
    return Outcome(name, float(all(strict)), detail=detail)


def _accuracies(details: Sequence[Mapping[str, Any]]) -> str:
    shares = []
    for how in ("strict", "loose"):
        each = [verdict for detail in details for verdict in detail[how]]
        prompts = sum(all(detail[how]) for detail in details) / len(details)
        shares += [
            f"prompt-level {how} {percent(prompts)}",
            f"instruction-level {how} {percent(sum(each) / len(each))}",
        ]
    return ", ".join(shares)
