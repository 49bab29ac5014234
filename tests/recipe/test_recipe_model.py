from __future__ import annotations

import pytest
from recipe_cases import TWO

from deltasmith.edits.drop import Drop, DropMatchL1
from deltasmith.edits.low_rank import LowRank
from deltasmith.merges.elect import Elect
from deltasmith.recipe.checks import from_dict, loads
from deltasmith.recipe.model import operation_mapping, to_mapping
from deltasmith.recipe.yaml_file import to_yaml

BOTH_DIALECTS = """
base: {models: [{model: p}, {model: q, weight: 2}], merge: linear}
models:
- model: m
  weight: {layers: [0.5, 1]}
  edits:
  - {drop: {density: 0.5}, where: "*.mlp.*"}
  - drop: {density: [{where: "*.q", value: {layers: [0.1, 0.2]}}, {where: "*", value: 1}], dialect: paper}
  - low_rank: {rank: 8, dialect: paper}
- {model: n, label: "no"}
merge: {elect: {dialect: paper}}
scale: 1.5
dialect: mergekit
seed: 3
"""


def test_a_recipe_written_out_is_read_back_as_itself():
    recipe = loads(BOTH_DIALECTS)
    assert from_dict(to_mapping(recipe)) == recipe
    assert loads(to_yaml(to_mapping(recipe))) == recipe
    records = [edit.record for edit in recipe.models[0].edits]
    assert records[0] == DropMatchL1(density=0.5)
    assert isinstance(records[1], Drop)
    assert recipe.merge == Elect(zero="none")


def test_every_default_is_written_out():
    assert to_mapping(loads(TWO)) == {
        "base": "./base",
        "models": [
            {"model": "./math", "label": "math", "weight": 1.0},
            {"model": "./code", "label": "code", "weight": 1.0},
        ],
        "merge": "sum",
        "space": "delta",
        "scale": 1.0,
        "where": "*",
        "tokenizer": "base",
        "dtype": "base",
        "seed": 0,
        "dialect": "paper",
        "nonfinite": "refuse",
    }


def test_in_weight_space_no_scale_is_written():
    mapping = to_mapping(loads("models: [{model: a}, {model: b}]\nmerge: linear"))
    assert "scale" not in mapping
    assert "base" not in mapping
    assert (mapping["space"], mapping["tokenizer"]) == ("weight", "m0")


def test_statistics_are_written_beside_their_models():
    text = "models: [{model: a, statistics: a.st}, {model: b, statistics: b.st}]\nmerge: regmean"
    mapping = to_mapping(loads(text))
    assert [entry["statistics"] for entry in mapping["models"]] == ["a.st", "b.st"]
    assert "statistics" not in mapping["merge"]["regmean"]
    assert from_dict(mapping) == loads(text)


@pytest.mark.parametrize(
    ("record", "dialect", "expected"),
    [
        (Drop(density=0.5), "paper", {"drop": {"density": 0.5}}),
        (Drop(density=0.5), "authors", {"drop": {"density": 0.5}}),
        (Drop(density=0.5), "mergekit", {"drop": {"density": 0.5, "dialect": "paper"}}),
        (DropMatchL1(density=0.5), "paper", {"drop": {"density": 0.5, "dialect": "mergekit"}}),
        (LowRank(rank=2), "paper", {"low_rank": {"rank": 2}}),
        (Elect(), "mergekit", {"elect": {"zero": "none"}}),
    ],
)
def test_operations_name_their_dialect_where_it_is_not_the_recipe_s(record, dialect, expected):
    assert operation_mapping(record, dialect) == expected
