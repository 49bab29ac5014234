"""CABS: n:m sparsity for one model after the other, each avoiding the positions that earlier ones kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from deltasmith.errors import RefusedError
from deltasmith.kernels import votes
from deltasmith.operation.protocols import Found, Merge, Place, Reach
from deltasmith.table.checkpoint import Floats

__all__ = ["Cabs", "CabsFilled", "CabsWholeBlocks", "n_of_m", "prune_in_turn"]

Marks = npt.NDArray[np.bool_]

_CHUNK = 1 << 18  # elements sorted at a time: the sort needs 16 bytes for each


def n_of_m(delta: Floats, taken: Marks, n: int, m: int) -> Marks:
    """Mark the n best elements of every block of m consecutive ones: free ones first, then the largest.

    Ties go to the lower index. A shorter block at the end gets the same fraction of its length, rounded up.
    """
    marks = np.zeros(delta.size, np.bool_)
    whole = delta.size - delta.size % m
    step = m * max(1, _CHUNK // m)
    for start in range(0, whole, step):
        part = slice(start, min(whole, start + step))
        marks[part] = _best(delta[part].reshape(-1, m), taken[part].reshape(-1, m), n).reshape(-1)
    tail = slice(whole, delta.size)
    if whole < delta.size:
        marks[tail] = _best(delta[tail][None], taken[tail][None], -(-n * (delta.size - whole) // m))[0]
    return marks


def _best(blocks: Floats, taken: Marks, n: int) -> Marks:
    """Mark, in every row, the n that come first when sorted by (taken, magnitude descending, index)."""
    ranked = np.lexsort((-np.abs(blocks), taken), axis=1)
    marks = np.zeros(blocks.shape, np.bool_)
    np.put_along_axis(marks, ranked[:, :n], True, axis=1)
    return marks


class Cabs(Merge):
    """Keep n of every m consecutive deltas of each model, none where an earlier model kept one, and sum.

    Models take their turns in column order: the first keeps its n largest magnitudes in each block of m along
    the flattened tensor, the second its n largest among what is left, and so on; the kept deltas are added,
    each multiplied by its weight. Order matters. Blocks do not stop at the ends of rows. A shorter block at
    the end keeps the same fraction, rounded up. Ties go to the lower index; a zero may use up one of the n
    places. More than m/n models leave nothing for the last ones.

    Paper: Yang et al. 2025, CABS: Conflict-Aware and Balanced Sparsification, arXiv 2503.01874. Departures:
    any number of models (the code has two); the short block at the end, which the code zeroes
    (`CabsWholeBlocks`).

    >>> import numpy as np
    >>> cells = np.array([[4.0, 3.0, 2.0, 1.0], [5.0, 6.0, 8.0, 7.0]], np.float32)
    >>> Cabs(n=1, m=2).apply(cells, Place("w", (4,), weights=(1.0, 0.5)), Found())
    array([4. , 3. , 2. , 3.5], dtype=float32)
    """

    reach: ClassVar[Reach] = "tensor"

    n: Annotated[int, Field(ge=1)]
    """How many deltas of a block each model keeps."""
    m: Annotated[int, Field(ge=1)]
    """The length of a block."""

    @model_validator(mode="after")
    def _n_fits(self) -> Self:
        if self.n > self.m:
            raise ValueError(f"n must not exceed m: a block of {self.m} has no {self.n} elements")
        return self

    def _marks(self, delta: Floats, taken: Marks) -> Marks:
        """Mark what a model keeps of its flat delta when earlier models hold the positions `taken`."""
        return n_of_m(delta, taken, self.n, self.m) & ~taken

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return the sum of the kept deltas of the tensor."""
        return votes.weighted_sum(prune_in_turn(self, cells), place.weights)


class CabsWholeBlocks(Cabs):
    """As `Cabs`, but zero the elements after the last whole block, so tensors shorter than m vanish.

    Paper: Yang et al. 2025, CABS, arXiv 2503.01874: the authors' script for RoBERTa.
    """

    def _marks(self, delta: Floats, taken: Marks) -> Marks:
        marks = super()._marks(delta, taken)
        marks[delta.size - delta.size % self.m :] = False
        return marks


class CabsFilled(Cabs):
    """As `Cabs`, but fill up to n of m from positions that earlier models kept, largest magnitude first.

    Matters where n is more than half of m, or models are many, and they cannot help but overlap. As in the
    authors' code, a tensor whose size m does not divide is refused, and for n = m/2 exactly every model after
    the first keeps everything (the code takes the last 0 of a list, which is all of it).

    Paper: Yang et al. 2025, CABS, arXiv 2503.01874: the authors' script for 7B models.
    """

    def _marks(self, delta: Floats, taken: Marks) -> Marks:
        if delta.size % self.m:
            raise RefusedError(
                f"{delta.size} elements do not divide into blocks of {self.m}",
                where="cabs_filled",
                fix="choose an m that divides every tensor, or use cabs, which allows a shorter last block",
            )
        if 2 * self.n == self.m and taken.any():
            return np.ones(delta.size, np.bool_)
        return n_of_m(delta, taken, self.n, self.m)


def prune_in_turn(cabs: Cabs, deltas: Floats) -> Floats:
    """Zero what each model does not keep; `deltas` is (models, ...), in the order of their turns."""
    taken = np.zeros(deltas[0].size, np.bool_)
    pruned = np.zeros_like(deltas)
    for delta, kept in zip(deltas, pruned.reshape(len(deltas), -1), strict=True):
        flat = delta.reshape(-1)
        marks = cabs._marks(flat, taken)
        kept[marks] = flat[marks]
        taken |= marks
    return pruned
