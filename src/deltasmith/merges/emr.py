"""EMR: one task's delta rebuilt from the unified vector, its mask and its rescaler. Storage is a codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltasmith.kernels import votes
from deltasmith.merges.passthrough import column_of
from deltasmith.operation.protocols import Found, Merge, Place, Survey
from deltasmith.surveys.sums import Sums, Totals
from deltasmith.table.checkpoint import Floats

__all__ = ["RESCALERS", "Emr", "masked", "task_terms"]


def masked(unified: Floats, delta: Floats) -> Floats:
    """Keep the unified vector where the task's delta has its sign; zero it elsewhere, and where δ is 0."""
    agree = ((unified > 0) & (delta > 0)) | ((unified < 0) & (delta < 0))
    return np.where(agree, unified, np.float32(0))


def task_terms(unified: Floats, delta: Floats) -> npt.NDArray[np.float64]:
    """Sum one block for the rescalers: Σ|δ|, Σ|Mτ|, Σ δ·Mτ, Σ (Mτ)², and the number of elements."""
    own = delta.reshape(-1).astype(np.float64)
    kept = masked(unified, delta).reshape(-1).astype(np.float64)
    return np.array(
        [np.abs(own).sum(), np.abs(kept).sum(), (own * kept).sum(), (kept * kept).sum(), own.size]
    )


def _l1(totals: Totals) -> float:
    """Match the L1 norms over the whole model: Σ|δ| / Σ|Mτ|."""
    whole = totals.whole
    return _ratio(0.0, 0.0) if whole is None else _ratio(whole[0], whole[1])


def _l1_tensor_mean(totals: Totals) -> float:
    """Match the sums over tensors of mean magnitudes, so that every tensor counts equally."""
    means = [part[:2] / part[4] for part in totals.by_tensor.values()]
    return _ratio(sum(m[0] for m in means), sum(m[1] for m in means))


def _l2(totals: Totals) -> float:
    """Minimise the squared error: ⟨δ, Mτ⟩ / ‖Mτ‖²."""
    whole = totals.whole
    return _ratio(0.0, 0.0) if whole is None else _ratio(whole[2], whole[3])


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 1.0


RESCALERS: dict[str, Callable[[Totals], float]] = {"l1": _l1, "l1_tensor_mean": _l1_tensor_mean, "l2": _l2}
"""From the sums of `task_terms` to the rescaler λ; 1 where nothing of the task survives its mask (0/0)."""


class Emr(Merge):
    """Rebuild the delta of one task from the unified vector: λ·M·τ, as the EMR decoder would.

    τ is the unified vector of all models (`unify`), M keeps the positions where the task's own delta has τ's
    sign (a delta of 0 is masked out), and λ is one number for the whole model. Weights multiply the deltas
    first. If nothing of the task survives its mask, the result is 0 and λ counts as 1.

    Paper: Huang et al. 2024, EMR-Merging, arXiv 2405.17461: Elect, Mask and Rescale. Departures: none with
    `l1`; the released code uses `l1_tensor_mean`. The paper's appendix B says that `l1` minimises the squared
    error; it does not, `l2` does.
    """

    task: str
    """The label of the model whose delta is rebuilt."""
    rescaler: Literal["l1", "l1_tensor_mean", "l2"] = "l1"
    """How λ is found: by L1 norms of the whole model, by L1 means of its tensors, or by least squares."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for the sums that determine λ."""
        return None if found.shared else Sums(self._terms)

    def _terms(self, cells: Sequence[Floats], place: Place) -> npt.NDArray[np.float64]:
        stacked = np.stack([cell.reshape(-1) for cell in cells])
        return task_terms(votes.unify(stacked, place.weights), self._own(stacked, place))

    def _own(self, cells: Floats, place: Place) -> Floats:
        task = column_of(place, self.task)
        own: Floats = cells[task] * np.float32(place.weights[task])
        return own

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return λ·M·τ of the tile."""
        scale = np.float32(RESCALERS[self.rescaler](found.shared[0]))
        return np.asarray(
            masked(votes.unify(cells, place.weights), self._own(cells, place)) * scale, np.float32
        )
