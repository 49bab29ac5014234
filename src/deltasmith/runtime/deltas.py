"""What the runtime needs to know of a packed delta, and one that is held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltasmith.codecs.protocol import Arrays, Cell, Codec, Held, Source

__all__ = ["Delta", "HeldDelta", "opened"]


class Delta(Protocol):
    """Any packed delta: which tensors it has, and the codec, headers and arrays of each."""

    @property
    def names(self) -> tuple[str, ...]:
        """List the names of the fine-tuned model's tensors."""

    def cell(self, name: str) -> Cell:
        """Return the tensor as headers tell it."""

    def codec(self, name: str) -> Codec:
        """Return the codec of one tensor."""

    def source(self, name: str) -> Source:
        """Return the stored arrays of one tensor."""


@dataclass(frozen=True)
class HeldDelta:
    """A packed delta in memory: {tensor name: (codec, arrays, cell)}."""

    tensors: Mapping[str, tuple[Codec, Arrays, Cell]]

    @property
    def names(self) -> tuple[str, ...]:
        """List the tensors."""
        return tuple(self.tensors)

    def codec(self, name: str) -> Codec:
        """Return the codec of one tensor."""
        return self.tensors[name][0]

    def cell(self, name: str) -> Cell:
        """Return the tensor as headers tell it."""
        return self.tensors[name][2]

    def source(self, name: str) -> Source:
        """Return the arrays of one tensor."""
        return Held(self.tensors[name][1])


def opened(delta: Delta | str | Path) -> Delta:
    """Return a delta as it is; open a folder or file that `deltasmith pack` wrote, `FOLDER#LABEL` for one of several.

    Raises:
        RefusedError: several deltas and no label, or no such label.
        DamagedInputError: missing or damaged.
    """
    if not isinstance(delta, str | Path):
        return delta
    from deltasmith.formats.packed import open_packed

    path, label = str(delta), None
    if not Path(path).exists() and "#" in path:
        path, _, label = path.rpartition("#")
    return open_packed(path).delta(label)
