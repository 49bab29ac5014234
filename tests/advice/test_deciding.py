"""How evidence narrows the candidates, and what the lab's cases give."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from synthetic import SIGMA, base, experience, facts, moved

from deltasmith.advice.candidates import DROPPING, MERGES, PRUNINGS
from deltasmith.advice.deciding import decide, not_excluded, settings_for
from deltasmith.advice.evidence import Effect, Evidence, Rule
from deltasmith.advice.experience import Experience, bundled, split
from deltasmith.advice.facts import Facts
from deltasmith.advice.rules.catalogue import rules_of

GROUND = base()
TWO = facts(GROUND, [moved(GROUND, 0.001, 1), moved(GROUND, 0.001, 2)])
ONE = facts(GROUND, [moved(GROUND, 0.001, 1)])


def saying(effect: Effect, *methods: str, name: str = "r") -> Rule:
    """Make a rule that always says the same."""

    def judge(rule: Rule, given: Facts) -> tuple[Evidence, ...]:
        return (rule.found("all", "1", f"{rule.name} says", effect, methods),)

    return Rule(name, "asks", "bound", "source", judge)


def test_without_evidence_there_is_no_recommendation() -> None:
    found = decide(TWO, [saying("notes")])
    assert found.method is None
    assert found.left == tuple(MERGES)
    assert "nothing separates" in found.why
    assert decide(ONE, []).left == tuple(PRUNINGS)


def test_level_candidates_give_the_one_with_the_fewest_settings() -> None:
    found = decide(TWO, [saying("narrows", "ties", "ta_elect")])
    assert (found.method, found.left) == ("ta_elect", ("ta_elect", "ties"))


def test_candidates_not_shown_to_be_worse_are_not_level() -> None:
    found = decide(TWO, [saying("keeps", "ties", "ta_elect")])
    assert found.method is None
    assert found.left == ("ta_elect", "ties")
    assert decide(TWO, [saying("keeps", "ties")]).method == "ties"
    both = decide(TWO, [saying("keeps", "ties", "ta_elect", "ta"), saying("narrows", "ties", "ta_elect")])
    assert both.method == "ta_elect"


def test_alternatives_are_what_the_deciding_line_chose_from() -> None:
    kept = saying("keeps", "ties", "ta_elect", "ta")
    found = decide(TWO, [kept, saying("narrows", "ties"), saying("narrows", "ties", "tsv")])
    assert (found.left, found.among) == (("ties",), ("ta", "ta_elect", "ties"))
    several = decide(TWO, [kept, saying("narrows", "ties", "ta_elect")])
    assert several.among == several.left == ("ta_elect", "ties")
    assert decide(TWO, [kept]).among == ("ta", "ta_elect", "ties")
    assert decide(TWO, [kept, saying("stops")]).among == ()
    without = decide(TWO, [saying("excludes", "dare"), saying("keeps", "tsv")])
    assert without.among == tuple(name for name in MERGES if name != "dare")


def test_exclusions_come_first_and_contradictions_are_set_aside() -> None:
    rules = [
        saying("narrows", "dare", name="first"),
        saying("narrows", "ta", "tsv"),
        saying("excludes", "dare", "ta"),
    ]
    found = decide(TWO, rules)
    assert found.method == "tsv"
    assert found.overruled == ("first",)
    assert decide(TWO, [saying("excludes", *list(MERGES)[1:])]).method == "average"
    assert decide(TWO, [saying("excludes", *MERGES)]).method is None


def test_a_stop_ends_it() -> None:
    found = decide(TWO, [saying("narrows", "ta"), saying("stops", name="stop")])
    assert (found.method, found.stopped, found.why) == (None, True, "all: stop says")
    assert not_excluded(TWO, [saying("stops")]) == ()
    assert not_excluded(ONE, [saying("excludes", "dare")]) == ("magnitude", "dp", "magprune")


def test_large_deltas_rule_out_what_drops_at_random() -> None:
    large = facts(GROUND, [moved(GROUND, 0.5 * SIGMA, i) for i in range(2)])
    found = decide(large, rules_of(experience()))
    assert not set(found.left) & set(DROPPING)
    assert found.method is None  # the helpers' lab does not separate what is left


def test_small_deltas_follow_the_lab() -> None:
    small = facts(GROUND, [moved(GROUND, 0.05 * SIGMA, i) for i in range(2)])
    found = decide(small, rules_of(experience()))
    assert (found.method, found.left) == ("ta", ("ta", "ties"))
    assert settings_for("ta", small, experience()).scale == 1.0
    assert dict(settings_for("ties", small, experience()).fields) == {"density": 0.5}
    far = replace(small, models=tuple(replace(m, relative=5.0) for m in small.models))
    assert settings_for("ta", far, experience()).scale == MERGES["ta"].scale


def test_starting_values_prefer_cases_of_as_many_models() -> None:
    lab = experience()
    merges = tuple(replace(c, scales={"ta": 0.5 if len(c.models) == 3 else 1.0}) for c in lab.merges)
    lab = Experience(lab.prunings, merges)
    three, two = lab.start("ta", 0.05, 3), lab.start("ta", 0.05, 2)
    assert three is not None
    assert two is not None
    assert (three.scale, three.cases, two.scale, two.cases) == (0.5, 3, 1.0, 6)
    assert lab.start("ta", 0.05, 7) is not None
    assert lab.start("dare", 0.05, 2) is None
    assert lab.start("ta", 0.0, 2) is None


@pytest.mark.parametrize(
    ("points", "limit"),
    [
        ([(1.0, True), (4.0, False)], 2.0),
        ([(1.0, True), (2.0, False), (3.0, True), (48.0, False)], 12.0),
        ([(1.0, True), (2.0, True)], math.inf),
        ([(1.0, False), (2.0, False)], 0.0),
        ([], 0.0),
    ],
)
def test_a_split_makes_the_fewest_mistakes_in_the_widest_gap(
    points: list[tuple[float, float]], limit: float
) -> None:
    assert split(points, bool) == pytest.approx(limit)


def test_leaving_a_seed_out_leaves_nothing_of_it() -> None:
    rest = experience().without(1)
    assert {c.seed for c in rest.prunings} == {c.seed for c in rest.merges} == {0, 2}


def test_experience_survives_its_file() -> None:
    again = Experience.from_json(experience().as_json())
    assert again.merges == experience().merges
    assert again.prunings == experience().prunings
    assert bundled().limits.fine < bundled().limits.broken
