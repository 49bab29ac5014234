"""Dynamic partition amplification (DPA, stage two of DPPA): a factor for each shell of nested prunings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from deltasmith.edits.dynamic_prune import Allocating, strictly_above
from deltasmith.edits.keep_middle import chains
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.schedule import Density, Factor, is_schedule
from deltasmith.surveys import select
from deltasmith.table.checkpoint import Floats

__all__ = ["AmplifyPartitions", "AmplifyPartitionsEverywhere", "amplified", "effective_factors"]

Mask = npt.NDArray[np.bool_]


def effective_factors(factors: Sequence[float]) -> tuple[float, ...]:
    """Return what each partition is multiplied by: the largest of its own factor and those further out.

    Partitions come innermost first. Each pruned delta is scaled by its own factor and elementwise the largest
    magnitude wins, so an inner element, which is in all outer prunings too, gets the maximum.

    >>> effective_factors((1.0, 1.5, 0.5))
    (1.5, 1.5, 0.5)
    """
    return tuple(max(factors[i:]) for i in range(len(factors)))


def amplified(delta: Floats, supports: Sequence[Mask], factors: Sequence[float]) -> Floats:
    """Multiply each element by the factor of the innermost support that holds it; zero what none holds.

    `supports` are nested, innermost first, one per factor.
    """
    out = np.zeros_like(delta)
    for support, factor in reversed(list(zip(supports, effective_factors(factors), strict=True))):
        np.copyto(out, delta * np.float32(factor), where=support)
    return out


class AmplifyPartitions(Allocating):
    """Prune the decoder linears dynamically at nested densities; multiply each partition by its factor.

    Partition 1 is what the lowest density keeps, partition 2 what the next density keeps beyond that, and so
    on; the rest of a decoder linear becomes zero. A partition gets the largest of its own factor and the
    factors of the later partitions, so an inner one never gets less than an outer one. Other tensors are
    untouched.

    Paper: Zhu et al., "DPPA" (arXiv 2403.02799), DPA, after the released code (the paper's text was not
    available), which has two partitions, densities 0.1 and 0.2. Repairs: those of `DynamicPrune`, and tensors
    that were never pruned keep their delta, where the released code multiplies them by the largest factor.
    """

    densities: tuple[Density, ...] = Field((0.1, 0.2), min_length=1)
    """The densities of the nested prunings, ascending: the last is the fraction kept in all."""
    factors: tuple[Factor, ...] = Field(min_length=1)
    """One factor per density, each at least 0; the first belongs to the largest elements."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if len(self.factors) != len(self.densities):
            raise ValueError(f"{len(self.densities)} densities need as many factors, not {len(self.factors)}")
        if not is_schedule(self.densities) and any(
            a >= b for a, b in zip(self.densities, self.densities[1:], strict=False)
        ):
            raise ValueError(f"densities must ascend, not {self.densities}")
        return self

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the partitions, amplified."""
        if place.name not in found.shared[1]:
            return self._unpruned(delta)
        cuts = [self._cut(select.cut(part)) for part in chains(found.local, len(self.densities))]
        supports = [select.keep(delta, ends, place) != 0.0 for ends in cuts]
        return amplified(delta, supports, self.factors)

    def _densities(self) -> tuple[float, ...]:
        return self.densities

    def _cut(self, ends: select.Cut) -> select.Cut:
        return ends

    def _unpruned(self, delta: Floats) -> Floats:
        return delta.copy()


class AmplifyPartitionsEverywhere(AmplifyPartitions):
    """As `AmplifyPartitions`, but multiply tensors that were never pruned by the largest factor.

    Embeddings, heads, norms and biases are amplified too, and the pruning is that of `DynamicPruneAbove`.

    Paper: Zhu et al. (arXiv 2403.02799), as released (`enhance_offset.py`, `my_max`).
    """

    def _count(self, size: int, density: float) -> int:
        return max(0, super()._count(size, density) - 1)

    def _cut(self, ends: select.Cut) -> select.Cut:
        return strictly_above(ends)

    def _unpruned(self, delta: Floats) -> Floats:
        return delta * np.float32(max(self.factors))
