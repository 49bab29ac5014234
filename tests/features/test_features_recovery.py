"""How much of what its parents learned a merge has."""

from __future__ import annotations

import pytest

from deltasmith.features.recovery import recovered_share
from deltasmith.features.study import Score

SCORES = {
    name: {domain: Score(loss, 0.5, 10) for domain, loss in zip(("lua", "stories"), losses, strict=True)}
    for name, losses in {
        "base": (3.0, 3.0),
        "lua": (2.0, 3.2),
        "stories": (3.1, 2.5),
        "merged": (2.5, 3.1),
    }.items()
}


def test_the_better_parent_of_each_domain_is_the_measure() -> None:
    found = recovered_share(SCORES, "merged", ["lua", "stories"], "base")
    assert found == {"lua": pytest.approx(0.5), "stories": pytest.approx(-0.2)}


def test_where_nothing_was_gained_nothing_is_recovered() -> None:
    assert recovered_share(SCORES, "merged", ["lua"], "base")["stories"] is None
    assert recovered_share(SCORES, "merged", ["lua"], None) == {"lua": None, "stories": None}
    assert recovered_share({}, "merged", ["lua"], "base") == {}
