"""The JSON Schema, checked by a validator of exactly the keywords it uses, so that none goes unseen."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from recipe_cases import EXAMPLES, FAULTS, TWO

from deltasmith.errors import RecipeError
from deltasmith.recipe.catalogue import EDITS, MERGES
from deltasmith.recipe.checks import loads
from deltasmith.recipe.explain import explain
from deltasmith.recipe.presets import PRESETS
from deltasmith.recipe.schema import json_schema
from deltasmith.recipe.tree import plain
from deltasmith.recipe.yaml_file import parse

SCHEMA = json_schema()
NOTES = {"$schema", "title", "description", "definitions", "default"}


def is_type(value: Any, name: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "null": value is None,
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and value == int(value),
    }[name]


KEYWORDS = {
    "type": lambda v, s, _: is_type(v, s),
    "enum": lambda v, s, _: v in s,
    "const": lambda v, s, _: v == s,
    "minimum": lambda v, s, _: not is_type(v, "number") or v >= s,
    "maximum": lambda v, s, _: not is_type(v, "number") or v <= s,
    "exclusiveMinimum": lambda v, s, _: not is_type(v, "number") or v > s,
    "exclusiveMaximum": lambda v, s, _: not is_type(v, "number") or v < s,
    "minLength": lambda v, s, _: not isinstance(v, str) or len(v) >= s,
    "maxLength": lambda v, s, _: not isinstance(v, str) or len(v) <= s,
    "minItems": lambda v, s, _: not isinstance(v, list) or len(v) >= s,
    "maxItems": lambda v, s, _: not isinstance(v, list) or len(v) <= s,
    "items": lambda v, s, _: not isinstance(v, list) or all(valid(item, s) for item in v),
    "required": lambda v, s, _: not isinstance(v, dict) or all(key in v for key in s),
    "properties": lambda v, s, _: not isinstance(v, dict) or all(valid(v[k], s[k]) for k in v if k in s),
    "propertyNames": lambda v, s, _: not isinstance(v, dict) or all(valid(key, s) for key in v),
    "additionalProperties": lambda v, s, whole: (
        not isinstance(v, dict)
        or all(s is not False and valid(v[k], s) for k in v if k not in whole.get("properties", {}))
    ),
    "anyOf": lambda v, s, _: any(valid(v, one) for one in s),
    "oneOf": lambda v, s, _: sum(valid(v, one) for one in s) == 1,
    "allOf": lambda v, s, _: all(valid(v, one) for one in s),
    "not": lambda v, s, _: not valid(v, s),
    "if": lambda v, s, whole: valid(v, whole.get("then" if valid(v, s) else "else", {})),
    "then": lambda v, s, whole: "if" in whole,
    "else": lambda v, s, whole: "if" in whole,
    "$ref": lambda v, s, _: valid(v, SCHEMA["definitions"][s.removeprefix("#/definitions/")]),
}


def valid(value: Any, schema: dict[str, Any]) -> bool:
    assert set(schema) <= {*KEYWORDS, *NOTES}, set(schema) - {*KEYWORDS, *NOTES}
    return all(KEYWORDS[key](value, part, schema) for key, part in schema.items() if key in KEYWORDS)


def accepts(text: str) -> bool:
    return valid(plain(parse(text, "r")), SCHEMA)


def test_it_is_json_without_dangling_references():
    text = json.dumps(SCHEMA)
    assert json.loads(text) == SCHEMA
    assert "$defs" not in text
    for part in text.split('"$ref": "#/definitions/')[1:]:
        assert part.split('"')[0] in SCHEMA["definitions"]
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize("name", sorted({*PRESETS, *EDITS, *MERGES}))
def test_every_explained_example_passes(name):
    for dialect, _ in explain(name).dialects:
        shown = explain(name, dialect).expansion
        if name in PRESETS:
            assert accepts(shown), shown
        elif name in EDITS:
            assert accepts("models:\n- model: m\n  " + shown.replace("\n", "\n  ")), shown
        else:
            assert accepts("models: [{model: m}]\n" + shown), shown


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_passes_and_its_misspelt_field_fails(name):
    text = f"{TWO}preset: {name}\n{EXAMPLES.get(name, '')}\n"
    assert accepts(text)
    assert not accepts(text + "densitty: 1\n")
    assert not accepts(text + "merge: sum\n")


@pytest.mark.parametrize(
    "text",
    [
        "base: b\nmodels: [{model: m, weight: {layers: [0, 1]}, edits: [{drop: {density: 1}, where: '*'}]}]",
        "base: b\nmodels: [{model: m, edits: [{drop: {density: [{where: '*', value: 0.5}]}}]}]",
        "base: {models: [{model: m}], merge: linear}\nmodels: [{model: {base: b, models: [{model: n}]}}]",
        "models: [{model: m}]\nbase: b\npreset: dare\ndensity: {m0: {layers: [0.1, 1]}}",
        "models: [{model: m}]\nbase: b\nmerge: {elect: null}\nrules: []",
        "models: [{model: m}]\nbase: b\nmerge: {elect: {dialect: mergekit}}",
        "models: [{model: m, edits: [{quantise: {codec: {low_rank: {rank: 3}}}}]}]\nbase: b",
        "models: [{model: m}]\nbase: b\npreset: bitdelta\ncodec: {m0: 'bitdelta:magnitude=1.5'}",
        "models: [{model: m, edits: [{bias_by_gradient: {density: 1, k: 2}}], statistics: g.st}]\nbase: b",
    ],
)
def test_good_recipes_pass(text):
    assert loads(text)
    assert accepts(text)


# What takes more than one value to see, or is not JSON Schema's business.
ONLY_CHECKS = (
    "scale multiplies",
    "there is no base",
    "is used twice",
    "no model has the label",
    "models that agree",
    "sum of the weights",
    "keep probabilities",
    "give either density or rank",
    "not in weight space",
    "takes exactly",
    "takes at least",
    "regular expressions are",
    "printable",
    "the label of a model",
    "has no dialect",
    "vocabulary remedies",
    "occurs twice",
    "codec: ",
    "a statistics file",
    "both read statistics",
    'unknown key "statistics"',
)

ALONE = [text for text, expected in FAULTS if not any(words in expected for words in ONLY_CHECKS)]


@pytest.mark.parametrize("text", ALONE)
def test_what_is_refused_by_itself_is_refused_here_too(text):
    with pytest.raises(RecipeError):
        loads(text)
    assert not accepts(text)
