"""Looking into a packed delta: sizes, ratios and errors, per tensor, layer, projection and codec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from deltasmith.codecs.catalogue import codec_text
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.hub import resolve
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import Packed, is_packed, open_packed
from deltasmith.formats.packed_document import TensorRecord
from deltasmith.formats.trainer_delta import is_trainer_delta
from deltasmith.table.names import group_of

__all__ = ["Inspection", "Line", "inspect"]

Grouping = Literal["tensor", "layer", "projection", "codec", "model"]
_BIT16 = 2


@dataclass(frozen=True)
class Line:
    """One tensor, or a group of them: what it takes and how near it comes."""

    name: str
    codec: str
    tensors: int
    elements: int
    nbytes: int
    squared_norm: float
    squared_error: float

    @property
    def bits(self) -> float:
        """Return stored bits per element."""
        return 8 * self.nbytes / self.elements if self.elements else 0.0

    @property
    def ratio(self) -> float:
        """Return stored bytes over bytes in 16 bits an element."""
        return self.nbytes / (_BIT16 * self.elements) if self.elements else 0.0

    @property
    def relative_error(self) -> float:
        """Return ‖δ − δ̂‖ / ‖δ‖ of what was measured; 0 where decoding is exact."""
        return (self.squared_error / self.squared_norm) ** 0.5 if self.squared_norm else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        shown = {key: value for key, value in vars(self).items() if not key.startswith("squared")}
        return {**shown, "bits": self.bits, "ratio": self.ratio, "relative_error": self.relative_error}


@dataclass(frozen=True)
class Inspection:
    """Everything that a container tells without its base."""

    packed: Packed
    label: str
    lines: tuple[Line, ...]
    shared: int = 0
    """Bytes of arrays that several deltas share, as often as they are counted twice."""

    @property
    def ratio(self) -> float:
        """Return the file's bytes over those of all its models in 16 bits an element, as `pack` tells it."""
        elements = sum(
            r.spec.size for tensors in self.packed.document.deltas.values() for r in tensors.values()
        )
        return self.nbytes / (_BIT16 * elements) if elements else 0.0

    @property
    def nbytes(self) -> int:
        """Count the bytes of the container's file."""
        return sum(source.nbytes for source in self.packed.sources)

    def by(self, group: Grouping) -> list[Line]:
        """Combine the lines of tensors into groups; in the one of `model`, arrays that deltas share count once."""
        if group == "tensor":
            return list(self.lines)
        groups: dict[str, list[Line]] = {}
        for line in self.lines:
            key = line.codec if group == "codec" else group_of(line.name, group)
            groups.setdefault(key, []).append(line)
        combined = [_combined(name, members) for name, members in groups.items()]
        if group == "model":
            return [replace(line, nbytes=line.nbytes - self.shared) for line in combined]
        return combined

    def as_json(self) -> dict[str, Any]:
        """Return all groupings as plain data."""
        base = self.packed.base
        return {
            "label": self.label,
            "labels": list(self.packed.labels),
            "base": {"name": base.name, "revision": base.revision, "fingerprint": base.fingerprint},
            "bytes": self.nbytes,
            "ratio": self.ratio,
            "notes": list(self.packed.document.notes),
            **{
                g: [line.as_json() for line in self.by(g)]
                for g in ("model", "codec", "layer", "projection", "tensor")
            },
        }


def inspect(packed: str | Path) -> Inspection:
    """Read what a packed delta (`PATH`, or `PATH#LABEL`) takes and how near it comes; no base is needed.

    Arrays that several deltas share count in each of them, and once in the model as a whole.

    Raises:
        DamagedInputError: damaged or of a newer version. RefusedError: no packed delta, or a trainer's.
    """
    opened = open_model(str(packed)) if "#" in str(packed) else None
    if opened is not None and opened.packed is not None:
        container = opened.packed.packed
        labels: tuple[str, ...] = (opened.packed.label,)
    else:
        container = _container(packed)
        labels = container.labels
    sizes = {name: spec.nbytes for name, spec in container.file.specs.items()}
    lines = tuple(
        _line(name, record, sizes)
        for label in labels
        for name, record in container.document.deltas[label].items()
    )
    used = Counter(
        array
        for label in labels
        for record in container.document.deltas[label].values()
        for array in record.arrays.values()
    )
    shared = sum((count - 1) * sizes[array] for array, count in used.items())
    return Inspection(container, ", ".join(labels), lines, shared)


def _container(packed: str | Path) -> Packed:
    path = Path(packed) if Path(packed).exists() else resolve(str(packed)).path
    if path.is_dir() and is_trainer_delta(path):
        raise RefusedError(
            "a trainer's delta: the bytes that changed, without codecs or errors to show",
            where=printable(str(packed)),
            fix="unpack it, with --base",
        )
    if not is_packed(path):
        raise RefusedError(
            "not a packed delta",
            where=printable(str(packed)),
            fix="give a folder that `deltasmith pack` wrote",
        )
    return open_packed(path)


def _line(name: str, record: TensorRecord, sizes: Mapping[str, int]) -> Line:
    nbytes = sum(sizes[array] for array in record.arrays.values())
    norm, error = record.squared_norm or 0.0, record.squared_error or 0.0
    return Line(name, codec_text(record.codec), 1, record.spec.size, nbytes, norm, error)


def _combined(name: str, members: list[Line]) -> Line:
    codecs = list(dict.fromkeys(line.codec for line in members))
    return Line(
        name,
        codecs[0] if len(codecs) == 1 else f"{len(codecs)} codecs",
        len(members),
        sum(line.elements for line in members),
        sum(line.nbytes for line in members),
        sum(line.squared_norm for line in members),
        sum(line.squared_error for line in members),
    )
