"""The JSON Schema of recipes, generated from the records, for editors that check while one types.

Draft 7, because that is what editors read. It accepts every recipe that `checks` accepts and refuses misspelt
keys and values out of range; what takes several keys at once (labels, spaces, counts) only `checks` sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import TypeAdapter

from deltasmith.operation.protocols import Space
from deltasmith.operation.schedule import Number
from deltasmith.recipe.catalogue import DIALECTS, Kind, choice, dialects, table
from deltasmith.recipe.model import Nonfinite, OutputType
from deltasmith.recipe.presets import COMMON, PRESETS, Preset, fields_of

__all__ = ["json_schema"]

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}


def json_schema() -> Schema:
    """Return the JSON Schema (draft 7) of a recipe."""
    properties = _common()
    own: dict[str, list[Schema]] = {}
    presets = [_preset_rule(preset, own) for preset in PRESETS.values()]
    known = {key: _any(schemas) for key, schemas in own.items()}
    plain = {"propertyNames": {"enum": [*COMMON, "merge"]}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "deltasmith recipe",
        "$ref": "#/definitions/recipe",
        "definitions": {
            "recipe": {
                "type": "object",
                "properties": {**known, **properties},
                "required": ["models"],
                "allOf": [{"if": {"required": ["preset"]}, "else": plain}, *presets],
            },
            "source": {"anyOf": [_TEXT, {"$ref": "#/definitions/recipe"}]},
            "model": _model(),
            "number": _number(),
            "edit": _operation("edit"),
            "merge": _operation("merge"),
        },
    }


def _number() -> Schema:
    adapter: TypeAdapter[Any] = TypeAdapter(Number)
    schema: Schema = adapter.json_schema()
    return schema


def _common() -> Schema:
    """Describe the keys that mean the same in every recipe."""
    return {
        "base": {
            "$ref": "#/definitions/source",
            "description": "What deltas are taken from: path, id, recipe.",
        },
        "models": {"type": "array", "items": {"$ref": "#/definitions/model"}, "minItems": 1},
        "preset": {"enum": sorted(PRESETS), "description": "A method by name, instead of merge and edits."},
        "merge": {
            "$ref": "#/definitions/merge",
            "description": "How the models' cells become one; default sum.",
        },
        "space": {"enum": list(get_args(Space)), "description": "Merge deltas or weights."},
        "scale": {
            "$ref": "#/definitions/number",
            "description": "Multiplies the merged delta once; default 1.",
        },
        "where": {**_TEXT, "description": "A glob of tensor names to merge; the others come from the base."},
        "rules": {"type": "array", "maxItems": 0, "description": "Not supported yet."},
        "tokenizer": {**_TEXT, "description": "base, or the label of the model whose tokenizer to take."},
        "dtype": {"enum": list(get_args(OutputType)), "description": "The element type of the output."},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        "dialect": {"enum": list(DIALECTS), "description": "Whose reading of the papers; default paper."},
        "nonfinite": {"enum": list(get_args(Nonfinite)), "description": "What to do with NaN and infinity."},
    }


def _model() -> Schema:
    return {
        "type": "object",
        "properties": {
            "model": {"$ref": "#/definitions/source"},
            "label": {**_TEXT, "maxLength": 100, "not": {"const": "base"}},
            "weight": {"$ref": "#/definitions/number"},
            "edits": {"type": "array", "items": {"$ref": "#/definitions/edit"}},
            "statistics": {
                **_TEXT,
                "description": "The file that the merge or an edit reads for this model.",
            },
        },
        "required": ["model"],
        "additionalProperties": False,
    }


def _operation(kind: Kind) -> Schema:
    """Describe `name`, `{name: {fields}}` and, for an edit, `where` beside it."""
    names = sorted(table(kind))
    bare = [name for name in names if not _record(kind, name, "paper").get("required")]
    beside = {"where": _TEXT} if kind == "edit" else {}
    written = {
        "type": "object",
        "properties": {
            **beside,
            **{name: _any(_readings(kind, name), nullable=name in bare) for name in names},
        },
        "additionalProperties": False,
        "oneOf": [{"required": [name]} for name in names],
    }
    return {"anyOf": [{"enum": bare}, written]}


def _readings(kind: Kind, name: str) -> list[Schema]:
    """Return the fields of an operation in each dialect, every reading once."""
    found: list[Schema] = []
    for dialect in dialects(kind, name):
        schema = _record(kind, name, dialect)
        if schema not in found:
            found.append(schema)
    return found


def _record(kind: Kind, name: str, dialect: Any) -> Schema:
    """Return the schema of one record's fields, and of the dialect that may stand among them."""
    chosen = choice(kind, name, dialect)
    if chosen is None:
        raise KeyError(f"{name} has no dialect {dialect}")
    schema = chosen.load().model_json_schema()
    properties = {key: _bare(value) for key, value in schema.get("properties", {}).items()}
    required = [key for key in schema.get("required", []) if key != "statistics"]
    found: Schema = {"type": "object", "properties": {**properties, "dialect": {"enum": list(DIALECTS)}}}
    if required:
        found["required"] = required
    return {**found, "additionalProperties": False}


def _bare(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key not in ("title", "default")}


def _preset_rule(preset: Preset, own: dict[str, list[Schema]]) -> Schema:
    """Return the rule for recipes with this preset, and add its fields to those that exist at all."""
    fields: dict[str, list[Schema]] = {}
    for dialect in DIALECTS:
        for key, (kind, position) in fields_of(preset, dialect).items():
            shape = preset.in_dialect(dialect)
            use = shape.edits[position] if kind == "edit" else shape.merge
            reading = dialect if choice(kind, use.name, dialect) else "paper"
            schema = _record(kind, use.name, reading)["properties"][key]
            _add(fields.setdefault(key, []), _per_label(schema) if kind == "edit" else schema)
    if preset.extra is not None:
        number: Schema = {"$ref": "#/definitions/number"}
        _add(fields.setdefault(preset.extra.name, []), _per_label(number))
    for key, schemas in fields.items():
        for schema in schemas:
            _add(own.setdefault(key, []), schema)
    return {
        "if": {"properties": {"preset": {"const": preset.name}}, "required": ["preset"]},
        "then": {
            "properties": {key: _any(schemas) for key, schemas in fields.items()},
            "propertyNames": {"enum": [*COMMON, "preset", *fields]},
        },
    }


def _per_label(schema: Schema) -> Schema:
    """Allow a value, or a mapping of labels to values."""
    return {"anyOf": [schema, {"type": "object", "additionalProperties": schema}]}


def _add(schemas: list[Schema], schema: Schema) -> None:
    if schema not in schemas:
        schemas.append(schema)


def _any(schemas: Iterable[Schema], *, nullable: bool = False) -> Schema:
    options = [*schemas, {"type": "null"}] if nullable else [*schemas]
    return options[0] if len(options) == 1 else {"anyOf": options}
