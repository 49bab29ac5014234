"""The explicit union of codecs: which record each name stands for, in each dialect, and how a user writes one.

A record is written "module:Class" and imported when it is first asked for. A new codec is one file beside this
one, one line below, one example in tests/codecs/codecs_examples.py, a section of docs/format.md and a function in
tests/packing/page_reader.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic

from deltasmith.codecs.protocol import Codec
from deltasmith.errors import RecipeError, printable

__all__ = ["CODECS", "CodecLike", "codec_class", "codec_from", "codec_name", "codec_text", "codec_tree"]

CodecLike = str | Mapping[str, Any] | Codec
"""A codec, or what a user writes for one."""

CODECS: Mapping[str, str] = {
    "bitdelta": "bitdelta:BitDelta",
    "bitdelta_random": "bitdelta_random:BitDeltaRandom",
    "magnitude_blocks": "magnitude_blocks:MagnitudeBlocks",
    "residual_bits": "residual_bits:ResidualBits",
    "emr": "emr:Emr",
    "sparse": "sparse:Sparse",
    "low_rank": "low_rank:LowRank",
    "claq": "claq:Claq",
    "lossless": "lossless:Lossless",
    "dense": "dense:Dense",
    "zero": "zero:Zero",
}


@cache
def codec_class(name: str) -> type[Codec]:
    """Import the record that a codec's name stands for; RecipeError with a suggestion if there is none."""
    if name not in CODECS:
        near = _near(name, CODECS)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(CODECS)}"
        raise RecipeError(f"no codec is called {printable(repr(name), 60)}", fix=hint)
    module, _, record = CODECS[name].partition(":")
    found: type[Codec] = getattr(import_module(f"deltasmith.codecs.{module}"), record)
    return found


def codec_name(codec: Codec) -> str:
    """Return the name under which a codec stands in the table."""
    kind = type(codec)
    module = kind.__module__.rpartition(".")[2]
    return next(name for name, target in CODECS.items() if target == f"{module}:{kind.__name__}")


def codec_tree(codec: Codec) -> dict[str, dict[str, Any]]:
    """Return a codec as plain data, {name: {field: value}}, the fields at their defaults included."""
    return {codec_name(codec): codec.model_dump(mode="json")}


def codec_text(codec: Codec) -> str:
    """Write a codec in one line, with the fields that are not at their defaults: `low_rank:rank=16`."""
    changed = codec.model_dump(mode="json", exclude_defaults=True)
    fields = ",".join(f"{key}={value}" for key, value in changed.items())
    return codec_name(codec) + (f":{fields}" if fields else "")


def codec_from(tree: CodecLike) -> Codec:
    """Read a codec as users write it: `bitdelta`, `low_rank:rank=16,dtype=float16`, or `{low_rank: {rank: 16}}`.

    One that has been read is returned as it is.

    Raises:
        RecipeError: no such codec, an unknown field, or a value out of range.
    """
    if isinstance(tree, Codec):
        return tree
    name, fields = _split(tree)
    kind = codec_class(name)
    try:
        return kind.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _refused(name, kind, error) from error


def _refused(name: str, kind: type[Codec], error: pydantic.ValidationError) -> RecipeError:
    """Say what is wrong with the first field that a codec refuses."""
    first = error.errors(include_url=False)[0]
    known = ", ".join(kind.model_fields)
    hint = f"its fields are: {known}" if known else "it has no fields"
    if not first["loc"]:
        return RecipeError(first["msg"].removeprefix("Value error, "), where=f"codec {name}", fix=hint)
    field = str(first["loc"][0])
    shown = printable(field, 60)
    if field not in kind.model_fields:
        near = _near(field, kind.model_fields)
        hint = f"did you mean {near}?" if near else hint
        return RecipeError(f"codec {name} has no field {shown!r}", fix=hint)
    value = printable(repr(first["input"]), 60)
    return RecipeError(
        f"{shown} of codec {name} must be {_wanted(kind, field)}, not {value}",
        fix=f"see `deltasmith explain {name}`",
    )


def _near(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`, if one is like it at all."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return close[0] if close else None


def _wanted(kind: type[Codec], field: str) -> str:
    """Describe what a field takes: `a whole number, at least 1`, `minus, plus or zero`."""
    info = kind.model_fields[field]
    annotation, metadata = info.annotation, list(info.metadata)
    if type(None) in get_args(annotation):  # a union with none: the other part carries type and range
        part = next(part for part in get_args(annotation) if part is not type(None))
        annotation = part
        if get_origin(part) is Annotated:
            annotation, *given = get_args(part)
            metadata += [limit for each in given for limit in getattr(each, "metadata", [each])]
    if get_origin(annotation) is Literal:
        *front, end = map(str, get_args(annotation))
        return f"{', '.join(front)} or {end}" if front else end
    words: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    limits = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    ranges = [
        f"{phrase} {getattr(given, key):g}"
        for given in metadata
        for key, phrase in limits.items()
        if getattr(given, key, None) is not None
    ]
    return ", ".join([words.get(annotation, "another value"), *([" and ".join(ranges)] if ranges else [])])


def _split(tree: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and fields of any spelling."""
    if isinstance(tree, Mapping):
        if len(tree) != 1:
            raise RecipeError(
                "a codec has one name",
                where=printable(str(dict(tree)), 120),
                fix="write {name: {field: value}}",
            )
        name, fields = next(iter(tree.items()))
        if not isinstance(fields or {}, Mapping):
            raise RecipeError(
                "the fields of a codec are a mapping",
                where=printable(str(name), 60),
                fix="write {name: {field: value}}",
            )
        return str(name), dict(fields or {})
    text = tree.strip()
    if text.startswith("{"):
        return _split(_parsed(text))
    name, _, rest = text.partition(":")
    fields = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(
                f"{printable(item, 60)!r} is not field=value",
                where=f"codec {printable(name, 60)}",
                fix="write name:field=value,field=value",
            )
        fields[key.strip()] = _parsed(value)
    return name, fields


def _parsed(text: str) -> Any:
    """Read a piece of YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that no calendar has
        raise RecipeError(
            f"{printable(text, 120)!r} is no YAML", where="codec", fix="see `deltasmith explain CODEC`"
        ) from error
