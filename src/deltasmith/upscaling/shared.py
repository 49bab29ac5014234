"""The shared expert as a network, and what it makes of the router's examples: one mean state each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from deltasmith.engine.in_memory import Stored
from deltasmith.errors import DamagedInputError, DeltasmithError, RefusedError, printable
from deltasmith.upscaling.router import mean_states
from deltasmith.upscaling.settings import RouterShape
from deltasmith.upscaling.skeleton import built

__all__ = ["encoded", "examples_states", "load_shared", "load_tokenizer", "router_shape"]

_TOKENS = 4096
"""Tokens of a batch, padding included."""
_BATCH = 64


def router_shape(folder: Path, tokenizer: Any) -> RouterShape:
    """Return the shape of a router over this base: as wide as its hidden states, and twice that between.

    Raises:
        RefusedError: the base does not turn text, and text alone, into hidden states.
    """
    model = built(folder)
    config = model.config
    other = [part for part in ("vision_config", "audio_config") if hasattr(config, part)]
    if model.main_input_name != "input_ids" or config.is_encoder_decoder or other:
        raise RefusedError(
            f"a router reads text, and {type(model).__name__} does not read text alone",
            where=printable(str(folder)),
            fix="leave --router-data out, and set the weights by the caller",
        )
    width = int(config.get_text_config().hidden_size)
    padding = getattr(tokenizer, "pad_token_id", None)
    return RouterShape(width, 2 * width, None if padding is None else int(padding))


def load_tokenizer(folder: Path) -> Any:
    """Load the base's tokenizer.

    Raises:
        RefusedError: it has none that transformers reads.
    """
    library: Any = transformers
    try:
        return library.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as cause:  # transformers raises all sorts of things over a tokenizer
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise RefusedError(
            f"--router-data needs the base's tokenizer, which transformers cannot read ({printable(lines[0])})",
            where=printable(str(folder)),
            fix="fetch the tokenizer files of the base",
        ) from cause


def encoded(texts: Mapping[str, Sequence[str]], tokenizer: Any, size: int) -> list[list[int]]:
    """Number the tokens of all texts, label by label, as prompts: with what the tokenizer puts before them.

    Raises:
        DamagedInputError: a text without tokens, or with one beyond the vocabulary of `size`.
    """
    found = []
    start = tokenizer.bos_token
    for label, own in texts.items():
        for number, text in enumerate(own, 1):
            where = f"--router-data {printable(label)}, example {number}"
            special = not (start and text.startswith(start))
            try:
                ids = [int(i) for i in tokenizer.encode(text, add_special_tokens=special, verbose=False)]
                bare = tokenizer.encode(text, add_special_tokens=False, verbose=False)
            except Exception as cause:  # whatever a tokenizer raises over a text
                raise DamagedInputError(
                    f"it cannot be tokenised ({printable(str(cause))})", where=where, fix="mend or remove it"
                ) from cause
            if not bare or max(ids) >= size:
                what = f"token {max(ids)} of a vocabulary of {size}" if bare else "no token in it"
                raise DamagedInputError(what, where=where, fix="take the tokenizer of this base")
            found.append(ids)
    return found


def load_shared(folder: Path, tensors: Mapping[str, Stored], device: str) -> Any:
    """Load the architecture of a folder with these tensors: float32 on a CPU, as they are stored elsewhere.

    Raises:
        DamagedInputError: they do not fill it.
    """
    library: Any = transformers
    kind: Any = type(built(folder))
    state = {name: _tensor(stored) for name, stored in tensors.items()}
    try:
        config = library.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        with _quiet():
            model, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype="float32" if device == "cpu" else "auto",
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):
            raise DamagedInputError(
                f"the weights lack {printable(missing[0])}",
                where=printable(str(folder)),
                fix="take config and weights from the same model",
            )
        return model.to(device).eval()
    except DeltasmithError:
        raise
    except (OSError, ValueError, RuntimeError) as cause:
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise DamagedInputError(
            f"transformers cannot load the shared expert ({printable(lines[0])})",
            where=printable(str(folder)),
            fix="check config.json, the weights, and --device",
        ) from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers says while it loads off the terminal: what matters is raised."""
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tensor(stored: Stored) -> Tensor:
    kind = getattr(torch, stored.spec.dtype.name)
    if not stored.spec.size:
        return torch.empty(stored.spec.shape, dtype=kind)
    return torch.frombuffer(stored.data, dtype=kind).reshape(stored.spec.shape)


def examples_states(
    model: Any, rows: Sequence[Sequence[int]], *, check: Callable[[int], None] = lambda done: None
) -> tuple[Tensor, int]:
    """Compute the mean last hidden state of every prompt, (prompts, width) in float32; count those cut short.

    Prompts beyond the model's context lose their end. Rows of like length are computed together, padded on the
    right; `check` is called with the number of prompts done, and may raise.

    Raises:
        RefusedError: the architecture's body returns no hidden states.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    offset = 2 if "roberta" in str(model.config.model_type) else 0  # its positions begin after the padding id
    longest -= offset
    cut = sum(len(row) > longest for row in rows)
    lengths = [min(len(row), longest) for row in rows]
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    found: Tensor | None = None
    at = 0
    while at < len(rows):
        size = 1
        while (
            at + size < len(rows) and size < _BATCH and (size + 1) * lengths[by_length[at + size]] <= _TOKENS
        ):
            size += 1
        group = by_length[at : at + size]
        states = _batch(model, [rows[i][: lengths[i]] for i in group])
        if found is None:
            found = states.new_zeros(len(rows), states.shape[1])
        found[group] = states
        at += size
        check(len(group))
    assert found is not None
    return found, cut


def _batch(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(list(row))
        mask[number, : len(row)] = 1
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    with torch.no_grad():
        out = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False, return_dict=True)
    states = getattr(out, "last_hidden_state", None)
    if states is None:
        raise RefusedError(
            f"{type(model).__name__} has no last hidden state that a router could read",
            fix="leave --router-data out",
        )
    return mean_states(states, mask > 0)
