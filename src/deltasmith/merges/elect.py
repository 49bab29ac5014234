"""TIES steps 2 and 3: models vote for a sign, and those that agree are merged. Trimming is an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from deltasmith.kernels import votes
from deltasmith.operation.protocols import Found, Merge, Place, Survey
from deltasmith.surveys.sums import Counts
from deltasmith.table.checkpoint import Floats

__all__ = ["Elect", "ElectMax", "ElectSum", "Zero"]

Zero = Literal["majority", "positive", "none"]


def _balance(cells: Sequence[Floats], place: Place) -> int:
    return votes.sign_balance(np.asarray(cells), place.weights)


class _Election(Merge):
    """Common to the three: who is elected where the votes cancel."""

    zero: Zero = "none"
    """The sign where Σ w·δ is exactly 0: none, positive, or the majority of all elected signs."""

    def survey(self, found: Found) -> Survey | None:
        """Ask, for `majority`, how many more positions of the whole model are positive than negative."""
        return Counts(_balance) if self.zero == "majority" and not found.shared else None

    def _fallback(self, found: Found) -> int:
        """Return the sign (−1, 0, 1) that a position gets whose votes cancel."""
        if self.zero == "majority":
            return int(np.sign(found.shared[0]))
        return 1 if self.zero == "positive" else 0


class Elect(_Election):
    """Average, position by position, the deltas that have the sign of the weighted sum: dis-mean.

    The elected sign is that of Σ w·δ. The models whose w·δ has that sign are averaged: Σ w·δ / Σ w over them;
    zeros (what an edit has dropped) never agree and do not dilute the mean. Where the votes cancel exactly,
    `zero` decides; where nobody agrees with the outcome the merged delta is 0. Negative weights turn a
    model's vote around; if the weights of those that agree add up to 0, the divisor is 1.

    After `keep_largest` this is TIES, after `drop` DARE-TIES, after `drop_by_rank` DELLA.

    Paper: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, steps 2 and 3 (`zero: majority`; where even the
    majority is a tie nothing is elected, while the released code then takes the negative entries); Deep et
    al. 2024, DELLA-Merging, arXiv 2406.11617, Algorithm 1, Elect and Fuse (`zero: none`). `zero: positive`
    with weights is mergekit's arithmetic. The papers have no weights.

    >>> import numpy as np
    >>> cells = np.array([[4.0, 1.0, 0.0], [2.0, -3.0, 0.0], [-1.0, 0.0, 5.0]], np.float32)
    >>> Elect().apply(cells, Place("w", (3,), weights=(1.0, 1.0, 1.0)), Found())
    array([ 3., -3.,  5.], dtype=float32)
    """

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the mean of the elected deltas of the tile."""
        return votes.elect_mean(cells, place.weights, place.weights, self._fallback(found))


class ElectSum(_Election):
    """Add up, position by position, the deltas that have the sign of the weighted sum: dis-sum.

    As `elect`, without its division: Σ w·δ over the models that agree.

    Paper: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, released code (`dis-sum`); mergekit's `ties`
    with `normalize: false`.
    """

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the sum of the elected deltas of the tile."""
        return votes.elect_sum(cells, place.weights, self._fallback(found))


class ElectMax(_Election):
    """Take, position by position, the largest of the deltas that have the sign of the weighted sum: dis-max.

    As `elect`, but of the models that agree the w·δ of largest magnitude wins; of equal ones it does not
    matter.

    Paper: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, released code (`dis-max`).
    """

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the largest elected delta of the tile."""
        return votes.elect_max(cells, place.weights, self._fallback(found))
