"""A model with a router: every row of a batch weighs the experts by what the shared expert makes of its prompt.

The first pass of a prompt decides; what follows in the same cache, or in the same call of generate, keeps its weights.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor

from deltasmith.upscaling.linear import Mixture
from deltasmith.upscaling.router import mean_states, real_tokens
from deltasmith.upscaling.settings import ROUTER

__all__ = ["call_routed", "generating", "reading_prompts", "routes"]

_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
_LEAST_PROMPT = 2
_WEIGHTS = "_deltasmith_weights"
"""The attribute of a cache that holds the weights its keys and values were computed with."""


def routes(model: Any) -> bool:
    """Tell whether the router decides: there is one, and neither the caller nor an enclosing call has decided."""
    mixture: Mixture = model._mixture
    return ROUTER in model._modules and mixture.weights is None and not mixture.alone


def call_routed(model: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a model with the weights of its rows: of the enclosing generate, of the cache, or computed now."""
    given = _named(model, args, kwargs)
    cache = given.get("past_key_values")
    if model._mixture.prompt is not None:
        weights = _expanded(model._mixture.prompt, _rows(given))
    elif isinstance(cache, transformers.Cache) and cache.get_seq_length() > 0:
        weights = _expanded(_kept(cache), _rows(given))
    else:
        weights = _weights(model, given)
    with model._mixture.holding(weights=weights):
        out = call(*args, **kwargs)
    _keep(out, weights)
    return out


def generating(architecture: Any) -> Callable[..., Any]:
    """Return an architecture's `generate` with the weights of the prompt for every token that follows."""
    inner = architecture.generate

    @functools.wraps(inner)
    def generate(self: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs[name] for name in _INPUTS if kwargs.get(name) is not None}
        if isinstance(inputs, Tensor):
            given["input_ids"] = inputs
        cache = kwargs.get("past_key_values")
        known = getattr(cache, _WEIGHTS, None)
        if not routes(self) or not {"input_ids", "inputs_embeds"} & given.keys():
            return inner(self, inputs, *args, **kwargs)
        weights = _weights(self, given) if known is None else known
        with self._mixture.holding(prompt=weights):
            return inner(self, inputs, *args, **kwargs)

    return generate


@contextmanager
def reading_prompts(model: Any, tokens: Tensor, lengths: Sequence[int]) -> Iterator[None]:
    """While this lasts, rows (rows, tokens) are weighed by their first tokens, as many as `lengths` says.

    For scoring what follows a prompt as it would be generated. Where a prompt has less than two tokens, which is
    what a text without one begins with, the whole row decides. Without a router that decides, nothing happens.
    """
    if not routes(model):
        yield
        return
    whole = real_tokens(tokens, None, tokens[..., None], model._modules[ROUTER].padding)
    counts = torch.tensor(list(lengths), device=tokens.device)[:, None]
    position = torch.arange(tokens.shape[1], device=tokens.device)
    real = whole & ((position < counts) | (counts < _LEAST_PROMPT))
    with model._mixture.holding(prompt=_weights(model, {"input_ids": tokens}, real)):
        yield


def _named(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call by name."""
    if not args:
        return kwargs
    bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    return {**bound, **kwargs}


def _weights(model: Any, given: Mapping[str, Any], real: Tensor | None = None) -> Tensor:
    """Let the shared expert read the prompts, and the router weigh: (rows, experts) in float32.

    `real` (rows, tokens) tells what counts, if not everything that is no padding.
    """
    router = model._modules[ROUTER]
    passed = {name: given[name] for name in _INPUTS if given.get(name) is not None}
    with model._mixture.holding(alone=True), torch.no_grad():
        states = model.base_model(**passed, use_cache=False, return_dict=True).last_hidden_state
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if real is None:
            real = real_tokens(ids, mask, states, router.padding)
        found: Tensor = router(mean_states(states, real))
    return found


def _rows(given: Mapping[str, Any]) -> int:
    first = given.get("input_ids")
    return len(given["inputs_embeds"] if first is None else first)


def _expanded(weights: Tensor, rows: int) -> Tensor:
    """Repeat each prompt's weights for its beams or samples, which stand side by side."""
    if len(weights) == 0 or rows % len(weights):
        raise ValueError(f"{len(weights)} prompts were weighed, and {rows} rows came")
    return weights.repeat_interleave(rows // len(weights), dim=0)


def _kept(cache: Any) -> Tensor:
    """Return the weights that a cache was filled with."""
    found: Tensor | None = getattr(cache, _WEIGHTS, None)
    if found is None:
        raise ValueError(
            "this cache was not filled under the router; start with the prompt, or call set_expert_weights"
        )
    return found


def _keep(out: Any, weights: Tensor) -> None:
    cache = getattr(out, "past_key_values", None)
    if isinstance(cache, transformers.Cache):
        setattr(cache, _WEIGHTS, weights)
