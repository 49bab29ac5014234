"""AlpacaEval: answers to its instructions in its file format, and a win rate where a judge is named.

Dubois et al. 2023, "AlpacaFarm"; the files are those of the alpaca_eval project: lists of
{"instruction", "output", "generator", "dataset"}. Its length-controlled win rate needs a regression fitted on the
project's own annotations; it is not computed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.evaluate.judge import Judge, Pair
from deltasmith.evaluate.language import Decoding, LanguageModel
from deltasmith.evaluate.saving import write_whole
from deltasmith.evaluate.streams import Session, fixed_chunks
from deltasmith.evaluate.task import Average, Outcome

__all__ = ["AlpacaEval", "Example", "StoredAnnotations", "load_examples"]

NO_JUDGE = (
    "no judge was named (--judge-command or --judge-model): there is no win rate, only model_outputs.json"
)
NO_LENGTH_CONTROL = "the length-controlled win rate is not computed"


@dataclass(frozen=True, slots=True)
class Example:
    """Hold one entry of an AlpacaEval file; `output` is None where the file holds instructions alone."""

    instruction: str
    output: str | None
    generator: str
    dataset: str


def load_examples(path: Path | str) -> list[Example]:
    """Read a file of AlpacaEval's schema; DamagedInputError where it is missing, empty, or something else."""
    examples = []
    for number, entry in enumerate(_entries(path, "an AlpacaEval file")):
        instruction, output = entry.get("instruction"), entry.get("output")
        if not isinstance(instruction, str) or not isinstance(output, str | None):
            raise DamagedInputError(
                f"entry {number} has no text as its instruction, or an output that is none",
                where=str(path),
                fix='give a list of {"instruction", "output", "generator", "dataset"}',
            )
        generator, dataset = str(entry.get("generator", "")), str(entry.get("dataset", ""))
        examples.append(Example(instruction, output, generator, dataset))
    return examples


@dataclass(frozen=True)
class AlpacaEval:
    """Answer AlpacaEval's instructions; with a judge, compare the answers with the reference's.

    The score of a question is how much better the judge finds the model's answer, 0 to 1 and 0.5 for a tie; their
    mean is the win rate. A question on which the judge has no opinion does not count. Without a judge no question
    counts and there is no score at all. Instructions go through the model's chat template where it has one.
    """

    examples: tuple[Example, ...]
    references: tuple[Example, ...]
    outputs: Path
    overwrite: str  # "refuse" or "replace" a file of another model under `outputs`
    decoding: Decoding
    judge: Judge | None = None
    batch: int = 8
    name: str = "alpaca"

    average: Average = "mean"
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        """Return `win_rate`, or `none` without a judge."""
        return "win_rate" if self.judge else "none"

    @cached_property
    def digest(self) -> str:
        """Hash the instructions and the bounds of generation; with a judge also the reference and the judge."""
        parts: list[Any] = [[e.instruction, e.dataset] for e in self.examples]
        parts += [self.decoding.tokens, self.decoding.stop]
        if self.judge:
            parts += [[e.output for e in self.references], self.judge.digest]
        return _digest(parts)

    def memory_digest(self) -> str:
        """Hash what decides a generated answer beside its instruction: another judge leaves it as it was."""
        return _digest([self.decoding.tokens, self.decoding.stop])

    @property
    def ids(self) -> Sequence[str]:
        """Return the places of the instructions in the file, `0000` and on."""
        return [f"{number:04d}" for number in range(len(self.examples))]

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Say what the score means, and how many questions the judge left open."""
        if self.judge is None:
            return (NO_JUDGE,)
        undecided = sum(not o.weight for o in outcomes)
        rivals = ", ".join(sorted({e.generator for e in self.references})) or "the reference"
        said = (f"win rate against {rivals}, judged by {self.judge.name}", NO_LENGTH_CONTROL)
        return (*said, f"no verdict on {undecided} of {len(outcomes)}") if undecided else said

    def steps(self, ids: Sequence[str]) -> int:
        """Count what `stream` does: each answer, and each judgement."""
        return 2 * len(ids)

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Answer and judge `ids`, in their order; model_outputs.json holds these, under the name `model`."""
        session = Session("model", ids, _Forgetful())
        found = {o.id: o for some in self.stream(model, session, ids) for o in some}
        return [found[name] for name in ids]

    def stream(self, model: LanguageModel, session: Session, ids: Sequence[str]) -> Iterator[list[Outcome]]:
        """Generate what is not remembered, write model_outputs.json, then yield the outcomes of `ids`.

        Raises RefusedError where that file is another model's, and what the judge raises.
        """
        answers = self._generated(model, session)
        self._write(answers, session.model)
        if self.judge is None:
            yield [Outcome(name, 0.0, 0.0, {"output": answers[name]}) for name in ids]
            return
        for verdict in self.judge.compare([self._pair(name, answers[name]) for name in ids]):
            detail = {"output": answers[verdict.id], "preference": verdict.preference}
            known = verdict.preference is not None
            score = verdict.preference - 1.0 if verdict.preference is not None else 0.0
            yield [Outcome(verdict.id, score, float(known), detail)]

    def _pair(self, name: str, answer: str) -> Pair:
        at = int(name)
        return Pair(name, self.examples[at].instruction, self.references[at].output or "", answer)

    def _generated(self, model: LanguageModel, session: Session) -> dict[str, str]:
        asked = {name: self.examples[int(name)].instruction for name in session.chosen}
        answers = {name: session.memory.get(instruction) for name, instruction in asked.items()}
        for names in fixed_chunks(session.chosen, self.batch, {n for n, a in answers.items() if a is None}):
            texts = model.generate([model.chat(asked[name]) for name in names], self.decoding)
            for name, text in zip(names, texts, strict=True):
                if answers[name] is None:
                    answers[name] = text
                    session.memory.put(asked[name], text)
        return {name: str(answer) for name, answer in answers.items()}

    def check_outputs(self, generator: str) -> None:
        """Refuse, before any work, to replace model_outputs.json where it is another model's."""
        if self.overwrite == "replace" or not self.outputs.exists():
            return
        found = {str(entry.get("generator")) for entry in _entries(self.outputs, "a file of model outputs")}
        if found != {generator}:
            raise RefusedError(
                f"it holds the outputs of {', '.join(sorted(found))}, not of {generator}",
                where=str(self.outputs),
                fix="give each model a folder of its own, or --overwrite",
            )

    def _write(self, answers: Mapping[str, str], generator: str) -> None:
        self.check_outputs(generator)
        chosen = [(self.examples[int(name)], text) for name, text in answers.items()]
        entries = [
            {"dataset": e.dataset, "instruction": e.instruction, "output": text, "generator": generator}
            for e, text in chosen
        ]
        write_whole(self.outputs, json.dumps(entries, indent=2, ensure_ascii=False).encode(errors="replace"))


@dataclass(frozen=True)
class StoredAnnotations:
    """Score annotations that a judge has written before: a list of {"generator_2", "preference", …}.

    A preference of 2 is a win of `generator_2`, 1 a loss, 0 or 1.5 a tie, and null does not count. No model is
    asked anything.
    """

    path: str
    generator: str
    rivals: tuple[str, ...]
    judges: tuple[str, ...]
    preferences: tuple[float | None, ...]
    name: str = "alpaca_annotations"

    metric: str = "win_rate"
    average: Average = "mean"
    higher_is_better: bool = True

    @classmethod
    def load(cls, path: Path | str) -> StoredAnnotations:
        """Read a file of annotations of one model; DamagedInputError where it is none, or of several."""
        entries = list(_entries(path, "a file of annotations"))
        generators = sorted({str(e.get("generator_2")) for e in entries})
        if len(generators) != 1 or "generator_2" not in entries[0]:
            raise DamagedInputError(
                f"generator_2 is {', '.join(generators[:5])}",
                where=str(path),
                fix="give annotations of one model, which stands in generator_2",
            )
        return cls(
            path=str(path),
            generator=generators[0],
            rivals=tuple(sorted({str(e.get("generator_1")) for e in entries})),
            judges=tuple(sorted({str(e.get("annotator")) for e in entries})),
            preferences=tuple(_preference(e, number, path) for number, e in enumerate(entries)),
        )

    @cached_property
    def digest(self) -> str:
        """Hash the preferences and whose they are."""
        return _digest([self.generator, self.rivals, self.judges, self.preferences])

    @property
    def ids(self) -> Sequence[str]:
        """Return the places of the annotations in the file."""
        return [f"{number:04d}" for number in range(len(self.preferences))]

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Say where the score comes from."""
        rivals, judges = ", ".join(self.rivals), ", ".join(self.judges)
        return (
            f"stored annotations of {self.generator} against {rivals}, judged by {judges}",
            NO_LENGTH_CONTROL,
        )

    def answer(self, model: LanguageModel | None, ids: Sequence[str]) -> list[Outcome]:
        """Return the stored preferences as scores."""
        found = [(name, self.preferences[int(name)]) for name in ids]
        return [
            Outcome(n, 0.0 if p is None else p - 1.0, float(p is not None), {"preference": p})
            for n, p in found
        ]


class _Forgetful:
    """A memory that keeps nothing."""

    def get(self, request: str) -> Any | None:
        return None

    def put(self, request: str, answer: Any) -> None:
        pass


def _preference(entry: Mapping[str, Any], number: int, path: Path | str) -> float | None:
    said = entry.get("preference")
    if said is None:
        return None
    if isinstance(said, int | float) and not isinstance(said, bool):
        if said == 0:
            return 1.5  # how the project's own files write a tie
        if 1 <= said <= 2:
            return float(said)
    raise DamagedInputError(
        f"entry {number} has the preference {said!r}", where=str(path), fix="it should be 0, null, or 1 to 2"
    )


def _entries(path: Path | str, kind: str) -> Iterator[Mapping[str, Any]]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as cause:
        raise DamagedInputError(
            f"it cannot be read ({cause.strerror})", where=str(path), fix="check the path"
        ) from cause
    except (ValueError, RecursionError) as cause:
        raise DamagedInputError("it is not JSON", where=str(path), fix=f"give {kind}") from cause
    if not isinstance(document, list) or not document or not all(isinstance(e, dict) for e in document):
        raise DamagedInputError("it holds no list of objects", where=str(path), fix=f"give {kind}")
    yield from document


def _digest(parts: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())
