"""Is this the base the models were trained from? Whatever follows would be wrong otherwise."""

from __future__ import annotations

from deltasmith.advice.evidence import Evidence, Rule
from deltasmith.advice.facts import Facts

__all__ = ["RULES"]

UNRELATED = 0.3
DOUBTFUL = 0.7
FAR = 1.2
APART = 10.0
SHARED = 0.8
_OURS = "survey; "


def _cosine(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    found = []
    for model in facts.models:
        if model.cosine < UNRELATED:
            says = "the weights have next to nothing in common with the base's: it is another model's base"
            found.append(rule.found(model.label, f"{model.cosine:.3f}", says, "stops"))
        elif model.cosine < DOUBTFUL:
            says = "further from this base than fine-tuning usually goes: is there a nearer one?"
            found.append(rule.found(model.label, f"{model.cosine:.3f}", says, "warns"))
    return tuple(found)


def _norm(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    return tuple(
        rule.found(
            model.label, f"{model.norm:.2f}", "the delta is larger than the weights it is added to", "stops"
        )
        for model in facts.models
        if model.norm > FAR
    )


def _apart(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    norms = sorted((model.norm, model.label) for model in facts.models)
    if len(norms) < 2 or norms[0][0] <= 0 or norms[-1][0] / norms[0][0] <= APART:
        return ()
    (near, first), (far, last) = norms[0], norms[-1]
    says = f"{last} lies {far / near:.0f} times as far from the base as {first}: was it trained from another model?"
    return (rule.found(f"{first}, {last}", f"{far / near:.1f}", says, "warns"),)


def _parent(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    return tuple(
        rule.found(
            ", ".join(pair.labels),
            f"{pair.cosine:.2f}",
            "both moved the same way: a common ancestor later than this base would make both deltas small",
            "warns",
        )
        for pair in facts.pairs
        if pair.cosine > SHARED
    )


def _nothing(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    return tuple(
        rule.found(
            model.label, "1.000", "it does not differ from the base: there is no delta to work on", "stops"
        )
        for model in facts.models
        if model.unmoved >= 1.0
    )


RULES = (
    Rule("no delta", "share of unmoved weights", "below 1", "survey", _nothing),
    Rule(
        "base: direction",
        "cosine of the model's weights and the base's",
        f"below {UNRELATED} another base, below {DOUBTFUL} doubtful",
        f"{_OURS}unrelated models give 0; deltas at right angles to the base and as large as it give 0.71; the lab's "
        "largest give 0.97",
        _cosine,
    ),
    Rule(
        "base: distance",
        "‖δ‖ / ‖base‖",
        f"above {FAR} another base",
        f"{_OURS}unrelated models of equal norm give 1.41; fine-tunes of small image networks reach 1.06",
        _norm,
    ),
    Rule(
        "base: one far, one near",
        "largest ‖δ‖ / ‖base‖ over the smallest",
        f"above {APART:g} doubtful",
        f"{_OURS}Yu et al. 2023, arXiv 2311.03099: deltas above 0.01 to the wrong base, within 0.0002 to the right"
        " one; the lab's largest and smallest fine-tunes of one base differ 9 times: not enough for a warning",
        _apart,
    ),
    Rule(
        "base: common ancestor",
        "cosine of two deltas",
        f"above {SHARED} doubtful",
        f"{_OURS}fine-tunes for different tasks lie within 0.04 in the lab, of small image networks within 0.67",
        _parent,
    ),
)
