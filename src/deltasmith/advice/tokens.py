"""Differences of vocabulary and special tokens between a base and a model, as sentences; templates are `plan`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.tokenizer import token_ids

__all__ = ["token_differences"]

_LIMIT = 16 << 20
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHOWN = 3


def token_differences(base: OpenedModel, model: OpenedModel, label: str) -> Iterator[str]:
    """Yield a sentence for tokens only one of them has, for special tokens and for their ids that differ.

    Only what both tell is compared: an adapter or a packed delta without tokenizer files says nothing.
    """
    if base.folder is None or model.folder is None or model.adapter is not None:
        return
    ours, theirs = token_ids(base.folder), token_ids(model.folder)
    if ours is not None and theirs is not None and ours.keys() != theirs.keys():
        yield from _extra(theirs.keys() - ours.keys(), f"{label} has", "the base lacks")
        yield from _extra(ours.keys() - theirs.keys(), "the base has", f"{label} lacks")
    for key, mine, other in _both(_special(base.folder), _special(model.folder), _SPECIAL):
        yield f"{key} is {printable(mine, 40)!r} in the base and {printable(other, 40)!r} in {label}"
    for key, mine, other in _both(base.config or {}, model.config or {}, _IDS):
        yield f"{key} is {printable(mine, 40)} in the base and {printable(other, 40)} in {label}"


def _extra(tokens: set[str], have: str, lack: str) -> Iterator[str]:
    if tokens:
        shown = ", ".join(repr(printable(token, 40)) for token in sorted(tokens)[:_SHOWN])
        yield f"{have} {len(tokens)} token(s) that {lack}: {shown}"


def _both(
    first: Mapping[str, Any], second: Mapping[str, Any], keys: tuple[str, ...]
) -> Iterator[tuple[str, str, str]]:
    for key in keys:
        mine, other = first.get(key), second.get(key)
        if mine is not None and other is not None and mine != other:
            yield key, str(mine), str(other)


def _special(folder: Path) -> dict[str, str]:
    """Return the special tokens' texts by their names, from special_tokens_map.json or tokenizer_config.json."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            document = read_json_object(path, _LIMIT)
        except DamagedInputError:  # it decides nothing here
            continue
        for key in _SPECIAL:
            value = document.get(key)
            text = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(text, str):
                found[key] = text
    return found
