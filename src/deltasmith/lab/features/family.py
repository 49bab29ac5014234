"""Build the experiment's family: base on English and Python, fine-tunes on Lua and on stories, their SLERP, a control.

    texts/           DOMAIN.train.jsonl (language models), DOMAIN.features.jsonl (dictionaries and scores)
    base/ lua/ stories/ merged/ random/     models that transformers loads
    RECORD.json      what decides the weights, sizes and losses

`merged` is made by `deltasmith.merge`, so it carries its manifest, and lineage is read from there. `random` has the
base's architecture and tokenizer and weights that nothing has trained.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from deltasmith import api
from deltasmith.errors import RefusedError
from deltasmith.lab.features.corpora import DOMAINS, Texts, gather, read_documents
from deltasmith.lab.jobs import require_transformers

__all__ = ["BRANCHES", "FamilyWanted", "build_models", "recipe_of"]

BRANCHES = ("lua", "stories")
_RECORD = "RECORD.json"
_SAMPLE = 1_000_000
"""Characters of each domain that the tokenizer learns from."""


@dataclass(frozen=True)
class FamilyWanted:
    """What decides the models. `t` is how far the merge goes from Lua to stories; `threads` decides nothing."""

    seed: int = 0
    texts: Texts = field(default_factory=Texts)
    vocab: int = 2048
    t: float = 0.5
    shorten: int = 1
    """Divide the numbers of training steps by this: for tests."""
    threads: int = 2

    def record(self) -> dict[str, Any]:
        """Return everything that decides the weights but the texts, whose hashes follow."""
        from deltasmith.lab.features import language_models as lm

        schedules = {"base": lm.BASE, "branch": lm.BRANCH}
        return {
            "format": 1,
            "seed": self.seed,
            "vocab": self.vocab,
            "t": self.t,
            "shape": asdict(lm.SHAPE),
            "schedules": {
                name: asdict(replace(s, steps=s.steps // self.shorten)) for name, s in schedules.items()
            },
        }


def recipe_of(models: Mapping[str, Path], t: float = 0.5) -> dict[str, Any]:
    """Return the recipe of the merge: SLERP from Lua to stories, tensor by tensor, as a mapping."""
    return {
        "models": [{"model": str(models[label]), "label": label} for label in BRANCHES],
        "merge": {"slerp": {"t": t}},
        "dtype": "float32",
    }


def build_models(folder: Path, wanted: FamilyWanted, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train what `folder` does not hold yet, and return its record.

    The base learns on `threads` threads, then the two branches side by side on one each. Raises RefusedError where
    the folder was built from something else, MissingExtraError without torch or transformers.
    """
    require_transformers("features")
    folder.mkdir(parents=True, exist_ok=True)
    record = _continued(folder, wanted)
    if not (folder / "base").is_dir():
        _note(folder, record, "base", _base(folder, wanted))
        say(f"base: loss {record['losses']['base'][-1][1]}")
    missing = [label for label in BRANCHES if not (folder / label).is_dir()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(wanted.threads, 2), mp_context=context) as pool:
        running = {label: pool.submit(_branch, folder, wanted, label) for label in missing}
        for label, training in running.items():
            _note(folder, record, label, training.result())
            say(f"{label}: loss {record['losses'][label][-1][1]}")
    if not (folder / "merged").is_dir():
        api.merge(recipe_of({label: folder / label for label in BRANCHES}, wanted.t), folder / "merged")
    return record


def _continued(folder: Path, wanted: FamilyWanted) -> dict[str, Any]:
    path = folder / _RECORD
    record = wanted.record()
    if path.is_file():
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if different := [key for key in record if before.get(key) != record[key]]:
            raise RefusedError(
                f"it holds models with another {', '.join(different)}",
                where=str(folder),
                fix="build into another folder",
            )
        return before
    if any((folder / label).exists() for label in ("base", *BRANCHES)):
        raise RefusedError("models without a record", where=str(folder), fix="name a new folder")
    texts = gather(folder / "texts", wanted.texts)
    full = {**record, "texts": texts, "losses": {}}
    _write(path, full)
    return full


def _note(folder: Path, record: dict[str, Any], label: str, log: list[list[float]]) -> None:
    record["losses"][label] = log
    _write(folder / _RECORD, record)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _training_text(folder: Path, domain: str) -> list[str]:
    return read_documents(folder / "texts" / f"{domain}.train.jsonl")


def _base(folder: Path, wanted: FamilyWanted) -> list[list[float]]:
    import torch

    from deltasmith.lab.features import language_models as lm
    from deltasmith.lab.features.tokenizer import train_tokenizer
    from deltasmith.lab.network import initial

    torch.set_num_threads(wanted.threads)
    texts = {domain: _training_text(folder, domain) for domain in DOMAINS}
    # Of all four domains, as the paper's tokenizer is one that has seen all: otherwise Lua would cost more tokens.
    tokenizer = train_tokenizer(("".join(found)[:_SAMPLE] for found in texts.values()), wanted.vocab)
    start = initial(lm.SHAPE, wanted.vocab, wanted.seed)
    lm.write_model(
        folder / "random", initial(lm.SHAPE, wanted.vocab, wanted.seed + 1000), lm.SHAPE, tokenizer
    )
    blocks = tuple(lm.blocks_of(tokenizer, texts[d], lm.SHAPE.context) for d in ("english", "python"))
    schedule = replace(lm.BASE, steps=lm.BASE.steps // wanted.shorten)
    params, log = lm.train_on(start, lm.SHAPE, schedule, lm.Mixture(blocks), Random(f"{wanted.seed} base"))
    lm.write_model(folder / "base", params, lm.SHAPE, tokenizer)
    return log


def _branch(folder: Path, wanted: FamilyWanted, label: str) -> list[list[float]]:
    """Fine-tune one branch from the base on disk; runs in a process of its own."""
    import torch

    from deltasmith.lab.features import language_models as lm
    from deltasmith.lab.features.tokenizer import open_tokenizer

    torch.set_num_threads(1)
    shutil.rmtree(folder / f"{label}.partial", ignore_errors=True)
    tokenizer = open_tokenizer(folder / "base")
    blocks = lm.blocks_of(tokenizer, _training_text(folder, label), lm.SHAPE.context)
    schedule = replace(lm.BRANCH, steps=lm.BRANCH.steps // wanted.shorten)
    rng = Random(f"{wanted.seed} {label}")
    params, log = lm.train_on(lm.read_params(folder / "base"), lm.SHAPE, schedule, lm.Mixture((blocks,)), rng)
    lm.write_model(folder / label, params, lm.SHAPE, tokenizer)
    return log
