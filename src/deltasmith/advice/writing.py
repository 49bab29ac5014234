"""The recipe as a file: paths as seen from its folder, written whole, over nothing unless asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltasmith.errors import RefusedError, ResourceError, printable
from deltasmith.formats.opening import split_label
from deltasmith.recipe.yaml_file import to_yaml

__all__ = ["recipe_text", "refuse_occupied", "write_recipe"]


def refuse_occupied(out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a place that cannot be written or holds something that is to stay."""
    if not out.parent.is_dir():
        raise ResourceError("the folder does not exist", where=str(out.parent), fix="make it first")
    if out.is_dir():
        raise RefusedError("it is a folder", where=str(out), fix="name a file with --out")
    if out.exists() and not overwrite:
        raise RefusedError(f"{printable(str(out))} is there already", fix="give --overwrite or another --out")


def recipe_text(recipe: Mapping[str, Any], head: str) -> str:
    """Return the recipe as YAML under a comment."""
    lines = "".join(f"# {line}\n" for line in head.splitlines())
    return f"{lines}{to_yaml(dict(recipe))}"


def write_recipe(recipe: Mapping[str, Any], head: str, out: Path) -> None:
    """Write the recipe with paths that count from `out`'s folder; the file appears whole or not at all."""
    moved = {**recipe, "base": _seen_from(str(recipe["base"]), out.parent)}
    moved["models"] = [
        {**model, "model": _seen_from(str(model["model"]), out.parent)} for model in recipe["models"]
    ]
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_text(recipe_text(moved, head), encoding="utf-8")
        partial.replace(out)
    except OSError as cause:
        partial.unlink(missing_ok=True)
        raise ResourceError(f"it cannot be written ({cause.strerror})", where=str(out)) from cause


def _seen_from(source: str, folder: Path) -> str:
    """Return a path as it reads from `folder`; a hub id, or a path that is absolute, stays as it is."""
    place, label = split_label(source)
    if Path(place).is_absolute() or not Path(place).exists():
        return source
    path = Path(os.path.relpath(place, folder)).as_posix()
    path = path if path.startswith(".") else f"./{path}"
    return path if label is None else f"{path}#{label}"
