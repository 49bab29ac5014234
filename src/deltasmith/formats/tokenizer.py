"""Whether two models speak of the same tokens: their token → id maps, and their chat templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltasmith.errors import RefusedError, printable
from deltasmith.formats.json_file import read_json_object
from deltasmith.table.checkpoint import Spec

__all__ = ["compare_templates", "compare_vocabularies", "padded_vocabulary", "token_ids"]

_TEMPLATE = "chat_template.jinja"
_SHOWN = 3
_LIMIT = 256 << 20  # bytes; tokenizers of large vocabularies take tens of MiB


def token_ids(folder: Path) -> dict[str, int] | None:
    """Return the token → id map of a folder's tokenizer.json or vocab.json, or None where neither tells it."""
    path = folder / "tokenizer.json"
    if path.is_file():
        document = _mapping(read_json_object(path, _LIMIT))
        ids = _ids(_mapping(document.get("model")).get("vocab"))
        for token in document.get("added_tokens") or ():
            entry = _mapping(token)
            if isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int):
                ids[entry["content"]] = entry["id"]
        return ids or None
    path = folder / "vocab.json"
    return (_ids(read_json_object(path, _LIMIT)) or None) if path.is_file() else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _ids(vocabulary: Any) -> dict[str, int]:
    """Read {token: id}, or the [token, score] rows of unigram models, whose ids are their positions."""
    if isinstance(vocabulary, list):
        return {str(row[0]): i for i, row in enumerate(vocabulary) if isinstance(row, list) and row}
    return {str(t): i for t, i in _mapping(vocabulary).items() if isinstance(i, int)}


def compare_vocabularies(first: Path, first_label: str, second: Path, second_label: str) -> None:
    """Raise if a token has different ids in the two models: their embeddings would be mixed up in silence.

    Tokens that only one of them has are no conflict (a padded or extended vocabulary shows in the shapes).
    """
    if _same_bytes(first / "tokenizer.json", second / "tokenizer.json"):
        return
    ours, theirs = token_ids(first), token_ids(second)
    if ours is None or theirs is None:
        return
    moved = [t for t, i in ours.items() if theirs.get(t, i) != i]
    if moved:
        shown = ", ".join(
            f"{printable(t, 40)!r} ({ours[t]} and {theirs[t]})"
            for t in sorted(moved, key=lambda t: ours[t])[:_SHOWN]
        )
        raise RefusedError(
            f"{len(moved)} tokens have different ids in {first_label} and {second_label}: {shown}",
            fix="merge models with one tokenizer; their embedding rows mean different tokens",
        )


def padded_vocabulary(folder: Path, specs: Mapping[str, Spec], label: str) -> Iterator[str]:
    """Yield a warning if the embeddings have more rows than the tokenizer has tokens; the rows are kept."""
    rows = [
        spec.shape[0] for name, spec in specs.items() if name.endswith("embed_tokens.weight") and spec.shape
    ]
    ids = token_ids(folder) if rows else None
    if ids and (tokens := max(ids.values()) + 1) < rows[0]:
        yield f"{label} has {tokens} tokens and {rows[0]} embedding rows: a padded vocabulary, kept as it is"


def compare_templates(first: Path, first_label: str, second: Path, second_label: str) -> Iterator[str]:
    """Yield a warning if the chat templates differ; templates are never merged."""
    ours, theirs = _template(first), _template(second)
    if ours is not None and theirs is not None and ours != theirs:
        yield f"the chat templates of {first_label} and {second_label} differ; the output takes one, unchanged"


def _template(folder: Path) -> object:
    path = folder / _TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    config = folder / "tokenizer_config.json"
    return _mapping(read_json_object(config, _LIMIT)).get("chat_template") if config.is_file() else None


def _same_bytes(first: Path, second: Path) -> bool:
    if not (first.is_file() and second.is_file()):
        return False
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
