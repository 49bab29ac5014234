"""A model opened to be read: network, tokenizer, and the text of each token. From a folder, a delta or a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasmith import api
from deltasmith.analysis.free_memory import free_on_device, free_on_machine, require_room
from deltasmith.analysis.tokenizing import TextTokenizer, of_transformers
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, printable
from deltasmith.evaluate.models.opening import Material, is_recipe, open_material
from deltasmith.evaluate.models.transformers_loading import (
    check_device,
    load_model,
    load_tokenizer,
    longest_input,
    memory_errors,
    quiet,
    require_transformers,
)
from deltasmith.formats.opening import open_model
from deltasmith.recipe.model import Recipe

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Opened", "Source", "open_network"]

Source = str | Path | Mapping[str, Any] | Recipe

_DECIDING = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_INDEPENDENT = ("manifest.json", "model.safetensors.index.json", "README.md")
_PROBE = 'It is 3.14 — naïve, isn\'t it?\n\tif x == [1, 2]:\n        return "Ünïcödé ✓ 数"\n'


@dataclass(frozen=True, eq=False)
class Opened:
    """A causal language model that can be read, in evaluation mode, without gradients.

    `texts` spells token ids, one by one, as they read inside a text: a leading space is part of it, what is no whole
    character is U+FFFD. `numbering` is a hash of the vocabulary and of how a sample is numbered: models of one
    numbering number texts alike. `fingerprint` changes whenever weights, config or tokenizer do; `name` holds no
    absolute path; `context` is the longest input in tokens, None where nothing bounds it.
    """

    network: nn.Module
    tokenizer: TextTokenizer
    texts: Callable[[Sequence[int]], list[str]]
    name: str
    fingerprint: str
    numbering: str
    context: int | None
    notes: tuple[str, ...]


@contextmanager
def open_network(
    source: Source,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    stop: Stop | None = None,
) -> Iterator[Opened]:
    """Load a causal language model with its tokenizer: a folder, a hub id in the cache, a packed delta, or a recipe.

    A recipe is computed as `merge` would write it, rounding included, in memory; `memory`, `threads`, `seed`,
    `overrides` and `stop` are for that. `dtype` (float32, bfloat16) is what the network keeps and computes in.
    Attention is the architecture's default. No code of a model is run, no pickle is read, nothing is fetched.

    Raises:
        MissingExtraError: torch or transformers is missing. RecipeError: an option or a recipe makes no sense.
        DamagedInputError: the model or its tokenizer does not load, or not completely.
        RefusedError: no model by itself. ResourceError: it will not fit. InterruptedRunError: asked to stop.
    """
    require_transformers("training dictionaries", "features")
    check_device(device)
    if dtype not in ("float32", "bfloat16"):
        raise RecipeError(f"there is no element type {printable(dtype)!r}", fix="use float32 or bfloat16")
    if not isinstance(source, Mapping | Recipe):
        source = str(source)
    options = {"overrides": overrides, "memory": memory, "threads": threads, "seed": seed}
    _require_room(source, device, dtype, options)
    with open_material(source, **options, stop=stop) as made, quiet(), memory_errors(1):  # type: ignore[arg-type]
        opened = _loaded(made, device, dtype)
    yield opened


def _loaded(made: Material, device: str, dtype: str) -> Opened:
    import torch

    where = printable(str(made.folder) if made.tensors is None else made.name)
    kept = getattr(torch, dtype)
    network, notes = load_model(made.folder, made.tensors, dtype=kept, device=device, where=where)
    network.requires_grad_(False)
    inner = load_tokenizer(made.folder, where)
    rows = network.get_input_embeddings().weight.shape[0]
    return Opened(
        network,
        of_transformers(inner, rows),
        _speller(inner),
        made.name,
        _fingerprint(made),
        _numbering(inner),
        longest_input(network.config, inner),
        (*made.notes, *notes),
    )


def _speller(inner: Any) -> Callable[[Sequence[int]], list[str]]:
    """Return what spells ids one by one: behind an anchor, as a decoder drops the space that a text begins with."""
    count = len(inner)
    anchor = _anchor(inner)
    before = "" if anchor is None else _decoded(inner, [anchor])

    def spell(token: int) -> str:
        if not 0 <= token < count:
            return f"<{token}>"  # a row of the embedding that the tokenizer does not know
        if anchor is None:
            return _decoded(inner, [token])
        both = _decoded(inner, [anchor, token])
        return both[len(before) :] if both.startswith(before) else _decoded(inner, [token])

    return lambda ids: [spell(int(token)) for token in ids]


def _anchor(inner: Any) -> int | None:
    """Return a token that reads as one letter, or None."""
    special = set(inner.all_special_ids)
    for letter in "aexo":
        for token in inner.encode(letter, add_special_tokens=False)[-1:]:
            if token not in special and _decoded(inner, [token]).strip() == letter:
                return int(token)
    return None


def _decoded(inner: Any, ids: list[int]) -> str:
    return str(inner.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _numbering(inner: Any) -> str:
    """Hash the vocabulary, the first token of texts, and a sample's ids: merges may differ where words do not."""
    words = sorted((int(token), str(word)) for word, token in inner.get_vocab().items())
    sample = list(map(int, inner.encode(_PROBE, add_special_tokens=False)))
    return hashlib.sha256(repr((words, inner.bos_token_id, sample)).encode()).hexdigest()


def _fingerprint(made: Material) -> str:
    """Hash the weights, and every small file that config or tokenizer may lie in."""
    state = hashlib.sha256(made.weights.encode())
    for path in sorted(made.folder.iterdir()):
        if path.is_file() and path.suffix in _DECIDING and path.name not in _INDEPENDENT:
            state.update(repr((path.name, hashlib.sha256(path.read_bytes()).hexdigest())).encode())
    return state.hexdigest()


def _require_room(source: Any, device: str, dtype: str, options: Mapping[str, Any]) -> None:
    """Refuse what headers show will not fit, before anything is computed or loaded."""
    if is_recipe(source):
        specs = [row.spec for row in api.plan(source, **options).built.plan.rows]
        stored = sum(
            spec.nbytes for spec in specs
        )  # the merged tensors, while the network is built from them
    else:
        opened = open_model(source)
        specs = [] if opened.checkpoint is None else list(opened.checkpoint.specs.values())
        stored = 0
    weights = (4 if dtype == "float32" else 2) * sum(spec.size for spec in specs)
    told = {
        "where": source if isinstance(source, str) else "the recipe",
        "what": f"holding the network in {dtype}, before any activation,",
        "fix": "use --dtype bfloat16, a smaller model, or a machine with more memory",
    }
    if device != "cpu":
        require_room(weights, free_on_device(device), **told)
    require_room((weights if device == "cpu" else 0) + stored, free_on_machine(), **told)
