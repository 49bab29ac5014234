"""The report's records: grouping, the matrix for the picture, plain data."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from deltasmith.analysis.report import DataUsed, Estimate, LossReport, Prediction
from deltasmith.analysis.rules import Grid

PARTS = {
    "model.embed_tokens.weight": 0.5,
    "model.layers.0.self_attn.q_proj.weight": 1.0,
    "model.layers.0.mlp.up_proj.weight": 2.0,
    "model.layers.1.self_attn.q_proj.weight": -4.0,
    "lm_head.weight": 8.0,
}
LEFT, MIDDLE = Grid("left", 5), Grid("midpoint", 5)


def report(**changes):
    change = Estimate(7.5, 7.0, 8.0)
    halves = {name: value / 2 for name, value in PARTS.items()}
    made = LossReport(
        start="math",
        end="dare",
        data=DataUsed("d.jsonl", "0" * 64, 3, 4, 50, 2),
        start_loss=Estimate(1.0, 0.9, 1.1),
        end_loss=Estimate(8.6, 8.5, 8.7),
        base_loss=2.0,
        measured=Estimate(7.6, 7.5, 7.7),
        verdict="decreased",
        margin=0.02,
        margin_reason="because",
        predictions=(
            Prediction(LEFT, Estimate(3.75, 3.0, 4.0), -3.85, "decreased", halves),
            Prediction(MIDDLE, change, -0.1, "decreased", PARTS),
        ),
        along=((0.0, 1.0), (1.0, 8.6)),
        changes=(7.0, 8.0),
        weights=(20.0, 30.0),
    )
    return replace(made, **changes)


def test_groups_add_up():
    found = report()
    assert found.by("layer", MIDDLE) == {
        "model.embed_tokens.weight": 0.5,
        "model.layers.0": 3.0,
        "model.layers.1": -4.0,
        "lm_head.weight": 8.0,
    }
    assert found.by("projection", "midpoint")["model.layers.*.self_attn.q_proj.weight"] == -3.0
    assert found.by("tensor", "left")["lm_head.weight"] == 4.0
    assert found.by("model") == {"all": 7.5}


def test_the_most_exact_prediction_stands_by_default():
    found = report()
    assert found.prediction().grid == MIDDLE
    assert replace(found, predictions=found.predictions[:1]).prediction().grid == LEFT
    for strange in ("trapezoid", Grid("left", 4)):
        with pytest.raises(KeyError):
            found.prediction(strange)
    assert found.grids == (LEFT, MIDDLE)


def test_the_matrix_of_the_picture():
    heat = report().table()
    assert heat.layers == (
        "model.embed_tokens.weight",
        "model.layers.0",
        "model.layers.1",
        "lm_head.weight",
    )
    assert heat.projections == ("", "self_attn.q_proj.weight", "mlp.up_proj.weight")
    nan = math.nan
    wanted = [[0.5, nan, nan], [nan, 1.0, 2.0], [nan, -4.0, nan], [8.0, nan, nan]]
    np.testing.assert_array_equal(heat.values, wanted)


def test_plain_data_is_strict_json_with_null_for_what_is_no_number():
    nothing = Estimate(7.6, math.nan, math.nan)
    document = json.loads(json.dumps(report(measured=nothing).as_json(), allow_nan=False))
    assert document["measured"] == {"value": 7.6, "low": None, "high": None}
    assert document["format"] == "deltasmith-loss-1"
    assert document["data"]["file"] == "d.jsonl"
    left, middle = document["predictions"]
    assert (left["rule"], left["steps"], left["error"]) == ("left", 5, -3.85)
    assert middle["contributions"]["layer"]["model.layers.0"] == 3.0
    assert middle["contributions"]["tensor"] == PARTS
    assert document["along"] == [{"t": 0.0, "loss": 1.0}, {"t": 1.0, "loss": 8.6}]
    assert document["second_order"] is None
    assert (document["changes"], document["weights"]) == ([7.0, 8.0], [20.0, 30.0])
