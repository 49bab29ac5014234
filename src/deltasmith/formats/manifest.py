"""manifest.json: what was merged from what, and the hash of every tensor that came out.

The same run gives the same bytes: keys are sorted, and there are no timestamps and no paths of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

__all__ = ["FORMAT", "InputFile", "InputRecord", "Lineage", "Manifest", "TensorRecord", "shown_source"]

FORMAT = 1
_ROOTED = re.compile(r"^(/|~|\\\\|[A-Za-z]:[\\/]|file:)")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that was read: its length, and its SHA-256 where it was computed or the hub gives it."""

    nbytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One input: its label in the recipe, a hub id or path, the hub's commit, and its files."""

    label: str
    source: str
    revision: str | None = None
    files: Mapping[str, InputFile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Who the output descends from: the labels of base (None without one) and parents, the merge's name."""

    base: str | None
    parents: tuple[str, ...]
    merge: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One output tensor; `origin` is `merged`, `base`, or the label of the model it was copied from."""

    dtype: str
    shape: tuple[int, ...]
    shard: str
    xxh3_128: str
    origin: str = "merged"


@dataclass(frozen=True)
class Manifest:
    """Everything in manifest.json. `recipe` is expanded; absolute paths in it shrink to their last name."""

    version: str
    recipe: Mapping[str, Any]
    seed: int
    inputs: Sequence[InputRecord]
    lineage: Lineage
    tensors: Mapping[str, TensorRecord]
    warnings: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return {
            "format": FORMAT,
            "deltasmith": self.version,
            "recipe": _without_paths(self.recipe),
            "seed": self.seed,
            "inputs": [_input(record) for record in self.inputs],
            "lineage": {
                "base": self.lineage.base,
                "parents": list(self.lineage.parents),
                "merge": self.lineage.merge,
            },
            "tensors": {
                name: {
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "shard": tensor.shard,
                    "xxh3_128": tensor.xxh3_128,
                    "from": tensor.origin,
                }
                for name, tensor in self.tensors.items()
            },
            "warnings": list(self.warnings),
        }

    def encode(self) -> bytes:
        """Return the bytes of manifest.json: sorted keys, one line per tensor so that two can be compared."""
        document = self.document()
        blocks = []
        for key in sorted(document):
            if key == "tensors" and self.tensors:
                lines = (f"    {_json(n)}: {_json(t)}" for n, t in sorted(document[key].items()))
                text = "{\n" + ",\n".join(lines) + "\n  }"
            else:
                text = json.dumps(document[key], indent=2, sort_keys=True, allow_nan=False).replace(
                    "\n", "\n  "
                )
            blocks.append(f"  {_json(key)}: {text}")
        return ("{\n" + ",\n".join(blocks) + "\n}\n").encode("ascii")


def shown_source(source: str) -> str:
    """Return what a manifest calls a source: a hub id as it is, of a path the last name only.

    >>> shown_source("/home/me/models/math/"), shown_source("./math"), shown_source("org/math")
    ('math', 'math', 'org/math')
    """
    windows = PureWindowsPath(source)
    if windows.drive:
        return windows.name or "root"
    if _ROOTED.match(source) or source.startswith(".") or source.count("/") > 1 or Path(source).exists():
        path = Path(source)
        return (path.name if path.name not in ("", "..", "~") else path.expanduser().resolve().name) or "root"
    return source


def _without_paths(value: Any) -> Any:
    """Reduce every string that is an absolute path, anywhere in a recipe, to its last name."""
    if isinstance(value, Mapping):
        return {str(key): _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    if isinstance(value, Path):
        return shown_source(str(value))
    if isinstance(value, str) and _ROOTED.match(value):
        return shown_source(value)
    return value


def _input(record: InputRecord) -> dict[str, Any]:
    """Return one input as plain JSON values."""
    return {
        "label": record.label,
        "source": shown_source(record.source),
        "revision": record.revision,
        "files": {name: {"bytes": f.nbytes, "sha256": f.sha256} for name, f in record.files.items()},
    }


def _json(value: Any) -> str:
    """Write a value in one line."""
    return json.dumps(value, sort_keys=True, allow_nan=False)
