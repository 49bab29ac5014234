"""How much of what its parents learned a merge has."""

from __future__ import annotations

import pytest

from deltasmith.features.recovery import recovered_share
from deltasmith.features.study import Score


def scores(*losses: float) -> dict[str, Score]:
    """What has the lower loss is the more accurate."""
    return {d: Score(loss, 1 / loss, 10_000) for d, loss in zip(("lua", "stories"), losses, strict=True)}


SCORES = {
    "base": scores(3.0, 3.0),
    "lua": scores(2.0, 3.2),
    "stories": scores(3.1, 2.5),
    "merged": scores(2.5, 3.1),
}


def test_the_better_parent_of_each_domain_is_the_measure() -> None:
    found = recovered_share(SCORES, "merged", ["lua", "stories"], "base")
    assert found == {"lua": pytest.approx(0.5), "stories": pytest.approx(-0.2)}


def test_where_nothing_was_gained_nothing_is_recovered() -> None:
    assert recovered_share(SCORES, "merged", ["lua"], "base")["stories"] is None
    assert recovered_share(SCORES, "merged", ["lua"], None) == {"lua": None, "stories": None}
    assert recovered_share({}, "merged", ["lua"], "base") == {}


def test_a_gain_within_the_noise_is_none() -> None:
    few = {name: {"lua": Score(s["lua"].loss, s["lua"].accuracy, 20)} for name, s in SCORES.items()}
    assert recovered_share(few, "merged", ["lua"], "base") == {"lua": None}
