"""What our lab measured with deltas of this size: which methods were best, or level with the best, time and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from deltasmith.advice.evidence import Evidence, Rule
from deltasmith.advice.experience import OCTAVES, Experience
from deltasmith.advice.facts import Facts

__all__ = ["LEAST", "RELIABLE", "rules_of"]

RELIABLE = 0.8
LEAST = 6


def _lab(experience: Experience) -> Callable[[Rule, Facts], tuple[Evidence, ...]]:
    def judge(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
        near = experience.near(facts.relative, facts.goal)
        about, size = (
            "all models" if facts.goal == "merge" else facts.models[0].label,
            f"{facts.relative:.3f}",
        )
        if len(near) < LEAST:
            says = f"the lab has {len(near)} cases within an octave of this relative size: it has no say"
            return (rule.found(about, size, says),)
        counts = Counter(method for case in near for method in case.best)
        listed = ", ".join(f"{m} {n}" for m, n in counts.most_common())
        reliable = tuple(sorted(m for m, n in counts.items() if n >= RELIABLE * len(near)))
        number = f"of {len(near)}: {listed}"
        if not reliable:
            says = "which was best changed from case to case: the lab does not separate them"
            return (rule.found(about, number, says),)
        says = f"best or level with the best nearly always: {', '.join(reliable)}"
        return (rule.found(about, number, says, "narrows", reliable),)

    return judge


def rules_of(experience: Experience) -> tuple[Rule, ...]:
    """Return the rule that asks these cases."""
    return (
        Rule(
            "our lab",
            f"cases within {OCTAVES:g} octave of this relative size in which a method was best, or level with the best",
            f"{RELIABLE:.0%} of at least {LEAST}",
            "our lab (merges.json, curves.json): 0.5 M parameters, paired bootstrap over items",
            _lab(experience),
        ),
    )
