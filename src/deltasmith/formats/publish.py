"""Which files besides the weights belong to an output, and from which single input each comes.

Nothing is merged here and nothing is interpreted but config.json: tokenizers and chat templates are copied
byte for byte from one named folder. Templates are programs; taking each from a vote, or mixing two, would
let one bad input speak for all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.json_file import read_json_object

__all__ = ["CONFIG_NAME", "SideFiles", "output_config", "side_files"]

CONFIG_NAME = "config.json"

_TOKENIZER = (
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "image_processor_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "*.tiktoken",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.bpe",
    "vocab.json",
    "vocab.txt",
)
_LICENCE = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
_LIMIT = 1 << 30  # bytes of one side file; real ones stay below 100 MB
_DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class SideFiles:
    """Names in the output → bytes, or the file to copy; and what a user should know about them."""

    files: Mapping[str, bytes | Path]
    warnings: tuple[str, ...] = ()


def side_files(
    base: Path | None,
    tokenizer: Path | None,
    *,
    dtype: str | None = None,
    dequantised: bool = False,
    licences: Mapping[str, Path] | None = None,
    copy_code: bool = False,
) -> SideFiles:
    """Collect the side files of an output.

    `base`: the folder whose config.json and generation_config.json are kept (see `output_config` for what
    changes with `dtype` and `dequantised`). `tokenizer`: the folder whose tokenizer, processor and template
    files are copied. `licences`: label → folder of every input; their licence and notice files come along,
    the base's own under their names. `*.py` files of the base come only with `copy_code`. A folder may be
    None: a bare weights file has no side files, and then a warning says so. Raises DamagedInputError for a
    side file that is not a regular file within its model.
    """
    files: dict[str, bytes | Path] = {}
    warnings: list[str] = []
    if base is not None and (base / CONFIG_NAME).exists():
        config = _inside(base, CONFIG_NAME)
        files[CONFIG_NAME] = output_config(config, dtype=dtype, dequantised=dequantised)
        code = sorted(path.name for path in base.glob("*.py"))
        if copy_code:
            files |= {name: _inside(base, name) for name in code}
        elif code or "auto_map" in read_json_object(config):
            warnings.append("the base names code of its own (auto_map or *.py), which was not copied")
    else:
        warnings.append("the base has no config.json, so the output has none")
    if base is not None and (base / "generation_config.json").exists():
        files["generation_config.json"] = _inside(base, "generation_config.json")
    found = dict(_matching(tokenizer, _TOKENIZER)) if tokenizer is not None else {}
    if not found:
        warnings.append("no tokenizer files were found, so the output has none")
    files |= found
    files |= _licences(base, licences or {})
    return SideFiles(dict(sorted(files.items())), tuple(warnings))


def output_config(config: Path, *, dtype: str | None = None, dequantised: bool = False) -> bytes:
    """Return the output's config.json: the base's, byte for byte unless numbers are stored otherwise now.

    With `dtype`, the key that the base has (`dtype` or `torch_dtype`, also within `text_config` and its
    like) says the new type; a config without it stays without. With `dequantised`, `quantization_config` is
    left out, since it no longer describes the weights. A changed config keeps the order of its keys.
    """
    document = read_json_object(config)
    changed = _retyped(document, dtype) if dtype is not None else document
    if dequantised:
        changed = {key: value for key, value in changed.items() if key != "quantization_config"}
    if changed == document:
        return config.read_bytes()
    return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def _retyped(section: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Replace the element type in a config and in the configs nested in it."""
    changed: dict[str, Any] = {}
    for key, value in section.items():
        if key in _DTYPE_KEYS and isinstance(value, str):
            changed[key] = dtype
        elif key.endswith("_config") and key != "quantization_config" and isinstance(value, dict):
            changed[key] = _retyped(value, dtype)
        else:
            changed[key] = value
    return changed


def _matching(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files of a folder that a pattern matches, in order of names."""
    names = [entry.name for entry in folder.iterdir() if not entry.is_dir()]
    inner = {pattern.split("/")[0] for pattern in patterns if "/" in pattern}
    for name in sorted(inner):
        if (folder / name).is_dir():
            names += [f"{name}/{entry.name}" for entry in (folder / name).iterdir() if not entry.is_dir()]
    for name in sorted(names):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            yield name, _inside(folder, name)


def _licences(base: Path | None, licences: Mapping[str, Path]) -> dict[str, Path]:
    """Gather licence files: the base's under their own names, another input's with its label, none twice."""
    chosen: dict[str, Path] = dict(_matching(base, _LICENCE)) if base is not None else {}
    texts = {path.read_bytes() for path in chosen.values()}
    for label, folder in licences.items():
        if base is not None and folder == base:
            continue
        for name, path in _matching(folder, _LICENCE):
            text = path.read_bytes()
            if text in texts:
                continue
            texts.add(text)
            stem, dot, ending = name.partition(".")
            mark = re.sub(r"[^A-Za-z0-9_-]+", "-", label)
            chosen[f"{stem}-{mark}{dot}{ending}"] = path
    return chosen


def _inside(folder: Path, name: str) -> Path:
    """Return the real path of a side file, once it is a regular file that belongs to this model.

    Links may lead to where a hub cache keeps the bytes (`blobs` beside `snapshots`) and nowhere else: a
    model must not be able to publish other files of this machine.
    """
    path = Path(os.path.realpath(folder / name))
    home = Path(os.path.realpath(folder))
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    where = printable(os.fspath(folder / name))
    if not any(path.is_relative_to(allowed) for allowed in homes):
        raise DamagedInputError(
            "a link leads out of the model", where=where, fix="replace it by the file itself"
        )
    if not path.is_file():
        raise DamagedInputError("found no regular file", where=where, fix="fetch the model again")
    if path.stat().st_size > _LIMIT:
        raise DamagedInputError(f"a side file of more than {_LIMIT} bytes", where=where, fix="remove it")
    return path
