"""What tells one model from another before it is loaded: the hashes of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deltasmith import api
from deltasmith.features.checkpoints import digest
from deltasmith.features.descent import Given
from deltasmith.features.graph import Node
from deltasmith.formats.fingerprint import sha256_of

__all__ = ["identity_of", "identity_of_folder"]

_DECIDING = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_INDEPENDENT = ("manifest.json", "model.safetensors.index.json", "README.md")
_LARGEST = 256 << 20


def identity_of(node: Node) -> str:
    """Hash a model's weight files, its config and its tokenizer; a recipe, and the state of every file it reads.

    Raises what `open_model` and `plan` raise.
    """
    given = Given(node.label, str(node.source))
    if given.recipe is not None:
        return digest("recipe", api.plan(given.source).hash)
    weights = sorted((Path(file.path).name, sha256_of(file.path, file.nbytes)) for file in given.files)
    folder = given.opened.folder
    return digest("files", weights, {} if folder is None else _beside(folder))


def identity_of_folder(folder: Path) -> str:
    """Hash every file of a dictionary's folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest("dictionary", [(path.name, sha256_of(path)) for path in files])


def _beside(folder: Path) -> dict[str, str]:
    """Hash the small files that decide how a model answers."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in _DECIDING
        and path.name not in _INDEPENDENT
        and path.is_file()
        and path.stat().st_size <= _LARGEST
    }
