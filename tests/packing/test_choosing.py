"""Which codec a tensor gets."""

from __future__ import annotations

import pytest

from deltasmith.codecs.catalogue import codec_from, codec_text
from deltasmith.codecs.protocol import Cell
from deltasmith.errors import RecipeError
from deltasmith.packing.choosing import choose_all, is_linear, rules_of
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

NO_BASE = "the base has no tensor of that name and shape"
REST = codec_from("lossless")


def cell(name, shape=(8, 8), dtype="float32", base=True):
    spec = Spec(name, shape, DTYPES[dtype])
    return Cell(spec, spec if base else None)


CELLS = [
    cell("model.layers.0.mlp.up_proj.weight"),
    cell("model.layers.0.mlp.down_proj.weight"),
    cell("model.layers.0.norm.weight", (8,)),
    cell("model.layers.1.mlp.experts.w1", (4, 8, 8)),
    cell("model.layers.1.conv.weight", (4, 8, 3)),
    cell("lm_head.weight"),
    cell("model.layers.1.ids", (8, 8), "int64"),
    cell("model.layers.1.new.weight", base=False),
]


def chosen(rules, rest=REST, cells=CELLS):
    found, notes = choose_all(cells, rules, rest)
    return {name: codec_text(codec) for name, codec in found.items()}, notes


def test_linears_are_the_matrices_of_numbered_layers():
    assert [is_linear(c.spec.name, c.spec.shape) for c in CELLS] == [
        True,
        True,
        False,
        True,
        False,
        False,
        True,
        True,
    ]


def test_the_first_rule_that_names_a_tensor_counts():
    rules = rules_of("bitdelta", "linears", [("*.up_proj.*", "dense"), ("*.mlp.*", "sparse")])
    found, notes = chosen(rules)
    assert found == {
        "model.layers.0.mlp.up_proj.weight": "dense",
        "model.layers.0.mlp.down_proj.weight": "sparse",
        "model.layers.0.norm.weight": "lossless",
        "model.layers.1.mlp.experts.w1": "sparse",
        "model.layers.1.conv.weight": "lossless",
        "lm_head.weight": "lossless",
        "model.layers.1.ids": "lossless",
        "model.layers.1.new.weight": "lossless",
    }
    assert notes == [
        "model.layers.1.ids: lossless instead of bitdelta, because its elements are int64",
        f"model.layers.1.new.weight: lossless instead of bitdelta, because {NO_BASE}",
    ]


def test_tensors_with_the_same_trouble_share_a_note():
    cells = [cell(f"layers.{i}.ids", (3,), "int64") for i in range(4)]
    _, notes = chosen(rules_of("bitdelta", "*", ()), cells=cells)
    assert notes == ["layers.0.ids and 3 more: lossless instead of bitdelta, because its elements are int64"]


def test_a_rest_that_can_take_what_the_rule_cannot():
    found, notes = chosen(rules_of("bitdelta", "*.new.*", ()), codec_from("dense"))
    assert set(found.values()) == {"dense"}
    assert notes == [f"model.layers.1.new.weight: dense instead of bitdelta, because {NO_BASE}"]


def test_a_rest_that_cannot_take_it_either():
    found, notes = chosen(rules_of("dense", "lm_head.*", ()), codec_from("sparse"))
    assert found["model.layers.1.ids"] == found["model.layers.1.new.weight"] == "lossless"
    assert found["model.layers.0.norm.weight"] == "sparse"
    assert len(notes) == 2


def test_a_rule_that_names_nothing_is_misspelt():
    with pytest.raises(
        RecipeError, match=r"no tensor matches '\*\.experts' in pack; globs match whole names"
    ):
        chosen(rules_of("bitdelta", "linears", [("*.experts", "dense")]))
    with pytest.raises(RecipeError, match="no tensor matches"):
        chosen(rules_of("bitdelta", "*.nothing", ()))
    chosen(rules_of("bitdelta", "linears", ()), cells=[cell("lm_head.weight")])  # no linears is no mistake


def test_rules_take_any_spelling():
    made = codec_from("low_rank:rank=4")
    rules = rules_of(made, "linears", [("*", "dense"), ("a", {"low_rank": {"rank": 4}})])
    assert [rule.codec for rule in rules] == [codec_from("dense"), made, made]
    with pytest.raises(RecipeError, match="no codec is called"):
        rules_of("bitdleta", "*", ())
