"""How the models' deltas lie to one another: the same way, across, or many at once."""

from __future__ import annotations

from deltasmith.advice.evidence import Evidence, Rule
from deltasmith.advice.facts import Facts

__all__ = ["RULES"]

ALIKE = 0.5
MANY = 5
TRIPLE = 3.0
CHANCE = 3.0


def _alike(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    if not facts.pairs:
        return ()
    least, most = (pick(facts.pairs, key=lambda p: p.cosine) for pick in (min, max))
    number = f"{least.cosine:+.3f} to {most.cosine:+.3f}"
    if least.cosine >= ALIKE:
        says = "the deltas agree: their mean keeps what they share, their sum would go that way several times"
        return (rule.found("all pairs", number, says, "narrows", ("average",)),)
    return (rule.found("all pairs", number, "no reason to average"),)


def _conflict(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    if not facts.pairs:
        return ()
    worst = max(facts.pairs, key=lambda p: p.conflict)
    about, number = ", ".join(worst.labels), f"{worst.conflict:.1%}"
    if worst.conflict < 0.45:
        return (
            rule.found(about, number, "fewer opposed signs than by chance: an election has little to decide"),
        )
    says = "as many opposed signs as by chance: an election discards half of what meets; whether that helps is open"
    return (rule.found(about, number, says),)


def _overlap(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    found = []
    for pair in facts.pairs:
        if (overlap := pair.overlap) is None:
            continue
        number = f"{overlap.left:.3f} left, {overlap.right:.3f} right, chance {overlap.chance:.3f}"
        far = max(overlap.left, overlap.right) > CHANCE * overlap.chance
        says = "the strongest directions are shared" if far else "the strongest directions are not shared"
        found.append(rule.found(", ".join(pair.labels), number, says))
    return tuple(found)


def _many(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    count = len(facts.models)
    if count < MANY or not facts.matrices:
        return ()
    says = (
        "of many deltas the leading singular directions, made orthogonal, keep more than sums and elections"
    )
    return (rule.found("all models", str(count), says, "narrows", ("tsv",)),)


def _uneven(rule: Rule, facts: Facts) -> tuple[Evidence, ...]:
    norms = sorted((model.norm, model.label) for model in facts.models if model.norm > 0)
    if len(norms) < 2 or norms[-1][0] / norms[0][0] <= TRIPLE:
        return ()
    says = f"{norms[-1][1]} will outvote {norms[0][1]}: try weights"
    return (rule.found("all models", f"{norms[-1][0] / norms[0][0]:.1f}", says, "warns"),)


RULES = (
    Rule(
        "direction",
        "cosine of two deltas",
        f"all pairs from {ALIKE} on: average",
        "survey; Wortsman et al. 2022, arXiv 2203.05482; two such deltas add up to 1.7 times one, or more",
        _alike,
    ),
    Rule(
        "sign conflict",
        "share of opposed signs where both moved",
        "0.5 by chance",
        "survey; Yadav et al. 2023, arXiv 2306.01708; against it Deep et al. 2024, arXiv 2406.11617, Table 4",
        _conflict,
    ),
    Rule(
        "subspaces",
        "mean squared cosine of the principal angles of the 8 leading singular directions",
        f"above {CHANCE:g} times chance: shared",
        "survey; Gargiulo et al. 2024, arXiv 2412.00081",
        _overlap,
    ),
    Rule(
        "many models",
        "number of models with matrices",
        f"from {MANY} on: TSV",
        "our lab, eight vision tasks (vision.json): TSV 71.1, task arithmetic 66.9, TIES 65.8, all tuned; between its 3"
        " and 8 models at the geometric mean; Gargiulo et al. 2024, arXiv 2412.00081",
        _many,
    ),
    Rule(
        "uneven sizes",
        "largest ‖δ‖ / ‖base‖ over the smallest",
        f"above {TRIPLE:g} warns",
        "survey: sums and elections weigh by |δ|",
        _uneven,
    ),
)
