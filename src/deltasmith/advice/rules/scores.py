"""What was measured on these very models: scores of pruned experts, and the loss of the candidates."""

from __future__ import annotations

import math

from deltasmith.advice.evidence import Evidence, Rule
from deltasmith.advice.facts import Facts

__all__ = ["KEEPS", "RULES"]

KEEPS = 0.9
_AGAINST = {
    "prune": "change of the mean loss per token against the model that is pruned",
    "merge": "change of the mean loss per token against the base",
}


def _dppa(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    found = []
    for score in facts.scores:
        number = f"{score.kept:.1%} [{score.low:.1%}, {score.high:.1%}]"
        noise = " (within the noise of these items)" if score.low < KEEPS <= score.high else ""
        if score.kept < KEEPS:
            kept = "dp" if facts.goal == "prune" else "dppa"
            says = f"dynamic pruning takes DARE's place{noise}"
            found.append(rule.found(score.label, number, says, "excludes", ("dare", "dare_ties")))
            if facts.goal == "prune":
                found.append(rule.found(score.label, number, says, "narrows", (kept,)))
        else:
            found.append(
                rule.found(score.label, number, f"DARE suffices: dynamic pruning is not needed{noise}")
            )
            methods = ("dp",) if facts.goal == "prune" else ("dppa",)
            found.append(rule.found(score.label, number, f"DARE suffices{noise}", "excludes", methods))
    return tuple(found)


def _loss(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    if not facts.losses:
        return ()
    best = min(facts.losses, key=lambda loss: (loss.measured, loss.method))
    found = [
        rule.found(
            loss.method,
            f"{loss.measured:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}], predicted {loss.predicted:+.4f}"
            + (", {:.4f} [{:+.4f}, {:+.4f}] above the least".format(*loss.above) if loss is not best else ""),
            _AGAINST[facts.goal],
        )
        for loss in facts.losses
    ]
    if not all(math.isfinite(loss.low) and math.isfinite(loss.high) for loss in facts.losses):
        return (
            *found,
            rule.found("data", "", "the data are one chunk and have no interval: give more documents"),
        )
    near = tuple(loss.method for loss in facts.losses if loss is best or loss.above[1] <= 0)
    others = ", ".join(method for method in near if method != best.method)
    number = f"{best.measured:+.4f}"
    says = f"least loss: {best.method}; " + (
        f"not shown to be above it: {others}" if others else "all others are shown to be above it"
    )
    return (*found, rule.found("data", number, says, "keeps", near))


RULES = (
    Rule(
        "DPPA's criterion",
        "share of its score a model keeps when DARE drops 90 % of its delta",
        f"below {KEEPS:.0%} DP takes DARE's place",
        "your scores; Zhu et al. 2024, arXiv 2403.02799",
        _dppa,
    ),
    Rule(
        "loss on your data",
        "change of the mean loss per token",
        "the least, and all whose difference to it, in pairs, has an interval that reaches zero, stay",
        "your data; 95 % intervals over chunks of text, paired; A Unified View of Delta Parameter Editing, arXiv "
        "2410.13841, eq. 1",
        _loss,
    ),
)
