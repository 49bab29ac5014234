"""Where every byte of the output goes, decided from specs alone, before the first value is known.

A layout is a pure function of the specs and the shard size, so that tensors can be written at their offsets
in any order by any number of threads, and the same run gives the same files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType

import xxhash

from deltasmith.errors import RefusedError, printable
from deltasmith.table.checkpoint import Spec

__all__ = ["INDEX_NAME", "MAX_HEADER", "Layout", "Shard", "Slot", "natural_key", "plan_layout"]

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Bytes of JSON that safetensors readers accept at most."""

_ALIGN = 64  # where data starts: a multiple of a cache line, more than the 8 that readers ask for
_DIGITS = re.compile("([0-9]+)")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor's bytes lie: `offset` counts from the beginning of the shard file."""

    shard: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its first bytes (length and header) and its whole size; `tensors` in file order."""

    name: str
    header: bytes
    nbytes: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """All output files. `index` is the bytes of the index file, None for a model of one shard."""

    specs: Mapping[str, Spec]
    slots: Mapping[str, Slot]
    shards: tuple[Shard, ...]
    index: bytes | None

    @property
    def nbytes(self) -> int:
        """Count the bytes of all shard files."""
        return sum(shard.nbytes for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """Hash everything that a half-written output must agree on to be continued."""
        state = xxhash.xxh3_128()
        for shard in self.shards:
            state.update(shard.name.encode() + b"\0" + shard.header)
        return str(state.hexdigest())


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Return a sort key under which numbers within names count as numbers: layer 2 comes before layer 10.

    >>> sorted(["layers.10.w", "layers.2.w"], key=natural_key)
    ['layers.2.w', 'layers.10.w']
    """
    parts: list[str | tuple[int, str]] = list(_DIGITS.split(name))
    for i in range(1, len(parts), 2):
        digits = str(parts[i]).lstrip("0")
        parts[i] = (len(digits), digits)  # as good as int(), and without its limit on length
    return tuple(parts), name


def plan_layout(specs: Iterable[Spec], shard_bytes: int) -> Layout:
    """Assign every tensor a shard and an offset.

    Tensors fill shards of at most `shard_bytes` bytes of data in natural order of their names; none is
    split, so a larger one has a shard for itself. Within a shard wider element types come first: without
    holes, which readers refuse, that alone keeps every tensor aligned. Raises RefusedError for names given
    twice and for headers that no reader would accept.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, not {shard_bytes}")
    ordered = sorted(specs, key=lambda spec: natural_key(spec.name))
    by_name = {spec.name: spec for spec in ordered}
    if len(by_name) != len(ordered) or "__metadata__" in by_name:
        raise RefusedError("the output would hold two tensors of one name", where=_repeated(ordered))
    groups = _grouped(ordered, shard_bytes)
    shards: list[Shard] = []
    slots: dict[str, Slot] = {}
    for number, group in enumerate(groups):
        name = _shard_name(number, len(groups))
        group.sort(key=lambda spec: -spec.dtype.itemsize)  # stable: natural order within a width
        header = _header(group, name)
        offset = len(header)
        for spec in group:
            slots[spec.name] = Slot(number, offset, spec.nbytes)
            offset += spec.nbytes
        shards.append(Shard(name, header, offset, tuple(spec.name for spec in group)))
    index = _index(ordered, slots, shards) if len(shards) > 1 else None
    return Layout(MappingProxyType(by_name), MappingProxyType(slots), tuple(shards), index)


def _repeated(ordered: Sequence[Spec]) -> str:
    """Name the first tensor that comes twice (or takes the name that headers reserve)."""
    for one, two in pairwise(ordered):
        if one.name == two.name:
            return printable(one.name)
    return "__metadata__"


def _grouped(ordered: Sequence[Spec], shard_bytes: int) -> list[list[Spec]]:
    """Fill shards one after the other. A model without tensors still has one, empty, shard."""
    groups: list[list[Spec]] = [[]]
    filled = 0
    for spec in ordered:
        if groups[-1] and filled + spec.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    return groups


def _shard_name(number: int, count: int) -> str:
    """Name a shard as transformers does."""
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _header(group: Sequence[Spec], shard: str) -> bytes:
    """Return a shard's first bytes: the length, and the JSON padded with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in group:
        stop = start + spec.nbytes
        entries[spec.name] = {
            "dtype": spec.dtype.code,
            "shape": list(spec.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    if len(text) > MAX_HEADER:
        raise RefusedError(
            f"the header would be {len(text)} bytes long, and readers accept {MAX_HEADER}",
            where=shard,
            fix="use smaller shards",
        )
    return len(text).to_bytes(8, "little") + text


def _index(ordered: Sequence[Spec], slots: Mapping[str, Slot], shards: Sequence[Shard]) -> bytes:
    """Return the index file as transformers writes it."""
    index = {
        "metadata": {
            "total_parameters": sum(spec.size for spec in ordered),
            "total_size": sum(spec.nbytes for spec in ordered),
        },
        "weight_map": {spec.name: shards[slots[spec.name].shard].name for spec in ordered},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
