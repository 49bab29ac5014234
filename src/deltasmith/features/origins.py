"""Where the features of a merge come from, and which features of its parents it has lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from deltasmith.features.comparing import Comparison
from deltasmith.features.graph import Node
from deltasmith.features.outcome import DESCENT, ORIGIN, Descent, MergeOutcome, Origin
from deltasmith.features.rates import rate_of, share_of

__all__ = ["merge_outcome"]

Flags = npt.NDArray[np.bool_]
_AT = {origin: ORIGIN.index(origin) for origin in Origin}


def merge_outcome(
    node: Node,
    base: str | None,
    into: Mapping[str, Comparison],
    lost_in: Sequence[Comparison],
) -> MergeOutcome:
    """Find the origin of every feature of a merge, by the rules of `Origin`, and count what was lost.

    `into` are the comparisons of each parent, and of the base where there is one, with the merge; `lost_in` those of
    the base with each parent (none without a base).
    """
    parents = [into[label] for label in node.parents]
    from_base = None if base is None else into[base]
    origin, bits = _origins(parents, from_base, lost_in)
    testable = parents[0].testable_child
    observed = _with_idle(origin[0], parents[0])
    which = {f"inherited:{label}": bits >> i & 1 > 0 for i, label in enumerate(node.parents)}
    inherited = origin == _AT[Origin.INHERITED]
    parts = {
        f"inherited:{label}": inherited & held
        for label, held in zip(node.parents, which.values(), strict=True)
    }
    rates = {o.value: share_of(origin == _AT[o], testable) for o in Origin if o not in _IDLE}
    rates |= {name: share_of(held, testable) for name, held in parts.items()}
    gone = {label: comparison.lost for label, comparison in zip(node.parents, parents, strict=True)}
    lost = {label: share_of(flags, into[label].testable) for label, flags in gone.items()}
    return MergeOutcome(
        node.label,
        base,
        node.parents,
        {o.value: int((observed == _AT[o]).sum()) for o in Origin}
        | {name: int((held & testable)[0].sum()) for name, held in parts.items()},
        {name: rate_of(shares) for name, shares in rates.items()},
        {label: int(flags[0].sum()) for label, flags in gone.items()},
        {label: rate_of(shares) for label, shares in lost.items()},
        _lost_everywhere(from_base, lost_in),
        observed,
        np.where(testable[0], bits[0], 0).astype(np.int32),
    )


_IDLE = {Origin.UNEXERCISED: Descent.UNEXERCISED, Origin.DEAD: Descent.DEAD}


def _origins(
    parents: Sequence[Comparison], base: Comparison | None, lost_in: Sequence[Comparison]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Apply the rules from the last to the first, to what was observed and to every resample."""
    kept = np.stack([found.kept for found in parents])  # (parents, 1 + resamples, features)
    some, all_of = kept.any(axis=0), kept.all(axis=0)
    sources = [*parents, *([base] if base is not None else [])]
    known = ~np.stack([found.new for found in sources]).all(axis=0)
    origin = np.full(some.shape, _AT[Origin.NOVEL], np.int8)
    origin[known] = _AT[Origin.DRIFTED]
    if base is not None:
        origin[base.kept] = _AT[Origin.BASE]
    origin[some] = _AT[Origin.INHERITED]
    origin[all_of] = _AT[Origin.CONSENSUS]
    if base is not None and lost_in:
        lost = np.stack([found.lost for found in lost_in]).any(axis=0)
        there = np.take_along_axis(lost, np.maximum(base.parent_of, 0).astype(np.int64), axis=1)
        origin[base.kept & there] = _AT[Origin.RECOVERED]
    bits = (kept << np.arange(len(parents), dtype=np.int32)[:, None, None]).sum(axis=0, dtype=np.int32)
    return origin, bits


def _with_idle(origin: npt.NDArray[np.int8], found: Comparison) -> npt.NDArray[np.int8]:
    """Mark the features that cannot be told of: they fire too rarely, or never."""
    idle = origin.copy()
    for here, there in _IDLE.items():
        idle[found.paired.descent == DESCENT.index(there)] = _AT[here]
    return idle


def _lost_everywhere(base: Comparison | None, lost_in: Sequence[Comparison]) -> int:
    """Count the base's features that are gone in a parent, and gone in the merge."""
    if base is None or not lost_in:
        return 0
    return int((np.stack([found.lost[0] for found in lost_in]).any(axis=0) & base.lost[0]).sum())
