"""A small Llama that answers without torch: evaluate/llama.py and a tokenizer of one character per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.evaluate.llama import Llama, Memory, load_folder
from deltasmith.evaluate.models.causal import CausalModel, Row, Scored, Watch
from deltasmith.evaluate.models.tokens import CharacterTokenizer
from deltasmith.formats.json_file import read_json_object

__all__ = ["NumpyModel"]

_DEFAULT_CONTEXT = 2048
_TEMPLATE = "chat_template.jinja"


class NumpyModel(CausalModel):
    """Answer with float32 numpy, in batches of `batch` texts.

    Build it with `load` or `from_tensors`. Both raise RefusedError for a tokenizer and DamagedInputError for an
    architecture that only transformers knows.
    """

    def __init__(
        self, llama: Llama, tokenizer: CharacterTokenizer, *, templated: bool, context: int, batch: int
    ) -> None:
        """Join a model and its tokenizer; `templated` models have a chat template, which needs transformers."""
        super().__init__(tokenizer, frozenset(), context, batch)
        self._llama = llama
        self._templated = templated

    @classmethod
    def load(cls, folder: Path, *, context: int | None = None, batch: int = 32) -> NumpyModel:
        """Read a Hugging Face folder; `context` bounds its own longest input further."""
        return cls._of(load_folder(folder), folder, context, batch)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, NDArray[Any]],
        folder: Path,
        *,
        context: int | None = None,
        batch: int = 32,
    ) -> NumpyModel:
        """Take the weights from `tensors`, and config and tokenizer from `folder`."""
        config = read_json_object(folder / "config.json")
        return cls._of(Llama.from_tensors(config, tensors), folder, context, batch)

    @classmethod
    def _of(cls, llama: Llama, folder: Path, context: int | None, batch: int) -> NumpyModel:
        eos = llama.config.get("eos_token_id")
        bos = llama.config.get("bos_token_id")
        if not isinstance(eos, int) or not isinstance(bos, int | None):
            raise DamagedInputError(
                f"bos_token_id is {bos!r} and eos_token_id is {eos!r}",
                where="config.json",
                fix="give one id for each",
            )
        tokenizer = CharacterTokenizer.load(folder, bos, eos)
        highest = max([*tokenizer.vocabulary.values(), *tokenizer.specials.values()])
        if highest >= len(llama.embedding):
            raise DamagedInputError(
                f"the tokenizer counts to {highest}, and the model has {len(llama.embedding)} embeddings",
                where=str(folder),
                fix="take model and tokenizer from the same place",
            )
        longest = int(llama.config.get("max_position_embeddings") or _DEFAULT_CONTEXT)
        longest = longest if context is None else min(longest, context)
        return cls(llama, tokenizer, templated=_has_template(folder), context=longest, batch=batch)

    @property
    def runtime(self) -> str:
        """Return `numpy`."""
        return "numpy"

    def chat(self, instruction: str) -> str:
        """Return the message as it is; RefusedError for a model with a chat template."""
        if self._templated:
            raise RefusedError(
                "rendering a chat template needs transformers", fix='pip install "deltasmith[eval]"'
            )
        return instruction

    def _score(self, rows: Sequence[Row]) -> list[list[Scored]]:
        longest = max(len(row.inputs) for row in rows)
        tokens = np.zeros((len(rows), longest), dtype=np.int64)
        wanted = np.zeros(tokens.shape, dtype=np.bool_)
        counts = [max(map(len, row.targets)) for row in rows]
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            tokens[i, : len(row.inputs)] = row.inputs
            wanted[i, len(row.inputs) - count : len(row.inputs)] = True
        logits = self._llama.logits_at(tokens, wanted).astype(np.float64)
        best = logits.argmax(axis=1)
        highest = logits.max(axis=1)
        total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        stops = np.cumsum(counts)
        return [
            [_scored(logits, total, best, int(stop), target) for target in row.targets]
            for row, stop in zip(rows, stops, strict=True)
        ]

    def _extend(self, prompts: Sequence[Sequence[int]], watches: Sequence[Watch]) -> list[list[int]]:
        longest = max(map(len, prompts))
        padding = np.array([longest - len(prompt) for prompt in prompts], dtype=np.int64)
        tokens = np.zeros((len(prompts), longest), dtype=np.int64)
        for i, prompt in enumerate(prompts):
            tokens[i, padding[i] :] = prompt
        memory = Memory(self._llama, padding, longest + max(watch.limit for watch in watches))
        found: list[list[int]] = [[] for _ in prompts]
        running = list(range(len(prompts)))
        while running:
            following = self._llama.read(tokens, memory).argmax(axis=1)
            for i, token in zip(running, following, strict=True):
                found[i].append(int(token))
            going = np.array([not watches[i].over(found[i]) for i in running], dtype=np.bool_)
            if not going.all():
                memory.keep(going)
            running = [i for i, goes in zip(running, going, strict=True) if goes]
            tokens = following[going][:, None]
        return found


def _scored(
    logits: NDArray[np.float64],
    total: NDArray[np.float64],
    best: NDArray[np.int64],
    stop: int,
    target: Sequence[int],
) -> Scored:
    places = np.arange(stop - len(target), stop)
    logprob = float((logits[places, list(target)] - total[places]).sum())
    return Scored(logprob, len(target), int((best[places] == list(target)).sum()))


def _has_template(folder: Path) -> bool:
    if (folder / _TEMPLATE).is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json_object(path).get("chat_template"))
