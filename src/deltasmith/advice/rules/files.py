"""What lies beside the tensors: vocabularies, special tokens, templates, and the grid the numbers are stored on."""

from __future__ import annotations

from deltasmith.advice.evidence import Evidence, Rule
from deltasmith.advice.facts import Facts

__all__ = ["RULES"]

HIDDEN = 0.3
LOST = 0.1


def _differences(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    return tuple(rule.found("files", "", warning, "warns") for warning in facts.warnings)


def _rounding(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    found = []
    for model in facts.models:
        number = f"{model.unmoved:.1%}"
        if model.rounded is None:
            found.append(
                rule.found(model.label, number, "unmoved; how much of it is rounding cannot be told")
            )
            continue
        number += f", by rounding {model.rounded:.1%}"
        if model.rounded > HIDDEN:
            says = "so much of the fine-tune was rounded away when it was stored; is there a copy in float32?"
            found.append(rule.found(model.label, number, says, "warns"))
        else:
            found.append(rule.found(model.label, number, "little is hidden by the stored type"))
    return tuple(found)


def _lost(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    return tuple(
        rule.found(
            model.label,
            f"{model.lost_half:.1%}",
            "so many moved weights would round back to the base's: write the merge with `dtype: float32`",
            "warns",
        )
        for model in facts.models
        if model.lost_half is not None and model.lost_half > LOST
    )


RULES = (
    Rule(
        "files",
        "vocabulary, special tokens, chat template",
        "equal",
        "files; what `plan` warns of",
        _differences,
    ),
    Rule(
        "rounding: hidden",
        "share of unmoved weights, and what of it comes from a stored type whose half step is too coarse",
        f"above {HIDDEN:.0%} warns",
        "survey: unmoved weights beyond the share seen where the step is a sixteenth of the median |δ|",
        _rounding,
    ),
    Rule(
        "rounding: to come",
        "share of moved weights that half the delta would leave unmoved in the stored type",
        f"above {LOST:.0%} warns",
        "survey: |δ| against the step of the base's values",
        _lost,
    ),
)
