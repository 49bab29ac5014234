"""All rules in the order in which they narrow the candidates: what was measured on these models before what was not."""

from __future__ import annotations

from deltasmith.advice.evidence import Rule
from deltasmith.advice.experience import Experience
from deltasmith.advice.rules import bases, directions, experience, files, scores, sizes

__all__ = ["rules_of"]


def rules_of(lab: Experience) -> tuple[Rule, ...]:
    """Return the rules; those that learn from the lab learn from `lab` alone."""
    return (
        *bases.RULES,
        *files.RULES,
        *scores.RULES,
        *sizes.rules_of(lab.limits),
        *directions.RULES,
        *experience.rules_of(lab),
    )
