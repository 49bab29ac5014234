"""The router's examples: what is refused, and how they are divided."""

from __future__ import annotations

import pytest

from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.upscaling.examples import LEAST, MOST, RouterReport, divide, order, router_data

NINE = [f"text {i}" for i in range(9)]


def test_blank_and_repeated_examples_are_dropped():
    data = router_data({"b": [*NINE, "", " ", "text 0"], "a": NINE[:8]}, ["a", "b"], seed=4)
    assert list(data.texts) == ["a", "b"]  # the experts' order
    assert data.texts["b"] == tuple(NINE)
    assert data.shared() == 8
    found = data.as_json()
    assert (found["seed"], found["epochs"], found["data"]["a"]["examples"]) == (4, 50, 8)
    assert found["data"]["a"]["sha256"] != found["data"]["b"]["sha256"]
    assert "text" not in str(found)


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        ({"a": NINE, "c": NINE}, {}, RecipeError, "no expert is labelled 'c'; use one of: a, b"),
        ({"a": NINE}, {}, RecipeError, "there is none for b; give example inputs of every expert"),
        ({"a": NINE, "b": NINE}, {"epochs": 0}, RecipeError, "--router-epochs is 0"),
        ({"a": NINE, "b": [""]}, {}, DamagedInputError, "0 different examples, and at least 8 are needed"),
        ({"a": NINE, "b": ["x"] * 99}, {}, DamagedInputError, "1 different examples"),
    ],
)
def test_refusals(given, options, error, words):
    with pytest.raises(error) as caught:
        router_data(given, ["a", "b"], **options)
    assert words in str(caught.value)


def test_one_expert_needs_no_router():
    with pytest.raises(RecipeError, match="there is one; leave --router-data out"):
        router_data({"a": NINE}, ["a"])


@pytest.mark.parametrize("counts", [(LEAST, LEAST), (100, 9, 1000), (MOST * 2, 10)])
def test_dividing(counts):
    found = divide(counts, 3)
    parts = [set(found.training), set(found.choosing), set(found.reported)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    start = 0
    for count in counts:
        own = [sum(start <= i < start + count for i in part) for part in parts]
        held = max(1, round(0.1 * count))
        assert own == [min(MOST, count - 2 * held), held, held]
        start += count
    assert divide(counts, 3) == found
    assert divide(counts, 4) != found


def test_orders_are_permutations_by_key():
    assert sorted(order(50, "a", 1)) == list(range(50))
    assert order(50, "a", 1) == order(50, "a", 1) != order(50, "a", 2)


def test_report_as_json():
    report = RouterReport(0.75, ((3, 1), (1, 3)), 64, 5, 15)
    assert report.as_json() == {
        "accuracy": 0.75,
        "confusion": [[3, 1], [1, 3]],
        "trained": 64,
        "epoch": 5,
        "epochs": 15,
        "cut": 0,
    }
