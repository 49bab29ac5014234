"""Shares with intervals, the floors beside them, and what may be said of an edge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltasmith.analysis.resampling import percentile_interval
from deltasmith.features.comparing import CURVE, Comparison
from deltasmith.features.outcome import FATE, Descent, Fate, Floor, Rate, Verdict
from deltasmith.features.study import Member

__all__ = [
    "Persistence",
    "floor_of",
    "interval_of",
    "persistence_of",
    "rate_of",
    "rates_of",
    "ratio_of",
    "share_of",
    "sign_test",
    "verdict_of",
]

Flags = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float64]
"""(1 + resamples,): as observed, and under every resample."""
UNLIKELY = 0.05


@dataclass(frozen=True, eq=False)
class Persistence:
    """How many of a parent's testable features persist, and which: the flags (features,) are as observed."""

    shares: Shares
    persisted: Flags
    testable: Flags
    rates: Mapping[str, Rate]


def persistence_of(found: Comparison, fires: npt.NDArray[np.int64]) -> Persistence:
    """Keep of a comparison what floors are compared by; `fires` counts the firings of the parent's features."""
    shares = share_of(found.persisted, found.testable)
    return Persistence(shares, found.persisted[0].copy(), found.testable[0].copy(), rates_of(found, fires))


def rates_of(found: Comparison, fires: npt.NDArray[np.int64]) -> dict[str, Rate]:
    """Return every rate of a comparison.

    By Fate, of the parent's testable features; `emerged`, of the child's; `mutual_R`, the share with a mutual best
    partner at each R of CURVE; `any_match`, with any partner at r >= strong; `firing_weighted`, what persisted,
    weighted by `fires`.
    """
    rates = {
        fate.value: rate_of(share_of(found.fate == at, found.testable))
        for at, fate in enumerate(FATE)
        if fate not in (Fate.UNEXERCISED, Fate.DEAD)
    }
    rates[Descent.EMERGED.value] = rate_of(share_of(found.new, found.testable_child))
    rates |= {f"mutual_{r:g}": rate_of(found.reach[:, at]) for at, r in enumerate(CURVE)}
    rates["any_match"] = rate_of(found.reach[:, -1])
    rates["firing_weighted"] = rate_of(share_of(found.persisted, found.testable, fires))
    return rates


def share_of(holds: Flags, among: Flags, weights: npt.NDArray[np.int64] | None = None) -> Shares:
    """Return the share of the features `among` of which something `holds`, both (1 + resamples, features), by row.

    `weights` (features,) make some count for more. nan in rows without features to take a share of.
    """
    counted = among.astype(np.float64) if weights is None else among * weights.astype(np.float64)
    total = counted.sum(axis=1)
    held = (counted * holds).sum(axis=1)
    shares: Shares = np.divide(held, total, out=np.full(len(total), math.nan), where=total > 0)
    return shares


def interval_of(shares: Shares) -> tuple[float, float] | None:
    """Return a 95 % interval around what was observed: the middle of the draws, moved to have their mean there.

    A resample adds noise to correlations that hold noise already. Where many features lie on one side of a threshold it
    moves more of them across, so that shares under resamples are off by as much again as the observed share is off what
    endless text would give. That shift is no variation between texts, and is taken out; edge and floor, which are
    compared on the same text, share the rest of it. None without draws.
    """
    value, drawn = float(shares[0]), shares[1:]
    if not len(drawn) or not np.isfinite(shares).all():
        return None
    low, high = percentile_interval(drawn + (value - drawn.mean()))
    return min(low, value), max(high, value)


def rate_of(shares: Shares, most: float = 1.0) -> Rate:
    """Return what was observed with its interval, within [0, most]; no interval without draws."""
    found = interval_of(shares)
    if found is None:
        return Rate(float(shares[0]))
    return Rate(float(shares[0]), max(0.0, found[0]), min(most, found[1]))


def ratio_of(shares: Shares, floor: Shares) -> Shares:
    """Divide shares by those of the floor under the same resamples; nan where the floor is nothing."""
    ratios: Shares = np.divide(shares, floor, out=np.full(len(shares), math.nan), where=floor > 0)
    return ratios


def floor_of(member: Member, edge: Persistence, floor: Persistence, parent: str) -> Floor:
    """Compare what persists on an edge with what persists in a second dictionary of one model.

    Where that model is the edge's parent, its features are compared one by one, by a sign test.
    """
    own = member.label == parent
    fewer = more = 0
    if own:
        there, here = floor.persisted & edge.testable, edge.persisted & edge.testable
        fewer, more = int((there & ~here).sum()), int((here & ~there).sum())
    return Floor(
        member.name,
        "seed" if member.role == "seed" else "again",
        member.label,
        rate_of(floor.shares),
        rate_of(ratio_of(edge.shares, floor.shares), math.inf),
        fewer,
        more,
        sign_test(fewer, more) if own else None,
        floor.rates,
    )


def verdict_of(edge: Persistence, floor: Persistence | None, found: Floor | None) -> Verdict:
    """Say whether an edge keeps fewer features than its floor does.

    It does where the whole 95 % interval of (floor - edge) lies above zero, and the sign test, where there is one,
    gives p < 0.05. Without resamples nothing is said to have changed.
    """
    if floor is None or found is None:
        return "no floor"
    difference = interval_of(floor.shares - edge.shares)
    likely = difference is not None and difference[0] > 0
    if likely and (found.p_value is None or found.p_value < UNLIKELY):
        return "fewer than the floor"
    return "no evidence that features changed"


def sign_test(fewer: int, more: int) -> float:
    """Return the two-sided p-value of so uneven a split if both were equally likely; 1 where nothing differs.

    >>> sign_test(5, 0), sign_test(3, 3)
    (0.0625, 1.0)
    """
    tossed, least = fewer + more, min(fewer, more)
    logs = [
        math.lgamma(tossed + 1) - math.lgamma(k + 1) - math.lgamma(tossed - k + 1) - tossed * math.log(2)
        for k in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
