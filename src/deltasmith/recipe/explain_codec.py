"""`explain` for codecs: what one stores, its fields, its bound, how it is written."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass

from deltasmith.codecs.catalogue import CODECS, codec_class
from deltasmith.recipe.catalogue import EDITS, MERGES
from deltasmith.recipe.explain import FieldLine, MethodRow, field_line, field_text, summary_of
from deltasmith.recipe.presets import PRESETS

__all__ = [
    "PREFIX",
    "CodecExplanation",
    "codec_beside",
    "codec_of",
    "codec_rows",
    "explain_codec",
    "render_codec",
]

_NEEDED = {"low_rank": "rank=16"}
"""Fields without which a codec is not complete."""

PREFIX = "codec:"
"""Chooses the codec where an edit, merge or preset has the same name."""


@dataclass(frozen=True)
class CodecExplanation:
    """All that `deltasmith explain` prints of a codec."""

    name: str
    text: str
    fields: tuple[FieldLine, ...]
    written: str


def codec_of(name: str) -> str | None:
    """Return the codec that a name given to `explain` means: `codec:NAME`, or NAME if nothing else is called so."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    return name if name in CODECS and name not in (*PRESETS, *EDITS, *MERGES) else None


def codec_beside(name: str) -> str:
    """Return a line that points to the codec of this name, where `explain` means another method by it; else ""."""
    if name not in CODECS or name not in (*PRESETS, *EDITS, *MERGES):
        return ""
    return f"There is also a codec of this name: deltasmith explain {PREFIX}{name}"


def explain_codec(name: str) -> CodecExplanation:
    """Explain a codec from its record; RecipeError with a suggestion if there is none of that name."""
    record = codec_class(name)
    fields = tuple(field_line(key, info) for key, info in record.model_fields.items())
    known = [_NEEDED[name]] if name in _NEEDED else []
    shown = ",".join(known) or ",".join(
        f"{field.name}={field.default}" for field in fields if field.default not in (None, "none")
    )
    written = f"deltasmith pack BASE MODEL OUT --codec {name}{':' + shown if shown else ''}"
    return CodecExplanation(
        name, inspect.cleandoc(record.__doc__ or "").split(">>>")[0].strip(), fields, written
    )


def codec_rows() -> tuple[MethodRow, ...]:
    """Return a line of `deltasmith methods` for every codec, in alphabetical order."""
    return tuple(MethodRow(n, "codec", summary_of(codec_class(n)), (), "bytes") for n in sorted(CODECS))


def render_codec(explanation: CodecExplanation, width: int = 100) -> str:
    """Write an explanation as plain text."""
    e = explanation
    paragraphs = [textwrap.fill(" ".join(part.split()), width) for part in e.text.split("\n\n")]
    lines = [f"{e.name} (codec)", "", "\n\n".join(paragraphs), ""]
    if e.fields:
        lines += ["Fields:", *(line for field in e.fields for line in field_text(field, width)), ""]
    return "\n".join([*lines, f"Written: {e.written}"]) + "\n"
