"""The origin of every feature of a merge, by index, from what was planted."""

from __future__ import annotations

import numpy as np
import pytest
from made_studies import ADDED, PLANTED, made_study

from deltasmith.features.comparing import Passages, compare
from deltasmith.features.graph import Node
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.origins import merge_outcome
from deltasmith.features.outcome import ORIGIN, MergeOutcome


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], object]:
    study = made_study(tmp_path_factory.mktemp("made") / "study")
    passages = Passages.of(study.held_out.passage, 0, 20)
    pairs = [
        ("base", "lua"),
        ("base", "stories"),
        ("base", "merged"),
        ("lua", "merged"),
        ("stories", "merged"),
    ]
    return {pair: compare(*map(study.codes, pair), passages, Thresholds()) for pair in pairs}


def merged(
    comparisons: dict, *, base: str | None = "base", first: str = "lua", second: str = "stories"
) -> MergeOutcome:
    node = Node("merged", None, "merged", (first, second), base, "slerp")
    into = {label: comparisons[label, "merged"] for label in (first, second, *([base] if base else []))}
    lost = [comparisons[base, parent] for parent in (first, second)] if base else []
    return merge_outcome(node, base, into, lost)


def words(found: MergeOutcome, group: str) -> set[str]:
    places = (PLANTED | ADDED)[group][0]
    return {ORIGIN[found.origin[at]].value for at in places}


def test_every_planted_group_gets_its_origin(comparisons: dict) -> None:
    found = merged(comparisons)
    assert words(found, "universal") == {"consensus"}
    assert words(found, "recovered") == {"recovered"}
    assert words(found, "of lua") == {"inherited"}
    assert words(found, "of stories") == {"inherited"}
    assert words(found, "novel") == {"novel"}
    assert words(found, "drifted") == {"inherited"}  # from lua; in stories half of their firings moved
    assert words(found, "rare") == {"unexercised"}
    assert words(found, "gone") == words(found, "lost in merge") == words(found, "dead") == {"dead"}


def test_bits_tell_the_parents(comparisons: dict) -> None:
    found = merged(comparisons)
    bits = {group: set(found.inherited_from[list((PLANTED | ADDED)[group][0])].tolist()) for group in ADDED}
    assert bits == {"of lua": {1}, "of stories": {2}, "only of lua": {0}, "novel": {0}}
    assert set(found.inherited_from[:30].tolist()) == {3}
    turned = merged(comparisons, first="stories", second="lua")
    assert turned.inherited_from[80] == 2
    assert turned.counts["inherited:lua"] == found.counts["inherited:lua"] == 4 + 8


def test_counts_rates_and_losses(comparisons: dict) -> None:
    found = merged(comparisons)
    assert found.counts == {
        "recovered": 8,
        "consensus": 30,
        "inherited": 16,
        "base": 0,
        "drifted": 0,
        "novel": 3,
        "unexercised": 2,
        "dead": 37,
        "inherited:lua": 12,
        "inherited:stories": 4,
    }
    assert "unexercised" not in found.rates
    assert found.rates["recovered"].value == pytest.approx(8 / 57)
    assert sum(rate.value for name, rate in found.rates.items() if ":" not in name) == pytest.approx(1)
    assert found.lost == {"lua": 8, "stories": 6}  # six of both, and lua's own two
    assert found.lost_rates["lua"].value == pytest.approx(8 / 50)
    assert found.lost_everywhere == 6


def test_without_a_base_nothing_is_recovered(comparisons: dict) -> None:
    found = merged(comparisons, base=None)
    assert words(found, "recovered") == {"inherited"}  # stories kept them
    assert words(found, "universal") == {"consensus"}
    assert (found.counts["recovered"], found.lost_everywhere, found.base) == (0, 0, None)


def test_a_partner_below_strong_is_drift_and_the_base_comes_before_it(comparisons: dict) -> None:
    """Both "parents" are stories, where the features of the group drifted: only the base has them as they are."""
    both = {**comparisons}
    found = merge_outcome(
        Node("merged", None, "merged", ("stories", "other"), "base", "slerp"),
        "base",
        {
            "stories": both["stories", "merged"],
            "other": both["stories", "merged"],
            "base": both["base", "merged"],
        },
        [both["base", "stories"]] * 2,
    )
    assert words(found, "drifted") == {"base"}
    without = merge_outcome(
        Node("merged", None, "merged", ("stories", "other"), None, "slerp"),
        None,
        {"stories": both["stories", "merged"], "other": both["stories", "merged"]},
        [],
    )
    assert words(without, "drifted") == {"drifted"}


def test_every_resample_has_its_own_origins(comparisons: dict) -> None:
    found = merged(comparisons)
    low, high = found.rates["inherited"].low, found.rates["inherited"].high
    assert low is not None
    assert high is not None
    assert low <= 16 / 57 <= high
    assert found.origin.dtype == np.int8
