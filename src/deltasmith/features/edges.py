"""One edge of the graph: its comparison turned into statuses, rates, checks and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.errors import MissingExtraError
from deltasmith.features.codes import Codes
from deltasmith.features.comparing import CURVE, Comparison
from deltasmith.features.graph import Edge
from deltasmith.features.matching.assignment import hungarian
from deltasmith.features.matching.correlation import Best, correlate
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import DESCENT, FATE, Cosines, Descent, EdgeOutcome, Floor, Links
from deltasmith.features.rates import Persistence, persistence_of, share_of, verdict_of
from deltasmith.kernels.bits import uniform_bits
from deltasmith.operation.randomness import cell_key

__all__ = ["edge_outcome", "null_of", "weight_changes"]

Vectors = npt.NDArray[np.float32]
_ROWS = 1024
_SIMILAR = 0.7


def edge_outcome(
    edge: Edge,
    found: Comparison,
    *,
    codes: tuple[Codes, Codes],
    decoders: tuple[Vectors, Vectors],
    floors: Sequence[tuple[Floor, Persistence]],
    null: tuple[float, float],
    thresholds: Thresholds,
    weight_change: float | None,
) -> EdgeOutcome:
    """Gather all that is told of an edge. The first of the floors decides what is said of it."""
    above, below = found.correlated.of_parents, found.correlated.of_children
    unit = tuple(_unit(decoder) for decoder in decoders)
    cosine = _cosines_of(unit[0], unit[1], above)
    decisive = floors[0] if floors else (None, None)
    persistence = persistence_of(found, codes[0].fires)
    rates = persistence.rates
    return EdgeOutcome(
        edge.parent,
        edge.child,
        edge.kind,
        int(found.testable[0].sum()),
        {fate.value: int((found.paired.fate == at).sum()) for at, fate in enumerate(FATE)},
        {descent.value: int((found.paired.descent == at).sum()) for at, descent in enumerate(DESCENT)},
        {name: rate for name, rate in rates.items() if name in (*FATE, Descent.EMERGED)},
        tuple(floor for floor, _ in floors),
        *null,
        {f"{r:g}": rates[f"mutual_{r:g}"] for r in CURVE},
        rates["any_match"],
        rates["firing_weighted"],
        _assigned(found, thresholds),
        _pairwise_mean(found),
        _same_index(found),
        _directions(found, cosine, *unit),
        weight_change,
        verdict_of(persistence, decisive[1], decisive[0]),
        _links(found.paired.fate, above, cosine),
        _links(found.paired.descent, below, _cosines_of(unit[1], unit[0], below)),
    )


def null_of(
    parent: Codes, child: Codes, thresholds: Thresholds, *, key: tuple[int, str], threads: int = 1
) -> tuple[float, float]:
    """Match with the child's tokens permuted: what correlations arise where nothing is shared but firing rates.

    Returns the share of the parent's testable features whose best r reaches `strong`, and the 99.9th percentile of the
    best r. `key` is the seed, and what the permutation is for. (0, 0) where no feature is testable.
    """
    bits = uniform_bits(cell_key(key[0], "permute", key[1]), 0, child.tokens)
    shuffled = child.permuted(np.argsort(bits, kind="stable"))
    best = correlate(parent, shuffled, keep=1.0, threads=threads).of_parents.r
    best = best[parent.fires >= thresholds.min_fires]
    if not len(best):
        return 0.0, 0.0
    return float((best >= np.float32(thresholds.strong)).mean()), float(np.percentile(best, 99.9))


def _assigned(found: Comparison, thresholds: Thresholds) -> float | None:
    """Return the share of features with r >= strong under the best assignment; None without scipy."""
    try:
        partner = hungarian(found.correlated, thresholds.weak)
    except MissingExtraError:
        return None
    pairs = found.correlated
    strong = (pairs.r >= np.float32(thresholds.strong)) & (partner[pairs.parents] == pairs.children)
    reached = np.zeros(len(partner), np.bool_)
    reached[pairs.parents[strong]] = True
    share = float(share_of(reached[None], found.testable[:1])[0])
    return None if math.isnan(share) else share


def _pairwise_mean(found: Comparison) -> float:
    """Average the best r over each side's testable features, then over the two sides; 0 where a side has none."""
    above, below = found.correlated.of_parents.r, found.correlated.of_children.r
    sides = above[found.testable[0]], below[found.testable_child[0]]
    return float(np.mean([r.mean(dtype=np.float64) if len(r) else 0.0 for r in sides]))


def _same_index(found: Comparison) -> float | None:
    best, kept = found.correlated.of_parents.best, found.persisted[0]
    return float((best == np.arange(len(best)))[kept].mean()) if kept.any() else None


def _directions(found: Comparison, cosine: Vectors, parent: Vectors, child: Vectors) -> Cosines:
    """Summarise decoder directions of pairs, and what direction alone would match."""
    mutual = (found.paired.mutual >= 0) & found.testable[0]
    nearest = _nearest(parent[found.testable[0]], child)
    return Cosines(
        _median(cosine[found.persisted[0]]),
        _median(cosine[mutual]),
        float((nearest >= _SIMILAR).mean()) if len(nearest) else None,
    )


def _median(values: Vectors) -> float | None:
    return float(np.median(values)) if len(values) else None


def _nearest(parent: Vectors, child: Vectors) -> Vectors:
    """Return the largest cosine of each parent's direction with any of the child's."""
    parts = [(parent[at : at + _ROWS] @ child.T).max(axis=1) for at in range(0, len(parent), _ROWS)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _cosines_of(own: Vectors, other: Vectors, links: Best) -> Vectors:
    """Return the cosine of each feature's direction with that of its best partner; nan without one."""
    cosine = np.full(len(own), np.nan, np.float32)
    there = links.best >= 0
    cosine[there] = np.einsum("ij,ij->i", own[there], other[links.best[there]])
    return cosine


def _unit(decoder: Vectors) -> Vectors:
    """Scale directions to length one; a row of zeros stays."""
    length = np.linalg.norm(decoder, axis=1, keepdims=True)
    unit: Vectors = np.divide(decoder, length, out=np.zeros_like(decoder), where=length > 0)
    return unit


def _links(status: npt.NDArray[np.int8], best: Best, cosine: Vectors) -> Links:
    return Links(status, best.best, best.r, best.second, best.second_r, cosine)


def weight_changes(document: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Read how much the weights changed along the edges, where a study tells it."""
    told = document.get("weight_changes") or []
    return {(c["parent"], c["child"]): float(c["all"]) for c in told if c.get("all") is not None}
