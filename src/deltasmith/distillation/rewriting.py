"""A packed delta written anew with some arrays replaced; every other array is copied byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltasmith import __version__
from deltasmith.codecs.protocol import Arrays, Coded, Ending, Stream
from deltasmith.formats.array_file import Entry
from deltasmith.formats.hashing import hash_bytes
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.manifest import InputFile, InputRecord, Lineage, Manifest
from deltasmith.formats.manifest import TensorRecord as ArrayRecord
from deltasmith.formats.packed import PACKED_NAME, PackedDelta
from deltasmith.formats.packed_document import Document, TensorRecord
from deltasmith.formats.packed_writer import PackedOutput
from deltasmith.formats.publish import side_files
from deltasmith.table.dtypes import BY_CODE

__all__ = ["Rewritten", "rewrite"]

_PIECE = 8 << 20


@dataclass(frozen=True)
class Rewritten:
    """What changes in one tensor: these arrays, and with them Σδ² and Σ(δ − δ̂)²."""

    arrays: Arrays
    squared_norm: float
    squared_error: float


def rewrite(
    delta: PackedDelta,
    out: Path,
    changed: Mapping[str, Rewritten],
    source: Mapping[str, Any],
    *,
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write one delta of a container to the folder `out`, with the arrays of `changed` in place of its own.

    `source` becomes what the document says of the delta's origin. Config and tokenizer come along. The folder
    appears whole or not at all. Returns warnings; raises what `PackedOutput.open` and `publish` raise.
    """
    key = hash_bytes(json.dumps([delta.packed.document.hashes, dict(source)], sort_keys=True).encode())
    records: dict[str, TensorRecord] = {}
    with PackedOutput.open(out, key, delta.names, inputs=inputs, overwrite=overwrite) as output:
        for name, record in delta.tensors.items():
            new = changed.get(name)
            if name not in output.finished:
                _copy(delta, name, {} if new is None else new.arrays, output)
            records[name] = replace(record, arrays=output.finished[name].arrays)
            if new is not None:
                records[name] = replace(
                    records[name], squared_norm=new.squared_norm, squared_error=new.squared_error
                )
        old = delta.packed.document
        document = Document(
            __version__, old.base, {delta.label: records}, output.hashes(), {delta.label: source}, old.notes
        )
        return output.publish(document, _files(delta), lambda entries: _manifest(delta, source, entries))


def _copy(delta: PackedDelta, name: str, new: Arrays, output: PackedOutput) -> None:
    source = delta.source(name)
    kept = [spec for part, spec in source.specs.items() if part not in new]
    output.begin(name, [Stream(spec.name, spec.dtype.name, spec.shape) for spec in kept])
    for spec in kept:
        step = _PIECE // spec.dtype.itemsize
        for start in range(0, spec.size, step):
            output.append(Coded({spec.name: source.read(spec.name, start, min(spec.size, start + step))}))
    output.end(Ending(new))


def _files(delta: PackedDelta) -> Mapping[str, bytes | Path]:
    folder = delta.packed.folder
    return side_files(folder, folder).files


def _manifest(delta: PackedDelta, source: Mapping[str, Any], entries: Sequence[Entry]) -> bytes:
    """Return the manifest that lies beside the delta with what was done to it and the arrays' new hashes."""
    folder = delta.packed.folder
    path = folder / "manifest.json" if folder is not None else None
    tree = read_json_object(path) if path is not None and path.is_file() else {}
    lineage = tree.get("lineage") or {"base": "base", "parents": [delta.label], "merge": "pack"}
    arrays = {
        entry.name: ArrayRecord(BY_CODE[entry.code].name, entry.shape, PACKED_NAME, entry.xxh3_128, "packed")
        for entry in entries
    }
    return Manifest(
        __version__,
        {**tree.get("recipe", {}), "distilled": source.get("distilled", [])},
        0,
        [_input(record) for record in tree.get("inputs", [])],
        Lineage(lineage["base"], tuple(lineage["parents"]), lineage["merge"]),
        arrays,
        tuple(tree.get("warnings", [])),
    ).encode()


def _input(tree: Mapping[str, Any]) -> InputRecord:
    files = {name: InputFile(int(f["bytes"]), f.get("sha256")) for name, f in tree.get("files", {}).items()}
    return InputRecord(tree["label"], tree["source"], tree.get("revision"), files)
