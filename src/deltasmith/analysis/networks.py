"""The two networks at the ends of a path, loaded whole and strict, and the direction from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from deltasmith import api
from deltasmith.analysis.curvature import Sampled
from deltasmith.analysis.free_memory import free_on_device, free_on_machine, require_room
from deltasmith.analysis.requests import NothingMovesError
from deltasmith.analysis.tokenizing import TextTokenizer, of_transformers
from deltasmith.analysis.torch_objective import LossOf
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, RefusedError, printable
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
from deltasmith.table.checkpoint import Spec

__all__ = [
    "Dtype",
    "Loaded",
    "Source",
    "computed_in",
    "differences",
    "direction",
    "load",
    "load_network",
    "sampled_in",
]

Source = str | Path | Mapping[str, Any] | Recipe
Dtype = Literal["float32", "float64", "bfloat16"]
"""`bfloat16` keeps float32 parameters and computes under autocast: rounded points would drown a small edit."""

_SHOWN = 3
_IDLE = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "id2label", "label2id")
"""Entries of a config that no forward pass reads, beside those that begin with _ or end in _token_id."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network with parameters in float32 or float64, in evaluation mode, and what its folder held for texts.

    `name` holds no absolute path; `context` is its longest input in tokens, None where nothing bounds it.
    """

    network: nn.Module
    tokenizer: TextTokenizer | None
    name: str
    context: int | None
    notes: tuple[str, ...]


def load(
    source: Source,
    *,
    device: str = "cpu",
    dtype: Dtype = "float32",
    overrides: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    seed: int | None = None,
    stop: Stop | None = None,
    copies: int = 1,
) -> Loaded:
    """Load a causal language model with its tokenizer from whatever `open_language_model` opens.

    That is a model folder, a packed delta, or a recipe, which is computed as `merge` would write it, rounding
    included. `overrides`, `memory`, `threads`, `seed` and `stop` are for the computing of a recipe. Attention is
    computed plainly, so that it can be differentiated twice. No code of a model is run, and no pickle is read.

    In float64, many architectures of transformers still take norms and softmax in float32: losses are good to about
    seven digits there, not sixteen.

    `copies` counts the networks of this size that will be in memory together (a path needs two: this one, and the
    other, which becomes the direction); activations come on top, and cannot be known before.

    Raises:
        MissingExtraError: torch or transformers is missing. RecipeError: an option or a recipe makes no sense.
        DamagedInputError: the model or its tokenizer does not load, or not completely.
        RefusedError: no model by itself, or one with quantised parameters. ResourceError: it will not fit.
    """
    return load_network(
        source,
        lambda _: "AutoModelForCausalLM",
        True,
        device=device,
        dtype=dtype,
        overrides=overrides,
        memory=memory,
        threads=threads,
        seed=seed,
        stop=stop,
        copies=copies,
    )


def load_network(
    source: Source,
    choose: Callable[[Path], str],
    tokenized: bool,
    *,
    device: str,
    dtype: Dtype,
    copies: int,
    **options: Any,
) -> Loaded:
    """Do what `load` does, with the Auto class of transformers that `choose` names for a model's folder.

    `tokenized` says whether the network reads texts; only then a tokenizer must be there.
    """
    require_transformers("analysing a loss", "analysis")
    check_device(device)
    if dtype not in get_args(Dtype):
        raise RecipeError(
            f"there is no element type {printable(str(dtype))!r}", fix=f"use {', '.join(get_args(Dtype))}"
        )
    if not isinstance(source, Mapping | Recipe):
        source = str(source)
    kept: Dtype = "float64" if dtype == "float64" else "float32"
    _require_room(source, device, kept, copies, options)
    with open_material(source, **options) as made, quiet(), memory_errors(1):
        where = printable(str(made.folder) if made.tensors is None else made.name)
        network, notes = load_model(
            made.folder,
            made.tensors,
            dtype=kept,
            device=device,
            where=where,
            auto=choose(made.folder),
            attention="eager",
        )
        _refuse_quantised(network, where)
        inner = load_tokenizer(made.folder, where) if tokenized else None
        return _joined(network, inner, made, notes)


def _joined(network: Any, inner: Any, made: Material, notes: Iterable[str]) -> Loaded:
    """Put network and tokenizer together."""
    told = (*made.notes, *notes)
    if inner is None:
        return Loaded(network, None, made.name, None, told)
    end = getattr(network.config, "eos_token_id", None)
    rows = network.get_input_embeddings().weight.shape[0]
    tokenizer = of_transformers(inner, rows, end if isinstance(end, int) else None)
    return Loaded(network, tokenizer, made.name, longest_input(network.config, inner), told)


def computed_in(dtype: Dtype, device: str, loss: LossOf) -> LossOf:
    """Return the loss as it is computed in `dtype`: under autocast for bfloat16, and as it stands for the others."""
    if dtype != "bfloat16":
        return loss

    def computed(network: nn.Module, chunk: Any) -> Tensor:
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16):
            return loss(network, chunk)

    return computed


def sampled_in(dtype: Dtype, device: str, sampled: Sampled) -> Sampled:
    """Return the loss of drawn labels as `computed_in` returns that of the data."""

    def computed(network: Any, chunk: Any, key: int) -> Any:
        return computed_in(dtype, device, lambda n, c: sampled(n, c, key))(network, chunk)

    return computed


def direction(start: nn.Module, end: nn.Module) -> dict[str, Tensor]:
    """Return end − start for every parameter that moves, a tied one once, in the memory of `end`, which is used up.

    Float parameters only. Buffers (statistics of a batch norm, frequencies of a rotary embedding) stay where they
    are on a path, so all of them, of whatever type, must be the same at both ends.

    Raises:
        RefusedError: the two do not line up (another vocabulary, architecture, or buffer), a parameter of the end is
            not finite. NothingMovesError: start and end are the same weights.
    """
    if start is end:
        raise ValueError("a direction needs two networks")
    ours, theirs = dict(start.named_parameters()), dict(end.named_parameters())
    _refuse_shapes(start, ours, theirs)
    _refuse_buffers(dict(start.named_buffers()), dict(end.named_buffers()))
    steps: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in ours.items():
            step = theirs[name].detach()
            step.sub_(parameter.detach())
            if not torch.isfinite(step).all():
                raise RefusedError(
                    "its values are not all finite at the ends of the path",
                    where=printable(name),
                    fix="take the model apart with `deltasmith diff`, or merge again",
                )
            if step.any():
                steps[name] = step
    for parameter in theirs.values():
        parameter.data = torch.empty(0)  # what rests is released, even while somebody still holds the network
    if not steps:
        raise NothingMovesError(
            "nothing moves: start and end of the path are the same weights",
            fix="start elsewhere (--from base, or another model), or give a recipe that changes something",
        )
    return steps


def differences(start: Loaded, end: Loaded) -> tuple[str, ...]:
    """Say what of two models that line up is not on the path between their weights: notes for a report.

    The network on a path is the one of the start, with its config and tokenizer, wherever its weights are.
    """
    ours, theirs = (_settings(loaded.network) for loaded in (start, end))
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    notes = []
    if keys:
        shown = ", ".join(
            f"{key} ({ours.get(key)!r} and {theirs.get(key)!r})" if len(repr(theirs.get(key))) < 40 else key
            for key in keys[:_SHOWN]
        )
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        notes.append(f"the configs differ in {shown}{more}: the whole path is computed with the start's")
    if start.tokenizer is not None and end.tokenizer is not None:
        sample = "The quick brown fox: 3 + 4 = 7.\n"
        if start.tokenizer.encode(sample).ids != end.tokenizer.encode(sample).ids:
            notes.append("the tokenizers differ: the data are numbered by the start's")
    return tuple(map(printable, notes))


def _settings(network: Any) -> dict[str, Any]:
    config = getattr(network, "config", None)
    found: dict[str, Any] = config.to_dict() if config is not None else {}
    return {
        key: value
        for key, value in found.items()
        if key not in _IDLE and not key.startswith("_") and not key.endswith("_token_id")
    }


def _require_room(source: Any, device: str, dtype: Dtype, copies: int, options: Mapping[str, Any]) -> None:
    """Refuse what headers show will not fit, before anything is computed or loaded."""
    wide = 8 if dtype == "float64" else 4
    specs, held = _specs(source, options)
    weights = wide * sum(spec.size for spec in specs)
    stored = held * sum(spec.nbytes for spec in specs)
    networks = "the network" if copies == 1 else f"{copies} networks"
    what = f"holding {networks} in {dtype}, before any activation,"
    where = source if isinstance(source, str) else "the recipe"
    half = "--dtype float32 (half of it), " if wide == 8 else ""
    fix = f"use {half}a smaller model, or a machine with more memory"
    if device != "cpu":
        require_room(
            copies * weights, free_on_device(device), where=f"{where} on {device}", what=what, fix=fix
        )
    on_machine = weights if device != "cpu" else copies * weights
    require_room(on_machine + stored, free_on_machine(), where=where, what=what, fix=fix)


def _specs(source: Any, options: Mapping[str, Any]) -> tuple[list[Spec], int]:
    """Return the tensors' headers, and how often the stored bytes lie in memory while the network is built."""
    if is_recipe(source):
        chosen = {key: value for key, value in options.items() if key != "stop"}
        return [row.spec for row in api.plan(source, **chosen).built.plan.rows], 1
    opened = open_model(source)
    if opened.checkpoint is None:
        return [], 0  # an adapter: refused in better words where it is opened
    return list(opened.checkpoint.specs.values()), int(opened.packed is not None)


def _refuse_quantised(network: nn.Module, where: str) -> None:
    odd = [name for name, parameter in network.named_parameters() if not parameter.is_floating_point()]
    if odd:
        raise RefusedError(
            f"{printable(odd[0])} is quantised ({str(dict(network.named_parameters())[odd[0]].dtype)[6:]}), "
            "and no path leads through integers",
            where=where,
            fix="give the model in bfloat16, float16 or float32",
        )


def _refuse_shapes(start: nn.Module, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Refuse networks of different names or shapes; the vocabulary is the likeliest, and is named first."""
    vocabulary = [name for name, parameter in ours.items() if any(parameter is v for v in _vocabulary(start))]
    for name in [*vocabulary, *ours]:
        a, b = ours[name].shape, theirs[name].shape if name in theirs else None
        if b is None or a == b:
            continue
        shapes = (
            f"{printable(name)} is {list(a)} at the start and {list(b)} at the end: a path needs one shape"
        )
        if name in vocabulary:
            raise RefusedError(
                f"the vocabularies differ, {shapes}",
                fix="start from a model with the vocabulary of the end (--from), or keep the recipe to models of one",
            )
        raise RefusedError(shapes, fix="start from a model of the same architecture")
    if alone := sorted(ours.keys() ^ theirs.keys()):
        side = "start" if alone[0] in ours else "end"
        raise RefusedError(
            f"{printable(alone[0])} is a parameter of the {side} alone"
            f"{f' ({len(alone)} such)' if len(alone) > 1 else ''}: a path needs the same parameters at both ends",
            fix="start from a model of the same architecture, with or without tied embeddings like the end",
        )


def _vocabulary(network: Any) -> list[Tensor]:
    """Return the parameters that have a row for each token."""
    getters = (getattr(network, f"get_{side}_embeddings", None) for side in ("input", "output"))
    found = [getter() for getter in getters if getter is not None]
    return [module.weight for module in found if isinstance(getattr(module, "weight", None), Tensor)]


def _refuse_buffers(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape or not torch.equal(a, b):
            raise RefusedError(
                f"the buffer {printable(name)} differs between start and end, and a path moves parameters alone",
                fix="start from a model that shares it, or keep it out of the recipe (`where`)",
            )
