"""Dynamic pruning (DP, the first stage of DPPA): more density for the layers and linears with more outliers.

Surveys: the mean magnitude of every linear and layer; how many elements lie far above it; then, tensor by
tensor, the magnitude at which to cut. `allocation` and `feasible` turn the outlier counts into densities and
hold all of the method's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deltasmith.edits.keep_middle import chains
from deltasmith.kernels import drops
from deltasmith.operation.protocols import BlockSums, Edit, Found, Place, Scope, Survey
from deltasmith.operation.schedule import Density
from deltasmith.surveys import select
from deltasmith.table.checkpoint import Floats
from deltasmith.table.names import layer_of, matches

__all__ = [
    "Allocating",
    "DynamicPrune",
    "DynamicPruneAbove",
    "Linear",
    "allocation",
    "feasible",
    "is_linear",
    "layer_densities",
    "strictly_above",
]

Layer = tuple[str, int]
Densities = npt.NDArray[np.float64]
Counts = Mapping[str, tuple[int, ...]]

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Linear:
    """What the surveys count in one linear: its elements, and those far above its layer's or own mean."""

    layer: Layer
    size: int
    outliers_in_layer: int
    outliers: int


def is_linear(name: str, shape: tuple[int, ...], globs: Sequence[str]) -> bool:
    """Tell whether this is a decoder linear: a matrix under a layer number, `*_proj.weight` or in a glob."""
    named = name.endswith("_proj.weight") or any(matches(glob, name) for glob in globs)
    return named and len(shape) == 2 and layer_of(name) is not None


def layer_densities(linears: Sequence[Linear], density: float, spread: float) -> dict[Layer, float]:
    """Return K of every layer: density + spread * o / max |o|, o being its centred share of outliers.

    The centring is an unweighted mean over layers; equal shares (a single layer too) give the density itself.
    """
    layers = sorted({linear.layer for linear in linears})
    sizes = {layer: sum(x.size for x in linears if x.layer == layer) for layer in layers}
    outliers = {layer: sum(x.outliers_in_layer for x in linears if x.layer == layer) for layer in layers}
    shares = np.array([100.0 * outliers[layer] / sizes[layer] for layer in layers])
    offsets = _scaled(shares, shares - shares.mean()) if layers else shares
    return {layer: density + spread * float(offset) for layer, offset in zip(layers, offsets, strict=True)}


def allocation(linears: Sequence[Linear], density: float, spread: float) -> Densities:
    """Return k of every linear: its layer's K + spread * g / max |g|, g being its centred outlier share.

    This centring is weighted by size, over all linears of the model. Not yet clamped: two terms of +- spread
    may leave [0, 1].
    """
    of_layer = layer_densities(linears, density, spread)
    base = np.array([of_layer[x.layer] for x in linears])
    sizes = np.array([x.size for x in linears], dtype=np.float64)
    shares = np.array([100.0 * x.outliers / x.size for x in linears])
    if not shares.size or shares.max() == 0.0:
        return base
    relative = shares / shares.mean()
    return base + spread * _scaled(shares, relative - (sizes * relative).sum() / sizes.sum())


def _scaled(shares: Densities, centred: Densities) -> Densities:
    """Scale to a largest magnitude of 1; equal shares (where rounding would decide) give zeros."""
    return np.zeros_like(centred) if np.ptp(shares) == 0.0 else centred / np.abs(centred).max()


def feasible(densities: Densities, sizes: npt.ArrayLike) -> Densities:
    """Clamp densities to [0, 1] and shift the others by one common amount: the total kept stays.

    A common shift of the density spreads the elements in proportion to size. Densities that already fit come
    back unchanged. Totals that no shift can reach end at all zeros or all ones.

    >>> feasible(np.array([-0.1, 0.3, 0.4]), [10, 10, 10]).round(6).tolist()
    [0.0, 0.25, 0.35]
    """
    if ((densities >= 0.0) & (densities <= 1.0)).all():
        return densities
    weights = np.asarray(sizes, dtype=np.float64)
    # The total grows with the shift, piecewise linearly, with kinks where a density enters or leaves [0, 1].
    kinks = np.concatenate([-densities, 1.0 - densities])
    order = np.argsort(kinks, kind="stable")
    slopes = np.cumsum(np.concatenate([weights, -weights])[order])
    kinks = kinks[order]
    totals = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(kinks))])
    shift = np.interp(densities @ weights, totals, kinks)
    shifted: Densities = np.clip(densities + shift, 0.0, 1.0)
    return shifted


class Allocating(Edit):
    """What dynamic pruning and partition amplification share: the allocation and the surveys that feed it."""

    spread: Spread = 0.08
    """How far a layer's and, on top, a linear's outliers may move the density (the released `Lamda`)."""
    layer_factor: Positive = 3.0
    """An element is an outlier of its layer above this multiple of the layer's mean magnitude."""
    linear_factor: Positive = 5.0
    """An element is an outlier of its linear above this multiple of the linear's mean magnitude."""
    linears: tuple[str, ...] = ()
    """Globs naming further decoder linears beside `*_proj.weight` (matrices under a layer number only)."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for mean magnitudes, then outliers, then each tensor's cuts."""
        if not found.shared:
            return _Magnitudes(self.linears)
        if len(found.shared) == 1:
            return _Outliers(found.shared[0], self.layer_factor, self.linear_factor, self._counts)
        return _next_cut(found.local, found.shared[1], len(self._densities()))

    def _densities(self) -> tuple[float, ...]:
        """Return the densities to allocate, ascending."""
        raise NotImplementedError

    def _count(self, size: int, density: float) -> int:
        """Return how many elements of a linear are kept at its allocated density."""
        return size - int(np.floor(size * (1.0 - density)))

    def _counts(self, linears: Mapping[str, Linear]) -> Counts:
        """Allocate every density to every linear."""
        sizes = [linear.size for linear in linears.values()]
        shares = [
            feasible(allocation(tuple(linears.values()), density, self.spread), sizes)
            for density in self._densities()
        ]
        return {
            name: tuple(self._count(linear.size, float(share[i])) for share in shares)
            for i, (name, linear) in enumerate(linears.items())
        }


class DynamicPrune(Allocating):
    """Keep the largest elements of each decoder linear, more where layer or linear have more outliers.

    Zero the others, rescale nothing. Of a linear with allocated density k and n elements floor(n (1 - k)) are
    zeroed, exactly; ties go to the lower index. Tensors that are no decoder linears (embeddings, heads,
    norms, biases) are untouched. A model without outliers, or with the same share everywhere, keeps `density`
    of every linear.

    Paper: Zhu et al., "DPPA: Pruning Method for Large Language Model to Model Merging" (arXiv 2403.02799),
    DP. Its text was not available: this is the released code (`prune_mag_outlier_layer_wei`) in float32,
    repaired. Repairs: the released code also zeroes the threshold element and its ties (`DynamicPruneAbove`
    does), divides 0 by 0 where all shares are equal (here: no offset) and fails where an allocation leaves
    [0, 1] (here: clamped, the excess spread over the other linears in proportion to size, so that the total
    stays).
    """

    density: Density
    """The fraction of all decoder linears' elements that is kept, in (0, 1]; one constant."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the delta without what lies below its tensor's cut."""
        if place.name not in found.shared[1]:
            return delta.copy()
        return select.keep(delta, select.cut(found.local), place)

    def _densities(self) -> tuple[float, ...]:
        return (self.density,)


class DynamicPruneAbove(DynamicPrune):
    """As `DynamicPrune`, but zero floor(n (1 - k)) + 1 elements and all that tie with the largest of these.

    Paper: Zhu et al. (arXiv 2403.02799), as released, in float32: everything with magnitude <= the element at
    index floor(n (1 - k)) of the ascending order. Departures only where the released code fails, as for
    `DynamicPrune`; at an allocated density of 0 everything is zeroed.
    """

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return what lies strictly above the tensor's threshold."""
        if place.name not in found.shared[1]:
            return delta.copy()
        return select.keep(delta, strictly_above(select.cut(found.local)), place)

    def _count(self, size: int, density: float) -> int:
        return max(0, super()._count(size, density) - 1)


def strictly_above(ends: select.Cut) -> select.Cut:
    """Return the cut that drops the elements tied at its threshold where it would keep only some of them."""
    if ends.quota == ends.equal:
        return ends
    return select.Cut(ends.keep - ends.quota, ends.total, ends.pattern, quota=0, equal=ends.equal)


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The elements of one linear, the mean of their magnitudes, and that of the whole layer."""

    size: int
    mean: float
    layer_mean: float


@dataclass(frozen=True)
class _Magnitudes:
    """Sum the magnitudes of every linear."""

    globs: tuple[str, ...]
    scope: ClassVar[Scope] = "global"
    sample: ClassVar[int] = 0

    def start(self) -> tuple[BlockSums, dict[str, int]]:
        return BlockSums(), {}

    def tally(self, acc: tuple[BlockSums, dict[str, int]], cells: Sequence[Floats], place: Place) -> None:
        if is_linear(place.name, place.shape, self.globs):
            acc[0].add(place, drops.abs_sum(np.ascontiguousarray(cells[0]).reshape(-1)))
            acc[1][place.name] = place.size

    def conclude(self, accs: Sequence[tuple[BlockSums, dict[str, int]]]) -> dict[str, Magnitude]:
        sizes = {name: size for _, named in accs for name, size in named.items()}
        totals = {n: float(total) for n, total in BlockSums.total([sums for sums, _ in accs]).items()}
        in_layer: dict[Layer | None, tuple[float, int]] = {}
        for name, total in totals.items():
            before = in_layer.get(layer_of(name), (0.0, 0))
            in_layer[layer_of(name)] = before[0] + total, before[1] + sizes[name]
        means = {layer: total / size for layer, (total, size) in in_layer.items()}
        return {n: Magnitude(sizes[n], total / sizes[n], means[layer_of(n)]) for n, total in totals.items()}


@dataclass(frozen=True)
class _Outliers:
    """Count the elements of every linear far above its layer's mean and its own, and allocate."""

    magnitudes: Mapping[str, Magnitude]
    layer_factor: float
    linear_factor: float
    allocate: Callable[[Mapping[str, Linear]], Counts]
    scope: ClassVar[Scope] = "global"
    sample: ClassVar[int] = 0

    def start(self) -> dict[str, tuple[int, int]]:
        return {}

    def tally(self, acc: dict[str, tuple[int, int]], cells: Sequence[Floats], place: Place) -> None:
        own = self.magnitudes.get(place.name)
        if own is None:
            return
        flat = np.ascontiguousarray(cells[0]).reshape(-1)
        in_layer, in_linear = acc.get(place.name, (0, 0))
        in_layer += drops.count_above(flat, np.float32(self.layer_factor * own.layer_mean))
        in_linear += drops.count_above(flat, np.float32(self.linear_factor * own.mean))
        acc[place.name] = in_layer, in_linear

    def conclude(self, accs: Sequence[dict[str, tuple[int, int]]]) -> Counts:
        linears = {}
        for name in sorted(self.magnitudes):
            layer, size = layer_of(name), self.magnitudes[name].size
            counts = [acc.get(name, (0, 0)) for acc in accs]
            if layer is not None:
                linears[name] = Linear(layer, size, sum(c[0] for c in counts), sum(c[1] for c in counts))
        return self.allocate(linears)


@dataclass(frozen=True, slots=True)
class Untouched:
    """The tensor at hand is no decoder linear: no cut is needed."""


@dataclass
class _Seen:
    inner: Any
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _FirstCut:
    """The first round of a tensor's selection: its blocks tell which tensor it is, hence how many to keep."""

    counts: Counts
    chain: int
    scope: ClassVar[Scope] = "tensor"

    @property
    def sample(self) -> int:
        return self._selection(0).sample

    def start(self) -> _Seen:
        return _Seen(self._selection(0).start())

    def tally(self, acc: _Seen, cells: Sequence[Floats], place: Place) -> None:
        if place.name in self.counts:
            acc.names.add(place.name)
            self._selection(0).tally(acc.inner, cells, place)

    def conclude(self, accs: Sequence[_Seen]) -> object:
        names = sorted({name for acc in accs for name in acc.names})
        if not names:
            return Untouched()
        return self._selection(self.counts[names[0]][self.chain]).conclude([acc.inner for acc in accs])

    def _selection(self, count: int) -> Survey:
        survey = select.next_survey((), scope="tensor", keep=lambda total: min(total, count))
        if survey is None:
            raise AssertionError("a selection without findings always asks for a survey")
        return survey


def _next_cut(local: Sequence[object], counts: Counts, n: int) -> Survey | None:
    """Return the next round of the first unfinished of n selections."""
    if local and isinstance(local[0], Untouched):
        return None
    for chain, findings in enumerate(chains(local, n)):
        if not findings:
            return _FirstCut(counts, chain)
        if survey := select.next_survey(findings, scope="tensor", keep=lambda total: total):
            return survey
    return None
