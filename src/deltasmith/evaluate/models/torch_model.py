"""Any causal language model that transformers knows, on a CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasmith.errors import DamagedInputError, RecipeError, printable
from deltasmith.evaluate.models.causal import CausalModel, Row, Scored, Watch
from deltasmith.evaluate.models.transformers_loading import (
    check_device,
    load_model,
    load_tokenizer,
    longest_input,
    memory_errors,
    quiet,
    require_transformers,
)
from deltasmith.formats.json_file import read_json_object

if TYPE_CHECKING:
    from deltasmith.engine.in_memory import Stored

__all__ = ["DTYPES", "TorchModel"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""`auto`: float32 on a CPU, what the checkpoint is stored in elsewhere."""

_DEFAULT_CONTEXT = 2048
_SLICE = 512  # positions whose logits are in float32 at once


class TorchTokenizer:
    """A tokenizer of transformers, asked as lm-eval's Hugging Face adapter asks it."""

    def __init__(self, inner: Any, end: int) -> None:
        """Wrap a tokenizer; `end` stands in where it names no end-of-sequence token."""
        self._inner = inner
        self.end: int = end if inner.eos_token_id is None else int(inner.eos_token_id)
        self.prefix: int = self.end if inner.bos_token_id is None else int(inner.bos_token_id)

    @cached_property
    def _prefix_text(self) -> str:
        return str(self._inner.decode([self.prefix]))

    @cached_property
    def _specials(self) -> dict[str, int]:
        entries = self._inner.added_tokens_decoder.items()
        return {entry.content: int(index) for index, entry in entries if entry.special}

    def encode(self, text: str) -> list[int]:
        """Number a prompt; nothing is added where it already starts with the token that would be."""
        special = not (self._prefix_text and text.startswith(self._prefix_text))
        return [int(i) for i in self._inner.encode(text, add_special_tokens=special, verbose=False)]

    def encode_bare(self, text: str) -> list[int]:
        """Number a text without adding anything."""
        return [int(i) for i in self._inner.encode(text, add_special_tokens=False, verbose=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Spell ids out, leaving special tokens away."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def special(self, text: str) -> int | None:
        """Return the id of the special token that is spelled `text`."""
        return self._specials.get(text)


class TorchModel(CausalModel):
    """Answer with transformers, in batches of `batch` texts. Build it with `load`."""

    def __init__(
        self, model: Any, tokenizer: Any, ends: frozenset[int], *, context: int | None, batch: int
    ) -> None:
        """Join a loaded model and a tokenizer of transformers; `context` bounds the model's own further.

        Raises:
            DamagedInputError: neither `ends` nor the tokenizer holds an end-of-sequence token.
        """
        if tokenizer.eos_token_id is None and not ends:
            raise DamagedInputError(
                "neither the tokenizer nor the config names an end-of-sequence token",
                fix="set eos_token_id in generation_config.json",
            )
        longest = longest_input(model.config, tokenizer) or _DEFAULT_CONTEXT
        own = TorchTokenizer(tokenizer, min(ends, default=0))
        super().__init__(own, ends, longest if context is None else min(longest, context), batch)
        self._model = model
        self._inner = tokenizer
        padding = tokenizer.pad_token_id
        self._padding = own.end if padding is None else int(padding)
        # Penalties and sampling that the folder asks for would not be greedy.
        model.generation_config = type(model.generation_config)()
        self.notes: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        folder: Path,
        tensors: Mapping[str, Stored] | None = None,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        context: int | None = None,
        batch: int = 8,
        where: str = "",
    ) -> TorchModel:
        """Load a Hugging Face folder, or `tensors` with the folder's config and tokenizer.

        `where` names it in errors (default: the folder); `dtype` is one of `DTYPES`. Raises MissingExtraError,
        RecipeError for a device or type that does not exist, DamagedInputError for whatever does not load
        completely, ResourceError where memory runs out.
        """
        require_transformers()
        if dtype not in DTYPES:
            raise RecipeError(
                f"there is no element type {printable(dtype)!r}", fix=f"use {', '.join(DTYPES)}"
            )
        check_device(device)
        kind: Any = "float32" if dtype == "auto" and device == "cpu" else dtype
        where = printable(where or str(folder))
        with quiet(), memory_errors(1):
            tokenizer = load_tokenizer(folder, where)
            model, notes = load_model(folder, tensors, dtype=kind, device=device, where=where)
            found = cls(model, tokenizer, _ends(folder, model.config), context=context, batch=batch)
        found.notes = notes
        return found

    @property
    def runtime(self) -> str:
        """Return for example `transformers 5.2.0 on cpu, float32`."""
        import transformers

        kind = str(self._model.dtype).removeprefix("torch.")
        return f"transformers {transformers.__version__} on {self._model.device}, {kind}"

    def chat(self, instruction: str) -> str:
        """Render one user message with the model's chat template, in transformers' sandbox; as it is without one.

        Raises:
            DamagedInputError: the template fails.
        """
        if not self._inner.chat_template:
            return instruction
        import jinja2

        message = [{"role": "user", "content": instruction}]
        try:
            with quiet():
                return str(
                    self._inner.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
                )
        except (jinja2.TemplateError, ValueError, TypeError) as cause:
            raise DamagedInputError(
                f"the chat template fails ({printable(str(cause))})", fix="give the model one that renders"
            ) from cause

    def _score(self, rows: Sequence[Row]) -> list[list[Scored]]:
        import torch

        lengths = [len(row.inputs) for row in rows]
        counts = [max(map(len, row.targets)) for row in rows]
        longest = max(lengths)
        # Logits are wide: ask only for those from the first position on that some row is scored at.
        first = min(length - count for length, count in zip(lengths, counts, strict=True))
        tokens = torch.full((len(rows), longest), self._padding, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row.inputs)] = torch.tensor(row.inputs)
        prompts = [length - count + 1 for length, count in zip(lengths, counts, strict=True)]
        with quiet(), memory_errors(self._batch), torch.inference_mode(), self._reading(tokens, prompts):
            logits = self._logits(tokens.to(self._model.device), longest - first)
            return [
                _scored(logits[i, length - count - first : length - first], row.targets)
                for i, (row, length, count) in enumerate(zip(rows, lengths, counts, strict=True))
            ]

    def _reading(self, tokens: Any, prompts: Sequence[int]) -> AbstractContextManager[None]:
        """Let a mixture's router read the prompts alone, and not what is scored after them."""
        if not hasattr(self._model, "reading_prompts"):
            return nullcontext()
        found: AbstractContextManager[None] = self._model.reading_prompts(
            tokens.to(self._model.device), prompts
        )
        return found

    def _logits(self, tokens: Any, last: int) -> Any:
        """Return the logits of the last positions; causal attention needs no mask for padding on the right."""
        if self._keeps_logits:
            return self._model(input_ids=tokens, use_cache=False, logits_to_keep=last).logits
        return self._model(input_ids=tokens, use_cache=False).logits[:, tokens.shape[1] - last :]

    @cached_property
    def _keeps_logits(self) -> bool:
        import inspect

        return "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def _extend(self, prompts: Sequence[Sequence[int]], watches: Sequence[Watch]) -> list[list[int]]:
        import torch
        import transformers

        library: Any = transformers
        longest = max(map(len, prompts))
        tokens = torch.full((len(prompts), longest), self._padding, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, prompt in enumerate(prompts):
            tokens[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        progress = _Progress(watches)
        device = self._model.device
        with quiet(), memory_errors(self._batch), torch.inference_mode():
            self._model.generate(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                generation_config=library.GenerationConfig(
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=max(watch.limit for watch in watches),
                    pad_token_id=self._padding,
                    use_cache=True,
                ),
                stopping_criteria=library.StoppingCriteriaList([progress]),
            )
        return progress.found


class _Progress:
    """Collect what each row of a batch generates until its watch says it is over."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self.found: list[list[int]] = [[] for _ in watches]
        self._watches = watches
        self._over = [False] * len(watches)

    def __call__(self, tokens: Any, scores: Any, **_: Any) -> Any:
        """Take in the newest token of every row and return which rows are over."""
        import torch

        for i, token in enumerate(tokens[:, -1].tolist()):
            if not self._over[i]:
                self.found[i].append(token)
                self._over[i] = self._watches[i].over(self.found[i])
        return torch.tensor(self._over, device=tokens.device)


def _scored(logits: Any, targets: Sequence[Sequence[int]]) -> list[Scored]:
    """Score targets that end where the logits `(positions, vocabulary)` end, in float32."""
    import torch

    best = logits.argmax(dim=-1)
    slices = [logits[at : at + _SLICE].float() for at in range(0, len(logits), _SLICE)]
    total = torch.cat([part.logsumexp(dim=-1) for part in slices])
    found = []
    for target in targets:
        wanted = torch.tensor(list(target), device=logits.device)
        count = len(target)
        chosen = logits[len(logits) - count :].gather(1, wanted[:, None])[:, 0].float()
        logprobs = (chosen - total[len(total) - count :]).double()
        right = int((best[len(best) - count :] == wanted).sum())
        found.append(Scored(float(logprobs.sum()), count, right))
    return found


def _ends(folder: Path, config: Any) -> frozenset[int]:
    """Return every token that ends a sequence by generation_config.json or config.json."""
    path = folder / "generation_config.json"
    generation = read_json_object(path) if path.is_file() else {}
    found: set[int] = set()
    for value in (generation.get("eos_token_id"), getattr(config, "eos_token_id", None)):
        values = value if isinstance(value, list | tuple) else [value]
        found |= {i for i in values if isinstance(i, int)}
    return frozenset(found)
