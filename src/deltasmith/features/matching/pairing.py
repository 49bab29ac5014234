"""What became of every latent of a parent in a child, and where every latent of the child comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltasmith.features.matching.correlation import Best, Correlated
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import DESCENT, FATE, Descent, Fate

__all__ = ["Paired", "fates_and_descents"]

Counts = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Places = npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Paired:
    """The status of every latent on both sides of an edge.

    `fate` (parent's latents,) holds places in FATE, `descent` (child's latents,) places in DESCENT. `mutual` (parent's
    latents,) int32 is the child that is each parent's mutual best at any r > 0, -1 where there is none; it is the
    same feature where `fate` says persisted.
    """

    fate: Places
    descent: Places
    mutual: npt.NDArray[np.int32]


def fates_and_descents(
    correlated: Correlated, fires_parent: Counts, fires_child: Counts, thresholds: Thresholds
) -> Paired:
    """Give every latent its status: the first of these that holds.

    For a parent's latent p that fires at least min_fires times, with b(p) its best child at r(p):

    - disappeared: r(p) < weak, or no child fires together with it.
    - persisted: r(p) >= strong and p is the best parent of b(p) (mutual best).
    - split: at least two testable children of r >= weak have p as their best parent.
    - fused: at least two testable parents of r >= weak have b(p) as their best child (p is one of them).
    - drifted: what is left: one to one, but too weak or not mutual to be called the same.

    It is dead if it never fires and else, below min_fires, unexercised. A child's latent is judged by the same rules
    with the sides exchanged: emerged for disappeared, *fused* where several parents chose it, then *split* where
    its best parent was chosen by several children.

    Whether a latent is tested depends on its own firing alone, so that rates over the testable latents of a side
    are not biased by what is found on the other. Its partner may therefore be an unexercised latent (20 firings on one
    side often face 19 on the other), but such latents are not counted as further parts of a split or a fusion.

    From this follows, where the partner is testable: that of a persisted latent persisted, so both sides count as many;
    the best parent of a split child is split or persisted (with another child); the best child of a fused parent is
    fused or persisted (with another parent). Numbers of split or fused latents differ between the sides.

    Ties were decided when correlating: the lower index is the better one. So of two identical latents on both sides
    the first persist and the second are fused and split.
    """
    above, below = correlated.of_parents, correlated.of_children
    fate = _statuses(above, below, fires_parent, fires_child, thresholds, _FATES)
    descent = _statuses(below, above, fires_child, fires_parent, thresholds, _DESCENTS)
    mutual = np.where(_is_mutual(above, below) & (above.r > 0), above.best, -1).astype(np.int32)
    return Paired(fate, descent, mutual)


_FATES = tuple(
    FATE.index(status)
    for status in (
        Fate.DRIFTED, Fate.FUSED, Fate.SPLIT, Fate.PERSISTED, Fate.DISAPPEARED, Fate.UNEXERCISED, Fate.DEAD
    )
)  # fmt: skip
_DESCENTS = tuple(
    DESCENT.index(status)
    for status in (
        Descent.DRIFTED, Descent.SPLIT, Descent.FUSED, Descent.PERSISTED, Descent.EMERGED, Descent.UNEXERCISED,
        Descent.DEAD,
    )
)  # fmt: skip
"""From the last rule to the first: the partner has several, it has several itself, …"""


def _statuses(
    own: Best, other: Best, fires: Counts, other_fires: Counts, thresholds: Thresholds, names: tuple[int, ...]
) -> Places:
    """Apply the rules, from the last to the first, to one side."""
    weak, strong = np.float32(thresholds.weak), np.float32(thresholds.strong)
    drifted, partner_shared, shared, persisted, gone, unexercised, dead = names
    partnered = (own.best >= 0) & (own.r >= weak)
    # How many testable latents of the one side chose each latent of the other as their best.
    suitors = _chosen(other, other_fires, len(fires), thresholds)
    rivals = _chosen(own, fires, len(other_fires), thresholds)
    status = np.full(len(fires), drifted, np.int8)
    status[partnered & (np.append(rivals, 0)[own.best] >= 2)] = partner_shared
    status[partnered & (suitors >= 2)] = shared
    status[_is_mutual(own, other) & (own.r >= strong)] = persisted
    status[~partnered] = gone
    status[fires < thresholds.min_fires] = unexercised
    status[fires == 0] = dead
    return status


def _chosen(side: Best, fires: Counts, width: int, thresholds: Thresholds) -> Counts:
    counted = (side.best >= 0) & (side.r >= np.float32(thresholds.weak)) & (fires >= thresholds.min_fires)
    return np.bincount(side.best[counted], minlength=width)


def _is_mutual(own: Best, other: Best) -> npt.NDArray[np.bool_]:
    """Tell of each latent whether it is the best partner of its best partner."""
    returned = np.append(other.best, -1)[
        own.best
    ]  # place -1, of those without a partner, is the one appended
    found: npt.NDArray[np.bool_] = (own.best >= 0) & (returned == np.arange(len(own.best)))
    return found
