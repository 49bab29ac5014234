"""The document inside a packed delta: which base, which tensors, which codec made which arrays, and their hashes.

It is one JSON object, stored as the array `deltasmith.document`; docs/format.md describes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deltasmith.codecs.catalogue import codec_from, codec_tree
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.errors import DamagedInputError, RecipeError, printable
from deltasmith.formats.json_file import refuse_constant, unique_keys
from deltasmith.formats.safetensors_header import check_name
from deltasmith.kernels.encode import ENCODABLE
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

__all__ = [
    "DOCUMENT",
    "FORMAT",
    "VERSION",
    "BaseRecord",
    "Document",
    "TensorRecord",
    "is_label",
    "read_document",
]

FORMAT = "deltasmith-packed"
VERSION = 1
DOCUMENT = "deltasmith.document"
_FETCH = "fetch or pack it again"
_MAX_DIMENSION = 1 << 48
_MAX_LABEL = 200
_LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """The model a delta belongs to: what it is called, and the fingerprint of its tensors."""

    name: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One packed tensor of the fine-tuned model.

    `arrays` maps the codec's array names to those in the file. `squared_norm` and `squared_error` are Σδ² and
    Σ(δ − δ̂)², None where nothing was subtracted. `xxh3_128` is the hash of the fine-tuned tensor where decoding
    gives it back to the bit, None where it does not.
    """

    spec: Spec
    codec: Codec
    arrays: Mapping[str, str]
    squared_norm: float | None = None
    squared_error: float | None = None
    xxh3_128: str | None = None
    against_base: bool = True

    @property
    def relative_error(self) -> float:
        """Return ‖δ − δ̂‖ / ‖δ‖: 0 where decoding is exact."""
        if not self.squared_error:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else math.inf


@dataclass(frozen=True)
class Document:
    """All that a packed delta says of itself. `deltas` maps labels to tensors; `sources` to where each came from."""

    deltasmith: str
    base: BaseRecord
    deltas: Mapping[str, Mapping[str, TensorRecord]]
    hashes: Mapping[str, str]
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def encode(self) -> bytes:
        """Return the document's bytes: sorted keys, no white space to speak of."""
        codecs: list[dict[str, Any]] = []
        deltas = {
            label: {
                "source": dict(self.sources.get(label, {})),
                "tensors": {n: _record_json(r, codecs) for n, r in sorted(tensors.items())},
            }
            for label, tensors in self.deltas.items()
        }
        tree = {
            "format": FORMAT,
            "version": self.version,
            "deltasmith": self.deltasmith,
            "base": {
                "name": self.base.name,
                "revision": self.base.revision,
                "fingerprint": self.base.fingerprint,
            },
            "codecs": codecs,
            "deltas": deltas,
            "hashes": dict(sorted(self.hashes.items())),
            "notes": list(self.notes),
        }
        return json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _record_json(record: TensorRecord, codecs: list[dict[str, Any]]) -> dict[str, Any]:
    tree = codec_tree(record.codec)
    if tree not in codecs:
        codecs.append(tree)
    return {
        "dtype": record.spec.dtype.name,
        "shape": list(record.spec.shape),
        "codec": codecs.index(tree),
        "arrays": dict(sorted(record.arrays.items())),
        "squared_norm": record.squared_norm,
        "squared_error": record.squared_error,
        "xxh3_128": record.xxh3_128,
        "against_base": record.against_base,
    }


class _Reader:
    """Reads one document; whatever is wrong with it is said with the place it is in."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, problem: str) -> DamagedInputError:
        return DamagedInputError(f"the packed delta's document {problem}", where=self.where, fix=_FETCH)

    def get(self, tree: Any, key: str, kind: type | tuple[type, ...], of: str = "") -> Any:
        value = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(f"has no proper {printable(key, 60)}{f' for {printable(of, 80)}' if of else ''}")
        return value


def read_document(data: bytes, where: str) -> Document:
    """Parse and check a document.

    Raises:
        DamagedInputError: it is not JSON, of another format, of a newer version, or anything in it is not as the
            format says.
    """
    read = _Reader(where)
    try:
        tree = json.loads(data.decode(), object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as cause:
        raise read.fail(f"is not JSON ({printable(str(cause), 80)})") from cause
    if read.get(tree, "format", str) != FORMAT:
        raise read.fail("is of another format")
    refuse_newer(read.get(tree, "version", int), str(tree.get("deltasmith")), where)
    codecs = [_codec(entry, read) for entry in read.get(tree, "codecs", list)]
    base = read.get(tree, "base", dict)
    revision = base.get("revision")
    ground = BaseRecord(
        read.get(base, "name", str, "base"),
        revision if isinstance(revision, str) else None,
        read.get(base, "fingerprint", str, "base"),
    )
    hashes = read.get(tree, "hashes", dict)
    if not all(isinstance(value, str) for value in hashes.values()):
        raise read.fail("has hashes that are not text")
    deltas, sources = {}, {}
    for label, entry in read.get(tree, "deltas", dict).items():
        tensors = read.get(entry, "tensors", dict, label)
        if not is_label(label):
            raise read.fail(f"has a delta labelled {printable(label, 60)!r}, which is no label")
        for name in tensors:
            check_name(name, where)
        deltas[label] = {name: _record(name, record, codecs, read) for name, record in tensors.items()}
        sources[label] = read.get(entry, "source", dict, label)
    if not deltas:
        raise read.fail("holds no delta")
    notes = tuple(read.get(tree, "notes", list))
    if not all(isinstance(note, str) for note in notes):
        raise read.fail("has notes that are not text")
    return Document(str(tree.get("deltasmith")), ground, deltas, hashes, sources, notes, tree["version"])


def is_label(text: str) -> bool:
    """Tell whether a delta may be called so: printable, not empty, at most 200 characters, without `#`."""
    return text.isprintable() and 0 < len(text) <= _MAX_LABEL and "#" not in text


def refuse_newer(version: int, writer: str, where: str) -> None:
    """Refuse a container that only a later deltasmith understands, and versions that never were."""
    if version < 1:
        raise DamagedInputError(f"a packed delta of format version {version}", where=where, fix=_FETCH)
    if version > VERSION:
        raise DamagedInputError(
            f"a packed delta of format version {version}, written by deltasmith {printable(writer, 40)}; this one "
            f"reads version {VERSION}",
            where=where,
            fix="install a newer deltasmith",
        )


def _codec(tree: Any, read: _Reader) -> Codec:
    try:
        if not isinstance(tree, dict):
            raise RecipeError("no mapping")
        return codec_from(tree)
    except RecipeError as cause:
        raise read.fail(f"names a codec that is not known here ({cause.what})") from cause


def _record(name: str, tree: Any, codecs: list[Codec], read: _Reader) -> TensorRecord:
    dtype = DTYPES.get(read.get(tree, "dtype", str, name))
    shape = read.get(tree, "shape", list, name)
    number = read.get(tree, "codec", int, name)
    arrays = read.get(tree, "arrays", dict, name)
    whole = all(type(n) is int and 0 <= n < _MAX_DIMENSION for n in shape)
    if dtype is None or not whole or len(shape) > 32 or not 0 <= number < len(codecs):
        raise read.fail(f"describes {printable(name, 120)} by a type, shape or codec that does not exist")
    if not all(isinstance(value, str) for value in arrays.values()):
        raise read.fail(f"names arrays of {printable(name, 120)} by something that is not text")
    sums = [tree.get("squared_norm"), tree.get("squared_error")]
    if not all(s is None or (isinstance(s, (int, float)) and 0 <= s <= _LARGEST) for s in sums):
        raise read.fail(f"tells impossible errors of {printable(name, 120)}")
    digest = tree.get("xxh3_128")
    spec, codec = Spec(name, tuple(shape), dtype), codecs[number]
    against = read.get(tree, "against_base", bool, name)
    _refuse_pairing(spec, codec, against, read)
    return TensorRecord(
        spec, codec, arrays, sums[0], sums[1], digest if isinstance(digest, str) else None, against
    )


def _refuse_pairing(spec: Spec, codec: Codec, against_base: bool, read: _Reader) -> None:
    """Refuse a codec that could not have written such a tensor."""
    if codec.domain == "delta" and not against_base:
        raise read.fail(f"has a delta for {printable(spec.name, 120)}, and nothing to add it to")
    if codec.domain != "stored" and spec.dtype.name not in ENCODABLE:
        raise read.fail(f"has values for {printable(spec.name, 120)}, and its type is {spec.dtype}")
    if problem := codec.refusal(Cell(spec, spec if against_base else None)):
        raise read.fail(f"names a codec that cannot have coded {printable(spec.name, 120)}: {problem}")
