"""The manifest beside a packed delta, and the hashes of what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltasmith import __version__
from deltasmith.codecs.catalogue import codec_tree
from deltasmith.engine.workers import Stop
from deltasmith.formats.array_file import Entry
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.manifest import Lineage, Manifest, TensorRecord
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.packed import PACKED_NAME
from deltasmith.formats.packed_document import Document
from deltasmith.recipe.publication import input_record
from deltasmith.table.dtypes import BY_CODE

__all__ = ["hash_files", "manifest_of"]

Models = Sequence[tuple[str, OpenedModel]]


def hash_files(models: Models, stop: Stop) -> dict[str, dict[str, str]]:
    """Return label → file name → sha256 of every input file, until asked to stop."""
    return {label: {s.name: sha256_of(s.path) for s in m.files if not stop.asked} for label, m in models}


def manifest_of(
    document: Document,
    models: Models,
    hashes: Mapping[str, Mapping[str, str]],
    entries: Sequence[Entry],
    warnings: Sequence[str],
) -> bytes:
    """Write down what was packed from what, and the hash of every array: `verify` checks them."""
    codecs = {
        name: codec_tree(r.codec) for tensors in document.deltas.values() for name, r in tensors.items()
    }
    return Manifest(
        __version__,
        {"pack": {"base": document.base.name, "codecs": codecs}},
        0,
        [input_record(label, model.name, model, hashes.get(label, {})) for label, model in models],
        Lineage("base", tuple(document.deltas), "pack"),
        {entry.name: _array(entry) for entry in entries},
        tuple(warnings),
    ).encode()


def _array(entry: Entry) -> TensorRecord:
    return TensorRecord(BY_CODE[entry.code].name, entry.shape, PACKED_NAME, entry.xxh3_128, "packed")
