"""How large the deltas are against the region where dropping at random is known to fail."""

from __future__ import annotations

from collections.abc import Callable

from deltasmith.advice.candidates import DROPPING
from deltasmith.advice.evidence import Evidence, Rule
from deltasmith.advice.experience import Limits
from deltasmith.advice.facts import LIMITS, Facts

__all__ = ["rules_of"]

_COMFORT, _FINE, _BROKEN, _HOPELESS = LIMITS
UNEVEN = 2.0
_DARE = "Yu et al. 2023, arXiv 2311.03099"


def _absolute(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    found = []
    for model in facts.models:
        shares = ", ".join(
            f"{limit:g}: {share:.0%}" for limit, share in zip(LIMITS, model.above, strict=True)
        )
        number = f"{model.q90:.2g} (above {shares})"
        if model.q90 > _HOPELESS:
            says = "where continued pre-training leads: DARE's authors call it infeasible"
        elif model.q90 > _BROKEN:
            says = "where dropping a tenth destroyed a 13 B model"
        elif model.q90 > _FINE:
            says = "between what is known to work and what is known to fail"
        else:
            says = "where dropping 90 % cost a 13 B model little"
        found.append(rule.found(model.label, number, f"{says}; decides nothing alone"))
    return tuple(found)


def _relative(limits: Limits) -> Callable[[Rule, Facts], tuple[Evidence, ...]]:
    def judge(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
        found = []
        for model in facts.models:
            number = f"{model.relative:.3f}"
            if model.relative > limits.broken:
                says = "dropping at random breaks such deltas at high rates"
                found.append(rule.found(model.label, number, says, "excludes", DROPPING))
            elif model.relative <= limits.fine and model.q90 <= _BROKEN:
                found.append(rule.found(model.label, number, "dropping at random is harmless here"))
            elif model.q90 > _BROKEN and model.relative > limits.fine:
                says = "dropping at random is doubtful, by both measures"
                found.append(rule.found(model.label, number, says, "warns"))
            else:
                found.append(
                    rule.found(model.label, number, "not decided: the two measures differ, or lie between")
                )
        return tuple(found)

    return judge


def _outliers(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    return tuple(
        rule.found(
            model.label,
            f"{model.outliers[0]:.2%} to {model.outliers[1]:.2%} by layer, {model.far:.2%} above 5 times",
            "dynamic pruning would treat layers unequally"
            if model.outliers[1] > UNEVEN * model.outliers[0]
            else "layers are alike: dynamic pruning has little to allocate by",
        )
        for model in facts.models
    )


def rules_of(limits: Limits) -> tuple[Rule, ...]:
    """Return the rules on size, the relative one with these limits."""
    return (
        Rule(
            "size",
            "90th percentile of |δ| over the matrices of layers (`most` elements)",
            f"up to {_FINE:g} fine, above {_BROKEN:g} broken, above {_HOPELESS:g} hopeless",
            f"{_DARE}; absolute: seen on 13 B Llama-like checkpoints, whose weights are small; decides nothing alone",
            _absolute,
        ),
        Rule(
            "relative size",
            "90th percentile of |δ| / σ of the base's values in the same tensor",
            f"up to {limits.fine:.2f} fine, above {limits.broken:.2f} broken",
            "our lab (curves.json): what best separates experts that keep 90 % of their score, or less than 20 %, under"
            " DARE at rate 0.9",
            _relative(limits),
        ),
        Rule(
            "outliers",
            "share of |δ| above 3 times its layer's mean, lowest and highest layer; above 5 times its tensor's mean",
            f"highest above {UNEVEN:g} times the lowest: unequal",
            "survey; Zhu et al. 2024, arXiv 2403.02799; decides nothing",
            _outliers,
        ),
    )
