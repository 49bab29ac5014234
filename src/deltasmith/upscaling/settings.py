"""What a mixture is made of: ranks, experts, which linears; its config.json, and its size. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from deltasmith.errors import DamagedInputError, RecipeError, printable

__all__ = [
    "DENSE",
    "MODEL_TYPE",
    "ROUTER",
    "TENSORS",
    "RouterShape",
    "Settings",
    "added_parameters",
    "config_document",
    "router_tensors",
    "weights_of",
]

MODEL_TYPE = "deltasmith_smile"
"""The `model_type` of config.json, which `deltasmith.upscaling.auto` registers with transformers."""
DENSE = -1
"""The expert rank that keeps each expert's whole delta."""
TENSORS = ("smile_gate", "smile_svh", "smile_u", "smile_dense", "smile_bias", "smile_weight")
"""The names of the tensors that a module of the base gains, after the module's own name and a dot."""
ROUTER = "smile_router"
"""The name of the router among the model's modules, and before its tensors."""
_LARGEST = 3.4e38
"""The largest weight: what float32 holds, about."""


@dataclass(frozen=True)
class RouterShape:
    """A trained router: the width of the hidden states it reads, its own, and the id of what it takes for padding."""

    width: int
    hidden: int
    padding: int | None = None

    def check(self) -> None:
        """Refuse what is no shape; RecipeError."""
        numbers = (self.width, self.hidden, 0 if self.padding is None else self.padding)
        if not all(type(number) is int for number in numbers) or min(self.width, self.hidden) < 1:
            raise RecipeError(
                f"a router of {self.width} x {self.hidden} is none", fix="give whole numbers, at least 1"
            )


@dataclass(frozen=True)
class Settings:
    """A mixture's numbers, as config.json holds them under `smile`.

    `experts` are labels in order. Either `expert_rank` (-1: dense) or `density`, the fraction of min(out, in)
    singular triplets kept, decides the rank of a linear's experts. `linears`, and in Twin-Merging `embeddings` and
    `norms`, name the modules that are mixtures. `weights` overrule the gates until the caller sets others; None
    leaves it to the router, or without one to the gates.
    """

    experts: tuple[str, ...]
    router_rank: int = 8
    expert_rank: int | None = 64
    density: float | None = None
    top_k: int = 1
    preset: str = "smile"
    weights: tuple[float, ...] | None = None
    router: RouterShape | None = None
    linears: tuple[str, ...] = field(default=(), repr=False)
    embeddings: tuple[str, ...] = field(default=(), repr=False)
    norms: tuple[str, ...] = field(default=(), repr=False)

    def rank(self, rows: int, columns: int) -> int:
        """Return the experts' rank in a linear of this shape; -1 stands for the whole delta.

        By `density` it is int(density · min(rows, columns)), but at least 1.
        """
        smaller = min(rows, columns)
        if self.density is not None:
            return max(1, int(self.density * smaller))
        return DENSE if self.expert_rank in (None, DENSE) else min(self.expert_rank or 0, smaller)

    def as_json(self) -> dict[str, Any]:
        """Return plain data for config.json."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, document: object, where: str = "config.json") -> Settings:
        """Read what `as_json` wrote.

        Raises:
            DamagedInputError: the document is something else.
        """
        try:
            given = dict(document)  # type: ignore[call-overload]
            tuples = ("experts", "weights", "linears", "embeddings", "norms")
            given |= {key: tuple(given[key]) for key in tuples if given.get(key) is not None}
            if given.get("router") is not None:
                given["router"] = RouterShape(**given["router"])
            found = cls(**given)
            found.check()
        except (TypeError, ValueError, KeyError, RecipeError) as cause:
            raise DamagedInputError(
                f"its `smile` section cannot be read ({printable(str(cause))})",
                where=where,
                fix="upscale again, with this version of deltasmith",
            ) from cause
        return found

    def check(self) -> None:
        """Refuse numbers that make no mixture.

        Raises:
            RecipeError: naming the option and its range.
        """
        count = len(self.experts)
        if count < 1:
            raise RecipeError("a mixture needs at least one expert", fix="name one")
        if not 1 <= self.top_k <= count:
            raise RecipeError(
                f"--top-k is {self.top_k}, and there are {count} experts", fix=f"use 1 to {count}"
            )
        if self.router_rank < 1:
            raise RecipeError(f"--router-rank is {self.router_rank}", fix="use 1 or more")
        if (self.expert_rank is None) == (self.density is None):
            raise RecipeError(
                "an expert has a rank or a density, and exactly one of them",
                fix="give --expert-rank or --density",
            )
        if self.expert_rank is not None and self.expert_rank != DENSE and self.expert_rank < 1:
            raise RecipeError(
                f"--expert-rank is {self.expert_rank}", fix="use 1 or more, or -1 for whole deltas"
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise RecipeError(f"--density is {self.density}", fix="use a fraction above 0, at most 1")
        if self.weights is not None and len(self.weights) != count:
            raise RecipeError(
                f"{len(self.weights)} weights are given for {count} experts", fix="give one for each"
            )
        _refuse_endless(self.weights or (), self.experts)
        if self.router is not None:
            self.router.check()


def router_tensors(shape: RouterShape, experts: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a router's tensors, all float32.

    >>> list(router_tensors(RouterShape(8, 16), 3).values())
    [(16, 8), (16,), (16, 16), (16,), (3, 16), (3,)]
    """
    sizes = pairwise((shape.width, shape.hidden, shape.hidden, experts))
    found: dict[str, tuple[int, ...]] = {}
    for number, (columns, rows) in enumerate(sizes):
        found |= {f"{ROUTER}.weight_{number}": (rows, columns), f"{ROUTER}.bias_{number}": (rows,)}
    return found


def added_parameters(rows: int, columns: int, settings: Settings, *, bias: bool = False) -> int:
    """Count what a (rows, columns) linear gains: T · (router rank · in + rank · (in + out)), and T · out biases.

    T is the number of experts; dense experts (-1) take in · out each.

    >>> added_parameters(4096, 14336, Settings(("math",), router_rank=8, expert_rank=8))
    262144
    """
    rank = settings.rank(rows, columns)
    expert = rows * columns if rank == DENSE else rank * (rows + columns)
    return len(settings.experts) * (settings.router_rank * columns + expert + (rows if bias else 0))


def config_document(base: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the config.json of a mixture over a model whose config.json is `base`.

    `base` is kept whole under `base_config`; what tools look for at the top (`torch_dtype`, `tokenizer_class`)
    is repeated there. The names under `architectures` are transformers' with "Smile" before them.
    """
    names: Iterable[str] = base.get("architectures") or ()
    document: dict[str, Any] = {"architectures": [f"Smile{name}" for name in names], "model_type": MODEL_TYPE}
    document |= {key: base[key] for key in ("dtype", "torch_dtype", "tokenizer_class") if key in base}
    return document | {"base_config": dict(base), "smile": settings.as_json()}


def weights_of(given: Mapping[str, float] | Sequence[float], experts: Sequence[str]) -> tuple[float, ...]:
    """Return one weight per expert, in order, from a list or from labels (those not named get 0).

    Raises:
        RecipeError: a label that no expert has, another number of weights than of experts, or one that is not finite.
    """
    if isinstance(given, Mapping):
        unknown = [label for label in given if label not in experts]
        if unknown:
            known = ", ".join(map(printable, experts))
            raise RecipeError(f"no expert is labelled {printable(unknown[0])!r}", fix=f"use one of: {known}")
        found = tuple(float(given.get(label, 0.0)) for label in experts)
    else:
        found = tuple(float(weight) for weight in given)
    if len(found) != len(experts):
        raise RecipeError(
            f"{len(found)} weights are given for {len(experts)} experts",
            fix="give one for each, or a mapping",
        )
    _refuse_endless(found, experts)
    return found


def _refuse_endless(weights: Sequence[float], experts: Sequence[str]) -> None:
    for label, weight in zip(experts, weights, strict=True) if weights else ():
        if not abs(weight) <= _LARGEST:  # false for nan, too
            raise RecipeError(f"the weight of {printable(label)} is {weight}", fix="give finite weights")
