"""What a tensor's name tells: its layer, its depth in the stack, its projection; no table of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["Depths", "group_of", "layer_of", "matches", "numbered", "projection_of"]

_LAYER = re.compile(r"^(?P<stack>.*?)(?:^|[._:/])(?P<number>\d+)(?=[._:/])")
_FIRST = ("embed", "wte", "wpe", "word_embedding", "patch", "conv_in", "stem")


def layer_of(name: str) -> tuple[str, int] | None:
    """Split off the first number that is a whole component of `name`: (stack before it, layer number).

    >>> layer_of("model.layers.12.mlp.experts.3.w1.weight")
    ('model.layers', 12)
    >>> layer_of("lm_head.weight") is None
    True
    """
    found = _LAYER.match(name)
    return (found["stack"], int(found["number"])) if found else None


def projection_of(name: str) -> str:
    """Return the name with every number component replaced by `*`: the kind of tensor within its layer.

    >>> projection_of("model.layers.12.mlp.experts.3.w1.weight")
    'model.layers.*.mlp.experts.*.w1.weight'
    """
    return re.sub(r"(?<![^._:/])\d+(?=[._:/])", "*", name)


def group_of(name: str, by: str) -> str:
    """Return what a tensor is counted under: by "layer" (stack and number), "projection" or "model" (`all`).

    A tensor outside every stack is a layer of its own.

    >>> group_of("model.layers.2.mlp.up_proj.weight", "layer"), group_of("lm_head.weight", "layer")
    ('model.layers.2', 'lm_head.weight')
    """
    if by == "model":
        return "all"
    if by == "projection":
        return projection_of(name)
    layer = layer_of(name)
    return f"{layer[0]}.{layer[1]}" if layer else name


def matches(glob: str, name: str) -> bool:
    """Tell whether a shell-style glob (`*`, `?`, `[...]`, case-sensitive) matches the whole name."""
    return fnmatchcase(name, glob)


def numbered(names: Iterable[str], reserved: Iterable[str] = ()) -> list[str]:
    """Return the names, those that come twice (or are reserved) with their position behind them; none twice.

    >>> numbered(["a", "a", "a-0", "b"]), numbered(["base"], reserved=["base"])
    (['a-0-0', 'a-1', 'a-0', 'b'], ['base-0'])
    """
    given = list(names)
    taken = {*reserved, *(name for name in given if given.count(name) == 1)}
    found = []
    for position, name in enumerate(given):
        label = name
        while given.count(name) > 1 or name in reserved:
            label = f"{label}-{position}"
            if label not in taken:
                break
        taken.add(label)
        found.append(label)
    return found


@dataclass(frozen=True)
class Depths:
    """How deep each tensor lies: 0 at the first layer of its stack, 1 at the last.

    Each stack (`model.layers`, `visual.blocks`) has its own scale. A tensor outside every stack lies at 0 when
    its name says it comes first (embeddings, patches, stems) and at 1 otherwise (final norms, heads).
    A stack of one layer lies at 0.
    """

    last: dict[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Depths:
        """Learn the last layer number of every stack from all names of a model."""
        last: dict[str, int] = {}
        for name in names:
            if layer := layer_of(name):
                last[layer[0]] = max(layer[1], last.get(layer[0], 0))
        return cls(last)

    def __call__(self, name: str) -> float:
        """Return the depth of `name`, in [0, 1]."""
        if layer := layer_of(name):
            last = self.last.get(layer[0], 0)
            return layer[1] / last if last else 0.0
        return 0.0 if any(word in name.lower() for word in _FIRST) else 1.0
