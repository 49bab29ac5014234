"""Options that make no sense are refused by name, before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith.analysis.requests import Request, listed
from deltasmith.analysis.rules import Grid
from deltasmith.errors import RecipeError

DATA = Path("d.jsonl")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rules": ("simpson",)}, "there is no rule 'simpson'; use left, midpoint or trapezoid"),
        ({"rules": ()}, "no rule was asked for; use left, midpoint or trapezoid"),
        ({"steps": 0}, "steps is 0; give 1 or more"),
        ({"second_order": "full"}, "there is no second order 'full'; use none, hessian or fisher"),
        ({"probes": 0}, "probes is 0; give 1 or more"),
        ({"steps": 10**9}, "steps is 1000000000; give 1000 or fewer"),
        ({"probes": 10_001}, "probes is 10001; give 10000 or fewer"),
        ({"dtype": "float16"}, "there is no element type 'float16'; use float32, float64 or bfloat16"),
        ({"batch": 0}, "batch is 0; give 1 or more"),
        ({"length": 1}, "length is 1; give 2 or more"),
        ({"limit": 0}, "limit is 0; give 1 or more"),
        ({"threads": 0}, "threads is 0; give 1 or more"),
        ({"margin": -0.5}, "margin is -0.5; give 0 or more, in nats per token"),
        ({"margin": float("nan")}, "margin is nan; give 0 or more, in nats per token"),
        ({"margin": float("inf")}, "margin is inf; give 0 or more, in nats per token"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(RecipeError) as caught:
        Request(DATA, **options)
    assert str(caught.value) == said


def test_a_rule_counts_once():
    request = Request(DATA, rules=("midpoint", "left", "midpoint"), steps=3, margin=0.0)
    assert request.grids == (Grid("midpoint", 3), Grid("left", 3))


def test_lists_of_words():
    assert [listed(words) for words in ((), ("a",), ("a", "b"), ("a", "b", "c"))] == [
        "",
        "a",
        "a or b",
        "a, b or c",
    ]
