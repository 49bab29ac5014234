"""A feature is followed to the nearest models first, never through a partner that is not the same feature."""

from __future__ import annotations

from deltasmith.features.outcome import Outcome
from deltasmith.features.page.tracing import Anchor, earliest, trace


def test_a_universal_feature_is_found_in_every_model(outcome: Outcome) -> None:
    found = trace(outcome, Anchor("base", 3), 0.5)
    assert found.features == {"base": 3, "lua": 3, "stories": 3, "merged": 3}
    assert found.linked == {"base", "lua", "stories", "merged"}


def test_a_recovered_feature_reaches_the_merge_past_the_parent_that_lost_it(outcome: Outcome) -> None:
    found = trace(outcome, Anchor("base", 31), 0.5)
    assert found.linked == {"base", "stories", "merged"}
    assert found.features["merged"] == 31
    assert found.features["lua"] != 31


def test_the_way_ends_where_the_feature_ends(outcome: Outcome) -> None:
    """What only lua has: its nearest partners are shown, but no further way is taken through them."""
    found = trace(outcome, Anchor("lua", 88), 0.5)
    assert found.linked == {"lua"}
    assert "stories" not in found.features


def test_one_lineage_has_one_anchor(outcome: Outcome) -> None:
    assert earliest(outcome, Anchor("merged", 3)) == Anchor("base", 3)
    assert earliest(outcome, Anchor("merged", 31)) == Anchor("base", 31)
    assert earliest(outcome, Anchor("merged", 81)) == Anchor("lua", 81)
    assert earliest(outcome, Anchor("merged", 91)) == Anchor("merged", 91)
