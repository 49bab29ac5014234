"""What the rules may know: figures of each model, of each pair, and what files and scores add. Plain numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from deltasmith.advice.measuring import Measured, combined
from deltasmith.advice.spectrum import Spectrum, relative_quantile

__all__ = [
    "LIMITS",
    "Facts",
    "Goal",
    "Loss",
    "ModelFacts",
    "Overlap",
    "PairFacts",
    "Score",
    "facts_of",
    "hidden",
]

Goal = Literal["prune", "merge"]

LIMITS = (0.002, 0.005, 0.01, 0.03)
"""|δ| that DARE's authors name (arXiv 2311.03099): most below the first two is fine, above the third broken, the last
hopeless."""


@dataclass(frozen=True)
class ModelFacts:
    """One model's delta, over the matrices of numbered layers (all tensors where there is none).

    `q50`, `q90`, `q99`: |δ| that so many per cent of elements do not exceed. `above`: shares of |δ| above each of
    LIMITS. `relative`: the 90th percentile of |δ| / σ, σ being the standard deviation of the base's values in the same
    tensor. `norm`: ‖δ‖ / ‖base‖. `cosine`: of the weights with the base's. `unmoved`: share of δ = 0; `rounded`: what
    of that the coarse numbers of the type explain (None: cannot be told). `lost_half`: share of the moved elements
    that half the delta would leave unmoved in that type. `outliers`: per layer the share of |δ| above 3 times its mean
    (lowest, highest); `far`: share above 5 times its tensor's mean.
    """

    label: str
    q50: float
    q90: float
    q99: float
    above: tuple[float, ...]
    relative: float
    sigma: float
    norm: float
    cosine: float
    unmoved: float
    rounded: float | None = None
    lost_half: float | None = None
    outliers: tuple[float, float] = (0.0, 0.0)
    far: float = 0.0


@dataclass(frozen=True)
class Overlap:
    """Mean squared cosine of the principal angles between two deltas' leading singular directions, and by chance."""

    left: float
    right: float
    chance: float
    matrices: int


@dataclass(frozen=True)
class PairFacts:
    """How two models' deltas agree, over the same tensors as `ModelFacts`."""

    labels: tuple[str, str]
    cosine: float
    conflict: float
    overlap: Overlap | None = None


@dataclass(frozen=True)
class Score:
    """What DARE at a rate of 0.9 keeps of a model's score on one task or the mean of several; with an interval."""

    label: str
    kept: float
    low: float
    high: float
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """The change of the loss that one candidate brings on the user's data: predicted, measured, its 95 % interval.

    `above`: by how much it exceeds the least of the candidates' changes, with the 95 % interval of that difference,
    taken chunk by chunk of the same data; NaN limits where there is one chunk, and three zeros for the least itself.
    """

    method: str
    predicted: float
    measured: float
    low: float
    high: float
    above: tuple[float, float, float]


@dataclass(frozen=True)
class Facts:
    """Everything that is known of a base and its models; what is not known is empty."""

    models: tuple[ModelFacts, ...]
    pairs: tuple[PairFacts, ...] = ()
    matrices: bool = True
    warnings: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    losses: tuple[Loss, ...] = field(default=())

    @property
    def goal(self) -> Goal:
        """Tell what is asked for: how to prune one model, or how to merge several."""
        return "prune" if len(self.models) == 1 else "merge"

    @property
    def relative(self) -> float:
        """Return the geometric mean of the models' relative size; 0 where a delta is zero."""
        sizes = [model.relative for model in self.models]
        return math.exp(sum(map(math.log, sizes)) / len(sizes)) if min(sizes) > 0 else 0.0


def facts_of(
    measured: Sequence[Measured],
    overlaps: dict[tuple[str, str], Overlap],
    warnings: Sequence[str] = (),
    scores: Sequence[Score] = (),
    losses: Sequence[Loss] = (),
) -> Facts:
    """Boil the figures of all tensors down to what the rules compare."""
    linear = [one for one in measured if one.linear and one.size]
    kept = linear or [one for one in measured if one.size]
    whole = combined(kept, "model")[0]
    layers = combined(kept, "layer")
    models = tuple(_model(label, kept, whole, layers) for label in whole.columns)
    pairs = tuple(
        PairFacts(pair, change.cosine, change.sign_conflict, overlaps.get(pair))
        for pair, change in whole.pairs.items()
    )
    return Facts(models, pairs, bool(linear), tuple(warnings), tuple(scores), tuple(losses))


def _model(label: str, kept: Sequence[Measured], whole: Measured, layers: Sequence[Measured]) -> ModelFacts:
    column = whole.columns[label]
    spectrum, size = column.spectrum, column.change.size
    parts = [(one.columns[label].spectrum, one.sigma) for one in kept]
    shares = [_above_mean(one.columns[label].spectrum, one.columns[label].change.mean, 3.0) for one in layers]
    far = sum(
        one.columns[label].spectrum.above(5.0 * one.columns[label].change.mean)
        for one in kept
        if one.columns[label].change.total
    )
    lost = [hidden(one, label) for one in kept]
    known = [found for found in lost if found is not None]
    return ModelFacts(
        label=label,
        q50=spectrum.quantile(0.5),
        q90=spectrum.quantile(0.9),
        q99=spectrum.quantile(0.99),
        above=tuple(spectrum.above(limit) / size for limit in LIMITS),
        relative=relative_quantile(parts, 0.9),
        sigma=whole.sigma,
        norm=column.change.relative_norm,
        cosine=column.base_cosine,
        unmoved=column.change.zero_fraction,
        rounded=sum(share * n for share, n in known) / sum(n for _, n in known) if known else None,
        lost_half=None if column.rounding is None else column.rounding.lost(0.5),
        outliers=(min(shares), max(shares)),
        far=far / size,
    )


def _above_mean(spectrum: Spectrum, mean: float, factor: float) -> float:
    return spectrum.above(factor * mean) / spectrum.size if mean and spectrum.size else 0.0


def hidden(one: Measured, label: str) -> tuple[float, int] | None:
    """Return the share of a tensor that rounding left unmoved, and its elements."""
    column = one.columns[label]
    moved = Spectrum(0, column.spectrum.first, column.spectrum.counts)
    if column.rounding is None or not moved.size:
        return None
    share = column.rounding.hidden(moved.quantile(0.5))
    return None if share is None else (share, one.size)
