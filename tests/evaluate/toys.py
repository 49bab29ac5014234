"""Small task files, a model whose answers are a function of the question alone, and its opening."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import FakeModel

from deltasmith.evaluate import request
from deltasmith.evaluate.language import Continuation, Likelihood, TokenLoss

COUNT = 20


@dataclass(frozen=True)
class Opened:
    """What `open_language_model` returns, made by hand."""

    model: FakeModel
    name: str = "toy"
    fingerprint: str = "f0"
    notes: tuple[str, ...] = ()


def chance(text: str) -> float:
    """Draw a number in [0, 1) from a text."""
    return zlib.crc32(text.encode()) / 2**32


def weigh(asked: Continuation) -> Likelihood:
    return Likelihood(-7 * chance(asked.context + asked.text), 3, chance(asked.text + asked.context) < 0.5)


def lose(text: str) -> list[TokenLoss]:
    return [TokenLoss(5 * chance(text), len(text), 0)]


def write(prompt: str) -> str:
    return f"So the answer is\n#### {int(3 * chance(prompt))}"


def toy_model(**options) -> FakeModel:
    return FakeModel(**{"write": write, "weigh": weigh, "lose": lose} | options)


def opens(patch: pytest.MonkeyPatch, open_model: Callable[[], Opened]) -> None:
    """Let every evaluation open this model, whatever it names."""
    patch.setattr(request, "_open", lambda *arguments, **options: open_model())


def write_files(folder: Path) -> None:
    """Write `items.jsonl`, `gsm8k.jsonl`, `text.txt` and `alpaca.json`, COUNT questions each."""
    numbers = range(COUNT)
    lines = [{"id": f"i{n}", "task": "t", "prompt": f"What is {n}?\n", "answer": str(n)} for n in numbers]
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    problems = [{"question": f"How many are {n}?", "answer": f"Count.\n#### {n % 3}"} for n in numbers]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    (folder / "text.txt").write_text(" ".join(f"This is sentence {n} of a long story." for n in range(1500)))
    examples = [
        {"instruction": f"Name {n}.", "output": f"{n}", "generator": "rival", "dataset": "toys"}
        for n in numbers
    ]
    (folder / "alpaca.json").write_text(json.dumps(examples))


def specs(folder: Path, *names: str) -> list[str]:
    """Name tasks of the files: `items`, `gsm8k`, `perplexity`, `alpaca` (all of them by default)."""
    known = {
        "items": "items.jsonl",
        "gsm8k": "gsm8k.jsonl",
        "perplexity": "text.txt",
        "alpaca": "alpaca.json",
    }
    return [f"{name}={folder / known[name]}" for name in (names or known)]
