"""Keep the middle of the magnitudes: drop outliers and small changes alike (Model Breadcrumbs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from deltasmith.kernels.ranks import rank_rows
from deltasmith.operation.protocols import Edit, Found, Place, Reach, Survey
from deltasmith.operation.schedule import Density, Rate
from deltasmith.surveys import select
from deltasmith.table.checkpoint import Floats

__all__ = ["KeepMiddleOfRow", "KeepMiddleOfTensor", "chains"]


def chains(findings: Sequence[object], n: int) -> list[tuple[object, ...]]:
    """Split the findings of n selections made one after the other; each ends with its cut."""
    parts: list[list[object]] = [[] for _ in range(n)]
    at = 0
    for finding in findings:
        parts[at].append(finding)
        at += isinstance(finding, select.Cut)
    return [tuple(part) for part in parts]


class KeepMiddleOfRow(Edit):
    """Zero each row's int(gamma * n) largest magnitudes, keep the int(density * n) next, zero the rest.

    Ties rank in index order, the first as the larger. Rows shorter than 1 / density keep nothing, except that
    a row of one element is kept unchanged. Fewer are kept where both fractions together exceed the row. No
    rescaling.

    Paper: Davari and Belilovsky, "Model Breadcrumbs" (arXiv 2312.06795), as released
    (`TaskVectorMiddleKeep`). Departure: the released rows run along the last axis; here a row is one output
    unit, which is the same for matrices and vectors, while the kernels of a convolution are ranked together
    (alone they are too short to keep anything), and scalars are kept as there.

    >>> row = np.array([[9.0, 3.0, -5.0, 1.0]], np.float32)
    >>> KeepMiddleOfRow(density=0.5, gamma=0.25).apply(row, Place("w", (1, 4)), Found()).tolist()
    [[0.0, 3.0, -5.0, 0.0]]
    """

    reach: ClassVar[Reach] = "row"

    density: Density
    """The fraction of each row that is kept, in (0, 1] (the paper's beta)."""
    gamma: Rate = 0.006
    """The fraction of each row's largest magnitudes that is removed, in [0, 1)."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the middle of each row of (rows, width)."""
        width = delta.shape[-1]
        if width == 1:
            return delta.copy()
        first = int(width * self.gamma)
        ranks = rank_rows(delta)
        kept = (ranks >= first) & (ranks < first + int(width * self.density))
        return np.where(kept, delta, np.float32(0.0))


class KeepMiddleOfTensor(Edit):
    """Zero each tensor's int(gamma * n) largest magnitudes, keep the int(density * n) next, zero the rest.

    Where both do not fit, fewer are removed, so that the density holds. Counts are exact; ties go to the
    lower index, which counts as the larger. A tensor of one element is kept unchanged. No rescaling.

    Paper: Davari and Belilovsky (arXiv 2312.06795) in mergekit 0.1.5's form, `magnitude_outliers`. Departure:
    where int(gamma * n) is 0 mergekit zeroes the whole tensor by an empty slice; here nothing is removed.
    """

    density: Density
    """The fraction of each tensor that is kept, in (0, 1]."""
    gamma: Rate = 0.01
    """The fraction of each tensor's largest magnitudes that is removed, in [0, 1)."""

    def survey(self, found: Found) -> Survey | None:
        """Ask first for the upper cut, then for the lower one."""
        upper, lower = chains(found.local, 2)
        return select.next_survey(upper, scope="tensor", keep=self._removed) or select.next_survey(
            lower, scope="tensor", keep=self._above_bottom
        )

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return what lies between the cuts."""
        upper, lower = chains(found.local, 2)
        left = select.keep(delta, select.cut(lower), place)
        largest = select.kept(delta, select.cut(upper), place).reshape(delta.shape)
        return np.where(largest, np.float32(0.0), left)

    def _removed(self, total: int) -> int:
        return min(int(self.gamma * total), total - self._kept(total))

    def _above_bottom(self, total: int) -> int:
        return self._removed(total) + self._kept(total)

    def _kept(self, total: int) -> int:
        return 1 if total == 1 else int(self.density * total)
