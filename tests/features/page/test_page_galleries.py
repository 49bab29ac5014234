"""The galleries hold what was planted, in the order that they state, under one cap."""

from __future__ import annotations

import numpy as np
import pytest

from deltasmith.features.outcome import Outcome
from deltasmith.features.page.galleries import Gallery, chosen, galleries, of_patterns
from deltasmith.features.page.tracing import Anchor
from deltasmith.features.pattern_records import Detector, Found, Marking, MemberDetectors, Patterns
from deltasmith.features.study import Study


@pytest.fixture(scope="module")
def fires(study: Study) -> dict[str, np.ndarray]:
    return {label: study.codes(label).fires for label in study.graph.by_label}


@pytest.fixture(scope="module")
def found(outcome: Outcome, fires: dict[str, np.ndarray]) -> dict[tuple[str, str], Gallery]:
    return {(one.group, one.title): one for one in galleries(outcome, fires, 0)}


def numbers(gallery: Gallery) -> set[int]:
    return {anchor.feature for anchor in gallery.anchors}


@pytest.mark.parametrize(
    ("group", "title", "model", "planted", "total"),
    [
        ("Whole graph", "Universal", "base", range(30), 30),
        ("Merge: merged", "Recovered", "base", range(30, 38), 8),
        ("Merge: merged", "Lost in merge", "base", range(44, 50), 14),
        ("Merge: merged", "Novel in merge", "merged", range(90, 93), 3),
        ("base → lua", "Disappeared", "base", (*range(30, 44),), 14),
        ("base → lua", "Emerged", "lua", (*range(80, 84), 88, 89), 6),
        ("base → stories", "Emerged", "stories", range(84, 88), 4),
    ],
)
def test_a_gallery_holds_what_was_planted(
    found: dict, group: str, title: str, model: str, planted: range, total: int
) -> None:
    gallery = found[group, title]
    assert gallery.total == total
    assert {a.feature for a in gallery.anchors if a.member == model} == set(planted)


def test_inherited_features_are_told_apart_by_parent(found: dict) -> None:
    assert set(range(80, 84)) <= numbers(found["Merge: merged", "From lua"])
    assert set(range(84, 88)) <= numbers(found["Merge: merged", "From stories"])
    assert not numbers(found["Merge: merged", "From lua"]) & set(range(84, 88))


def test_the_largest_drift_comes_first(found: dict, outcome: Outcome) -> None:
    anchors = found["Whole graph", "Largest drift"].anchors
    assert anchors[0].feature in range(50, 58)
    r = [outcome.edge("base", "stories").parents.r[a.feature] for a in anchors if a.member == "base"]
    assert min(r) == r[0]


def test_what_fires_most_comes_first(found: dict, fires: dict) -> None:
    counts = [fires[a.member][a.feature] for a in found["base → lua", "Disappeared"].anchors]
    assert counts == sorted(counts, reverse=True)


def test_the_random_sample_is_live_and_keyed(outcome: Outcome, fires: dict, found: dict) -> None:
    drawn = found["Whole graph", "Random sample"].anchors
    again, other = (
        next(g for g in galleries(outcome, fires, s) if g.title == "Random sample") for s in (0, 1)
    )
    assert drawn == again.anchors != other.anchors
    assert (
        set(drawn) == set(other.anchors) == {Anchor("base", int(at)) for at in np.flatnonzero(fires["base"])}
    )


def test_a_band_of_the_map_finds_its_gallery(found: dict) -> None:
    assert found["base → lua", "Disappeared"].edge == ("base", "lua", "disappeared")
    assert found["stories → merged", "Emerged"].edge == ("stories", "merged", "emerged")


def test_features_are_dealt_out_in_turns_until_the_cap() -> None:
    def gallery(*features: int) -> Gallery:
        return Gallery("g", "t", "", 9, tuple(Anchor("base", at) for at in features))

    dealt = chosen([gallery(1, 2, 3, 4), gallery(1, 5, 2), gallery(6)], 4)
    assert [[a.feature for a in one.anchors] for one in dealt] == [[1, 2], [1, 5, 2], [6]]
    assert [one.total for one in dealt] == [9, 9, 9]
    assert [len(one.anchors) for one in chosen([gallery(1, 2), gallery(3)], 1)] == [1, 0]


def test_a_pattern_has_a_gallery_with_the_best_of_each_model(outcome: Outcome) -> None:
    marking = Marking(0.9, 10, 9, 0.9, 0.8, 0.85)
    members = (
        MemberDetectors("base", (Detector(3, marking), Detector(4, marking))),
        MemberDetectors("merged", (Detector(3, marking), Detector(91, marking))),
        MemberDetectors("base~again", (Detector(9, marking),)),
    )
    patterns = Patterns("0" * 64, (Found("assign", "x *=", 12, 24, {"lua": 24}, members),))
    (gallery,) = of_patterns(outcome, [patterns])
    assert (gallery.group, gallery.title, gallery.total) == ("Patterns", "assign", 3)
    assert gallery.anchors == (Anchor("base", 3), Anchor("base", 4), Anchor("merged", 91))
    assert "x *=" in gallery.about
    assert (
        "4 features of 2 models; those that persist from one model to the next share a card, which leaves 3"
        in (gallery.about)
    )
