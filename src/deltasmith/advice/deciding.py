"""Evidence → one recommendation, or none: the lines narrow the candidates one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltasmith.advice.candidates import MERGES, PRUNINGS, Candidate
from deltasmith.advice.evidence import Evidence, Rule
from deltasmith.advice.experience import Experience
from deltasmith.advice.facts import Facts, Goal

__all__ = ["Decision", "Settings", "candidates_for", "decide", "not_excluded", "settings_for"]


_ALONE = "every other candidate is excluded"


@dataclass(frozen=True)
class Decision:
    """The evidence, and what it leaves: `method` (None: abstains) of the candidates `left`, and why.

    `overruled`: rules that would have left nothing of what earlier ones had left. `among`: those left, or where one
    is left, the ones that the line which left it chose from.
    """

    evidence: tuple[Evidence, ...]
    left: tuple[str, ...]
    method: str | None
    why: str
    overruled: tuple[str, ...] = ()
    stopped: bool = False
    among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Starting values of a candidate, and where they come from."""

    scale: float
    fields: Mapping[str, Any]
    source: str


def candidates_for(goal: Goal) -> Mapping[str, Candidate]:
    """Return the candidates by name, fewest settings first."""
    return PRUNINGS if goal == "prune" else MERGES


def not_excluded(facts: Facts, rules: Sequence[Rule]) -> tuple[str, ...]:
    """Return the candidates that no rule excludes; none where a rule stops."""
    evidence = [line for rule in rules for line in rule(facts)]
    if any(line.effect == "stops" for line in evidence):
        return ()
    return _allowed(facts, evidence)


def _allowed(facts: Facts, evidence: Sequence[Evidence]) -> tuple[str, ...]:
    out = {method for line in evidence if line.effect == "excludes" for method in line.methods}
    return tuple(name for name in candidates_for(facts.goal) if name not in out)


def decide(facts: Facts, rules: Sequence[Rule]) -> Decision:
    """Let the rules speak in order; recommend what is left, if one is, or if those left are known to be level.

    Exclusions count first. Then every line that keeps or narrows leaves the methods it names; one that would leave
    nothing is overruled by those before it. Where several are left and a line that narrows names them all, they are
    level by that evidence, and the one with the fewest settings is taken. Otherwise nothing separates the candidates,
    and there is no recommendation: not to have been shown to be worse is not to be level.
    """
    evidence = tuple(line for rule in rules for line in rule(facts))
    stops = [line for line in evidence if line.effect == "stops"]
    if stops:
        return Decision(evidence, (), None, f"{stops[0].about}: {stops[0].says}", stopped=True)
    left = among = _allowed(facts, evidence)
    used: list[Evidence] = []
    overruled: list[str] = []
    for line in (line for line in evidence if line.effect in ("keeps", "narrows")):
        kept = tuple(name for name in left if name in line.methods)
        if not kept:
            overruled.append(line.rule)
            continue
        among, left = (left if len(left) > 1 else among), kept
        used.append(line)
    level = [line for line in used if line.effect == "narrows"]
    if len(left) == 1:
        why = (level or used)[-1].says if used else _ALONE
        return Decision(evidence, left, left[0], why, tuple(overruled), among=among)
    if not level:
        why = (
            f"{len(left)} candidates are left, and nothing separates them" if left else "no candidate is left"
        )
        return Decision(evidence, left, None, why, tuple(overruled), among=left)
    why = f"{level[-1].says}; the fewest settings: {left[0]}"
    return Decision(evidence, left, left[0], why, tuple(overruled), among=left)


def settings_for(method: str, facts: Facts, lab: Experience) -> Settings:
    """Return a method's starting values: from the lab's cases that are near, else its paper's."""
    candidate = candidates_for(facts.goal)[method]
    if facts.goal == "prune":
        return Settings(candidate.scale, candidate.fields, candidate.source)
    start = lab.start(method, facts.relative, len(facts.models))
    if start is None:
        return Settings(candidate.scale, candidate.fields, candidate.source)
    source = f"our lab: mean of what {start.cases} searches found at this relative size"
    return Settings(start.scale, start.fields or candidate.fields, source)
