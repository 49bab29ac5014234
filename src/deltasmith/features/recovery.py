"""How much of what its parents learned a merge has, domain by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltasmith.features.study import Score

__all__ = ["recovered_share"]


def recovered_share(
    scores: Mapping[str, Mapping[str, Score]], merge: str, parents: Sequence[str], base: str | None
) -> dict[str, float | None]:
    """Return for each domain (base - merge) / (base - best parent) in loss: 1 is all that it gained, 0 nothing.

    The best parent of a domain is the one with the lowest loss there. None where there is no base, or where no parent
    is better than the base: there is nothing to recover then. Below 0 the merge is worse than the base.

    >>> scores = {name: {"lua": Score(loss, 0.5, 100)} for name, loss in (("base", 3.0), ("a", 2.0), ("m", 2.25))}
    >>> recovered_share(scores, "m", ["a"], "base")
    {'lua': 0.75}
    """
    shares: dict[str, float | None] = {}
    for domain, score in scores.get(merge, {}).items():
        there = [scores[p][domain].loss for p in parents if domain in scores.get(p, {})]
        ground = scores.get(base, {}).get(domain) if base is not None else None
        gained = ground.loss - min(there) if ground is not None and there else 0.0
        shares[domain] = (ground.loss - score.loss) / gained if ground is not None and gained > 0 else None
    return shares
