"""A feature is followed to the nearest models first, never through a partner that is not the same feature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.features.outcome import Outcome
from deltasmith.features.page.tracing import Anchor, check_links, earliest, trace
from deltasmith.features.study import Study


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


def test_links_to_features_that_are_not_there_are_refused(study: Study, outcome: Outcome) -> None:
    check_links(study, outcome, Path("match"))
    edge = outcome.edges[0]
    best = edge.parents.best.copy()
    best[7] = 96
    for parents in (
        replace(edge.parents, best=best),
        replace(edge.parents, second=edge.parents.second[:-1].copy(), best=edge.parents.best[:-1]),
        replace(edge.parents, second=np.full_like(best, -2)),
    ):
        broken = replace(outcome, edges=(replace(edge, parents=parents), *outcome.edges[1:]))
        with pytest.raises(
            DamagedInputError, match="what was matched does not fit the study in match; match the study"
        ):
            check_links(study, broken, Path("match"))
    with pytest.raises(DamagedInputError, match="does not fit"):
        check_links(study, replace(outcome, edges=outcome.edges[1:]), Path("match"))
