"""Is a finished model what it says it is: files, headers, hashes, finite values.

Nothing is loaded and nothing is believed: the folder may come from anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from deltasmith.errors import DamagedInputError, VerificationError, printable
from deltasmith.formats.hashing import file_chunks
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.layout import INDEX_NAME
from deltasmith.formats.output import JOURNAL_NAME, MANIFEST_NAME
from deltasmith.formats.safetensors_header import Header, read_header
from deltasmith.formats.sniff import open_regular
from deltasmith.kernels.encode import count_stored_nonfinite
from deltasmith.table.checkpoint import Spec

__all__ = ["Report", "UnverifiedError", "examine", "verify"]

_SHOWN = 5
_JSON_LIMIT = 1 << 29  # the manifest of 100,000 tensors has 20 MB


@dataclass(frozen=True)
class Report:
    """What was checked and what was found. `problems` is empty for a good model; `notes` never fail it."""

    folder: str
    shards: int
    tensors: int
    nbytes: int
    hashed: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.problems


class UnverifiedError(VerificationError):
    """A model is not what it says it is; `report` holds all problems, the message the first ones."""

    def __init__(self, report: Report) -> None:
        """Build the message from the report."""
        self.report = report
        count = len(report.problems)
        more = f"; and {count - _SHOWN} more" if count > _SHOWN else ""
        super().__init__(
            f"{count} problem{'s' if count > 1 else ''}: {'; '.join(report.problems[:_SHOWN])}{more}",
            where=report.folder,
            fix="merge again, or fetch the model again",
        )


@dataclass
class _Findings:
    """Problems and notes in the order they are found."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def json_object(self, path: Path) -> dict[str, Any] | None:
        """Read a JSON file; damage becomes a problem and None."""
        try:
            return read_json_object(path, _JSON_LIMIT)
        except DamagedInputError as error:
            self.problems.append(str(error))
            return None


def verify(folder: Path, *, threads: int = 1) -> Report:
    """Examine a model; raise UnverifiedError, a VerificationError, unless all is well."""
    report = examine(folder, threads=threads)
    if not report.ok:
        raise UnverifiedError(report)
    return report


def examine(folder: Path, *, threads: int = 1) -> Report:
    """Check structure, hashes (where there is a manifest) and finite values; return all that was found.

    A tensor with non-finite values is a problem, unless the manifest's recipe says `nonfinite: keep`. Raises
    DamagedInputError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DamagedInputError(
            "there is no such folder", where=printable(os.fspath(folder)), fix="check the path"
        )
    found = _Findings()
    names = sorted(entry.name for entry in folder.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    _check_strays(names, found)
    with ExitStack() as stack:
        opened = _opened(folder, shards, stack, found)
        homes = _homes(opened, found)
        _check_index(folder, names, shards, homes, found)
        manifest = _manifest(folder, names, found)
        recorded = _check_manifest(manifest, opened, homes, found)
        keep = isinstance(manifest, dict) and _nonfinite_kept(manifest)
        _check_values(opened, homes, recorded, keep, threads, found)
    return Report(
        folder=printable(folder.name or os.fspath(folder)),
        shards=len(shards),
        tensors=len(homes),
        nbytes=sum(header.nbytes for _, header in opened.values()),
        hashed=recorded is not None,
        problems=tuple(found.problems),
        notes=tuple(found.notes),
    )


def _opened(
    folder: Path, shards: list[str], stack: ExitStack, found: _Findings
) -> dict[str, tuple[int, Header]]:
    """Open every shard and read its header; what cannot be read is a problem and left out."""
    opened: dict[str, tuple[int, Header]] = {}
    for shard in shards:
        try:
            fd = open_regular(folder / shard)
            stack.callback(os.close, fd)
            opened[shard] = (fd, read_header(fd, shard))
        except DamagedInputError as error:
            found.problems.append(str(error))
    if not shards:
        found.problems.append("there is no *.safetensors file")
    return opened


def _check_strays(names: list[str], found: _Findings) -> None:
    """Complain about what unfinished runs leave, and note what readers would mistake for weights."""
    for name in names:
        unfinished = name == JOURNAL_NAME or name.endswith(".tmp") or ".partial" in name
        if unfinished:
            found.problems.append(f"{printable(name)} is left from an unfinished run")
        elif name.startswith("model") and not name.endswith(".safetensors") and name != INDEX_NAME:
            found.notes.append(f"{printable(name)} is named like weights, which confuses some readers")


def _homes(opened: Mapping[str, tuple[int, Header]], found: _Findings) -> dict[str, str]:
    """Map each tensor to the shard that holds it; a tensor in two shards is a problem."""
    homes: dict[str, str] = {}
    for shard, (_, header) in opened.items():
        for name in header.specs:
            if name in homes:
                found.problems.append(f"the tensor {printable(name)} is in {homes[name]} and in {shard}")
            homes.setdefault(name, shard)
    return homes


def _check_index(
    folder: Path, names: list[str], shards: list[str], homes: Mapping[str, str], found: _Findings
) -> None:
    """Compare the index with the shards and the tensors in them, both ways."""
    if INDEX_NAME not in names:
        if len(shards) > 1:
            found.problems.append(f"there are {len(shards)} shards and no {INDEX_NAME}")
        return
    index = found.json_object(folder / INDEX_NAME)
    if index is None:
        return
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
        found.problems.append(f"{INDEX_NAME} has no weight_map from names to files")
        return
    for shard in sorted(set(listed.values()) - set(shards)):
        found.problems.append(f"{INDEX_NAME} lists {printable(shard)}, which is not there")
    for shard in sorted(set(shards) - set(listed.values())):
        found.problems.append(f"{printable(shard)} is not listed in {INDEX_NAME}")
    for name, shard in listed.items():
        if shard in shards and homes.get(name) != shard:
            found.problems.append(f"{INDEX_NAME} puts {printable(name)} in {shard}, which does not hold it")
    found.problems += [
        f"{INDEX_NAME} does not list the tensor {printable(name)}" for name in homes if name not in listed
    ]


def _manifest(folder: Path, names: list[str], found: _Findings) -> dict[str, Any] | None:
    """Read the manifest of this package; None where there is none."""
    if MANIFEST_NAME not in names:
        found.notes.append(
            f"there is no {MANIFEST_NAME}: structure and finite values were checked, hashes not"
        )
        return None
    manifest = found.json_object(folder / MANIFEST_NAME)
    if manifest is not None and (
        manifest.get("format") != 1 or not isinstance(manifest.get("tensors"), dict)
    ):
        found.problems.append(f"{MANIFEST_NAME} is not one of deltasmith, format 1")
        return None
    return manifest


def _nonfinite_kept(manifest: Mapping[str, Any]) -> bool:
    """Tell whether the recipe allowed non-finite values in the output."""
    recipe = manifest.get("recipe")
    return isinstance(recipe, dict) and recipe.get("nonfinite") == "keep"


def _check_manifest(
    manifest: Mapping[str, Any] | None,
    opened: Mapping[str, tuple[int, Header]],
    homes: Mapping[str, str],
    found: _Findings,
) -> dict[str, str] | None:
    """Compare what the manifest says of each tensor with its header; return the recorded hashes."""
    if manifest is None:
        return None
    recorded: dict[str, str] = {}
    tensors: dict[str, Any] = manifest["tensors"]
    for name, entry in tensors.items():
        if name not in homes:
            found.problems.append(f"the tensor {printable(name)} of {MANIFEST_NAME} is missing")
            continue
        spec = opened[homes[name]][1].specs[name]
        real = {"dtype": spec.dtype.name, "shape": list(spec.shape), "shard": homes[name]}
        said = entry if isinstance(entry, dict) else {}
        found.problems += [
            f"{printable(name)} has {key} {value} instead of {printable(str(said.get(key)))}"
            for key, value in real.items()
            if said.get(key) != value
        ]
        recorded[name] = str(said.get("xxh3_128"))
    found.problems += [
        f"{MANIFEST_NAME} does not know the tensor {printable(name)}" for name in homes if name not in tensors
    ]
    return recorded


def _check_values(
    opened: Mapping[str, tuple[int, Header]],
    homes: Mapping[str, str],
    recorded: Mapping[str, str] | None,
    keep: bool,
    threads: int,
    found: _Findings,
) -> None:
    """Read every tensor once: hash it, and count what is not finite."""

    def check(item: tuple[str, str]) -> list[tuple[bool, str]]:
        name, shard = item
        fd, header = opened[shard]
        try:
            digest, bad = _read_tensor(fd, header.begins[name], header.specs[name])
        except DamagedInputError as error:
            return [(True, f"{printable(name)}: {error}")]
        lines = []
        if recorded is not None and name in recorded and digest != recorded[name]:
            lines.append(
                (True, f"the bytes of {printable(name)} are not those that were written (hash differs)")
            )
        if bad:
            lines.append((not keep, f"{printable(name)} has {bad} values that are not finite"))
        return lines

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for lines in pool.map(check, homes.items()):
            for problem, line in lines:
                (found.problems if problem else found.notes).append(line)


def _read_tensor(fd: int, start: int, spec: Spec) -> tuple[str, int]:
    """Return the hash of one tensor and the number of its values that are not finite."""
    digests: list[bytes] = []
    bad = 0
    try:
        for chunk in file_chunks(fd, start, spec.nbytes):
            digests.append(xxhash.xxh3_128_digest(chunk))
            bad += count_stored_nonfinite(spec.dtype.name, np.frombuffer(chunk, np.uint8))
    except OSError as cause:
        raise DamagedInputError(f"the file cannot be read ({cause.strerror})") from cause
    return xxhash.xxh3_128_hexdigest(b"".join(digests)), bad
