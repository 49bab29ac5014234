"""BLiMP: pairs of sentences that differ in one place, of which the grammatical one should be likelier."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, zip_longest
from pathlib import Path, PurePosixPath
from typing import ClassVar

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.language import Continuation, LanguageModel
from deltasmith.evaluate.local.common import LocalTask, Options, percent
from deltasmith.evaluate.local.reading import Record, by_id, digest_of, parse_records, read_bytes
from deltasmith.evaluate.task import Outcome

__all__ = ["Blimp", "Pair", "accuracies"]

VERSION = 1
_UNPACKED = 1 << 30
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold a grammatical sentence and its ungrammatical twin, their paradigm and the phenomenon it belongs to."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str


@dataclass(frozen=True)
class Blimp(LocalTask[Pair]):
    """Compare the probabilities of whole sentences, read from the beginning of a text; equal ones are wrong.

    Departure from lm-eval's task: no space before the sentence, and no point for a draw.

    Paper: Warstadt et al. 2020, "BLiMP: The Benchmark of Linguistic Minimal Pairs for English", arXiv
    1912.00582, section 4 (the full-sentence method).
    """

    metric: ClassVar[str] = "accuracy"

    @classmethod
    def load(cls, path: Path | str, options: Options) -> Blimp:
        """Read `BLiMP.zip`, a folder with its `.jsonl` files, or one of them.

        Ids are `PARADIGM/PAIR`. The paradigms take turns, so the first N pairs are spread over all of them.
        Raises DamagedInputError for a file that is not in this format, or a place that holds none.
        """
        path = Path(path)
        files = dict(sorted(_files(path)))
        if not files:
            raise DamagedInputError(
                "it holds no .jsonl file", where=str(path), fix="give BLiMP.zip, or its data"
            )
        paradigms = [list(islice(_pairs(*file), options.per_paradigm)) for file in files.items()]
        turns = (entry for turn in zip_longest(*paradigms) for entry in turn if entry is not None)
        digest = digest_of(
            "blimp",
            VERSION,
            [sha256(data).hexdigest() for data in files.values()],
            limit=options.limit,
            per_paradigm=options.per_paradigm,
        )
        return cls("blimp", str(path), digest, options.first(by_id(turns)))

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Score both sentences of each pair in one call."""
        asked = [self.questions[name] for name in ids]
        sentences = [Continuation("", text) for pair in asked for text in (pair.good, pair.bad)]
        found = [one.logprob for one in model.likelihoods(sentences)]
        return [
            Outcome(
                name,
                float(good > bad),
                detail={
                    "paradigm": pair.paradigm,
                    "phenomenon": pair.phenomenon,
                    "good": good,
                    "bad": bad,
                },
            )
            for name, pair, good, bad in zip(ids, asked, found[::2], found[1::2], strict=True)
        ]

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Give the accuracy of each phenomenon, and the paradigms that went worst."""
        if not outcomes:
            return ()
        worst = sorted(accuracies(outcomes, "paradigm").items(), key=lambda entry: entry[1])[:_SHOWN]
        return (
            f"by phenomenon: {_listed(accuracies(outcomes, 'phenomenon'))}",
            f"worst paradigms: {_listed(dict(worst))}",
        )


def accuracies(outcomes: Sequence[Outcome], by: str = "paradigm") -> dict[str, float]:
    """Return the accuracy of each `paradigm` or `phenomenon`, in alphabetical order."""
    scores: dict[str, list[float]] = {}
    for outcome in outcomes:
        scores.setdefault(outcome.detail[by], []).append(outcome.score)
    return {name: sum(found) / len(found) for name, found in sorted(scores.items())}


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {percent(share)}" for name, share in shares.items())


def _pairs(name: str, data: bytes) -> Iterator[tuple[str, Pair, str]]:
    """Read one paradigm's pairs with their ids and places; `name` is the file's path or address in a zip."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    for number, record in enumerate(parse_records(data, name)):
        pair = Pair(
            record.text("sentence_good"),
            record.text("sentence_bad"),
            _label(record, "UID", stem),
            _label(record, "linguistics_term", "unnamed"),
        )
        yield f"{pair.paradigm}/{record.fields.get('pairID', number)}", pair, record.where


def _label(record: Record, name: str, otherwise: str) -> str:
    return record.text(name) if name in record.fields else otherwise


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the .jsonl files of a zip or a folder, or the file itself; what macOS adds to a zip is left out."""
    if path.is_dir():
        for found in path.rglob("*.jsonl"):
            if _wanted(found.relative_to(path).as_posix()):
                yield str(found), read_bytes(found)
    elif path.suffix.lower() == ".zip":
        yield from _unzipped(path)
    else:
        yield str(path), read_bytes(path)


def _wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.endswith(".jsonl") and "__MACOSX" not in parts and not parts[-1].startswith(".")


def _unzipped(path: Path) -> Iterator[tuple[str, bytes]]:
    read_bytes(path)  # a missing file is named as everywhere
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [entry for entry in archive.infolist() if _wanted(entry.filename)]
            if sum(entry.file_size for entry in wanted) > _UNPACKED:
                raise DamagedInputError(
                    "it unpacks to more than 1 GiB", where=str(path), fix="unpack it yourself"
                )
            for entry in wanted:
                yield f"{path}:{entry.filename}", archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as cause:
        raise DamagedInputError(
            "it is no readable zip file", where=str(path), fix="fetch it again"
        ) from cause
