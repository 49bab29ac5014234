"""What an extraction or a merge of adapters has written: ranks and errors by tensor and kind, and the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltasmith import __version__
from deltasmith.formats.adapter import WEIGHTS
from deltasmith.formats.adapter_writer import PairWritten
from deltasmith.formats.array_file import Entry
from deltasmith.formats.manifest import Lineage, Manifest, TensorRecord
from deltasmith.formats.opening import OpenedModel
from deltasmith.recipe.publication import input_record
from deltasmith.table.dtypes import BY_CODE
from deltasmith.table.names import projection_of

__all__ = ["ExtractResult", "KindRow", "adapter_manifest"]


@dataclass(frozen=True)
class KindRow:
    """The tensors of one kind: how many, their ranks, Σδ² and Σ(δ − δ̂)²."""

    kind: str
    tensors: int
    ranks: tuple[int, int]
    squared_norm: float
    squared_error: float

    @property
    def relative_error(self) -> float:
        """Return ‖δ − δ̂‖ / ‖δ‖ over all tensors of the kind; 0 where nothing changed."""
        return (self.squared_error / self.squared_norm) ** 0.5 if self.squared_norm else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "kind": self.kind,
            "tensors": self.tensors,
            "ranks": list(self.ranks),
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True)
class ExtractResult:
    """What was extracted: every pair of factors, what was saved whole, what was left out on demand."""

    out: str
    pairs: Mapping[str, PairWritten]
    whole: tuple[str, ...]
    dropped: tuple[str, ...]
    nbytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float:
        """Return ‖δ − δ̂‖ / ‖δ‖ over all tensors in factors."""
        return _row("", list(self.pairs.values())).relative_error

    def kinds(self) -> list[KindRow]:
        """Return one row for every kind of tensor: all `up_proj` of all layers are one kind."""
        groups: dict[str, list[PairWritten]] = {}
        for name, pair in self.pairs.items():
            groups.setdefault(projection_of(name), []).append(pair)
        return [_row(kind, group) for kind, group in groups.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data, tensor by tensor."""
        tensors = {
            name: {"rank": p.rank, "relative_error": _row("", [p]).relative_error}
            for name, p in self.pairs.items()
        }
        return {
            "out": self.out,
            "bytes": self.nbytes,
            "seconds": self.seconds,
            "relative_error": self.relative_error,
            "kinds": [row.as_json() for row in self.kinds()],
            "tensors": tensors,
            "whole": list(self.whole),
            "dropped": list(self.dropped),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def _row(kind: str, pairs: Sequence[PairWritten]) -> KindRow:
    ranks = [p.rank for p in pairs] or [0]
    norm, error = sum(p.squared_norm for p in pairs), sum(p.squared_error for p in pairs)
    return KindRow(kind, len(pairs), (min(ranks), max(ranks)), norm, error)


def adapter_manifest(
    models: Sequence[tuple[str, OpenedModel]],
    hashes: Mapping[str, Mapping[str, str]],
    entries: Sequence[Entry],
    kind: str,
    told: Mapping[str, Any],
) -> bytes:
    """Write down what an adapter was made from, and the hash of every tensor in it: `verify` checks them."""
    inputs = [input_record(label, model.name, model, hashes.get(label, {})) for label, model in models]
    tensors = {
        e.name: TensorRecord(BY_CODE[e.code].name, e.shape, WEIGHTS, e.xxh3_128, "packed") for e in entries
    }
    parents = tuple(label for label, _ in models if label != "base")
    return Manifest(
        __version__, {kind: dict(told)}, 0, inputs, Lineage("base", parents, kind), tensors
    ).encode()
