"""How much of what its parents learned a merge has, domain by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltasmith.features.study import Score
from deltasmith.features.sweep_measures import experts_of

__all__ = ["recovered_share"]


def recovered_share(
    scores: Mapping[str, Mapping[str, Score]], merge: str, parents: Sequence[str], base: str | None
) -> dict[str, float | None]:
    """Return for each domain (base - merge) / (base - expert) in loss: 1 is all that the expert gained, 0 nothing.

    The expert of a domain is its most accurate parent, if that is more accurate than the base by two standard errors
    (`experts_of`) and has a lower loss. None where there is no base or no expert: a gain within the noise is no ground
    to divide by. Below 0 the merge is worse than the base, above 1 better than the expert.

    >>> def score(loss, right): return {"lua": Score(loss, right, 100)}
    >>> recovered_share({"base": score(3.0, 0.3), "a": score(2.0, 0.6), "m": score(2.25, 0.5)}, "m", ["a"], "base")
    {'lua': 0.75}
    """
    ground = scores.get(base) if base is not None else None
    merged = scores.get(merge, {})
    if ground is None:
        return dict.fromkeys(merged)
    domains = [
        domain for domain in merged if domain in ground and all(domain in scores.get(p, {}) for p in parents)
    ]
    experts = experts_of(ground, {parent: scores[parent] for parent in parents if parent in scores}, domains)
    shares: dict[str, float | None] = dict.fromkeys(merged)
    for domain, expert in experts.items():
        gained = ground[domain].loss - scores[expert][domain].loss if expert is not None else 0.0
        if gained > 0:
            shares[domain] = (ground[domain].loss - merged[domain].loss) / gained
    return shares
