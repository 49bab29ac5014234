"""Keep the largest elements by magnitude, over the whole model or per tensor (the trim step of TIES)."""

from __future__ import annotations

from dataclasses import replace

from deltasmith.operation.protocols import Edit, Found, Place, Survey
from deltasmith.operation.schedule import Density
from deltasmith.surveys import select
from deltasmith.table.checkpoint import Floats

__all__ = ["KeepAtLeast", "KeepLargest", "KeepLargestInTensor"]


class KeepLargest(Edit):
    """Keep the int(density * N) elements of largest magnitude, N counting all tensors the edit applies to.

    Zero the others; at least one element stays. One threshold serves the whole model, so tensors that changed
    little may lose everything. The count is exact: of elements tied at the threshold those with the lower
    tensor name (alphabetically) and then the lower index stay. Nothing is rescaled. Where `density` is a
    schedule, tensors with the same value form a group with a threshold of its own.

    Paper: Yadav et al., "TIES-Merging" (arXiv 2306.01708), step 1, trim: keep the top-k % of each task
    vector.
    """

    density: Density
    """The fraction kept, in (0, 1]."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for the magnitude at which to cut the model."""
        return select.next_survey(found.shared, scope="global", keep=self._count)

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the delta without what lies below the cut."""
        return select.keep(delta, select.cut(found.shared), place)

    def _count(self, total: int) -> int:
        return max(1, int(self.density * total))


class KeepAtLeast(Edit):
    """Keep every element whose magnitude reaches that of the (int(density * N) + 1)-th largest of the model.

    Zero the others. That is one more than `keep_largest`, and all ties: where more than 1 - density of the
    deltas are exactly zero, the threshold is zero and nothing is trimmed. Density 1 keeps everything.
    A schedule forms groups, as for `keep_largest`.

    Paper: Yadav et al. (arXiv 2306.01708), as released (`topk_values_mask`): threshold = the k-th smallest
    magnitude with k = N - int(density * N), kept where >=. Departures: the released code fails at density 1,
    and reads densities above 1 as per cent.
    """

    density: Density
    """The fraction kept, in (0, 1]."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for the magnitude at which to cut the model."""
        return select.next_survey(found.shared, scope="global", keep=self._count)

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the delta without what lies below the threshold."""
        ends = select.cut(found.shared)
        return select.keep(delta, replace(ends, quota=ends.equal), place)

    def _count(self, total: int) -> int:
        return int(self.density * total) + 1


class KeepLargestInTensor(Edit):
    """Keep the int(density * n) elements of largest magnitude of each tensor of n elements; zero the others.

    At least one element of every tensor stays. The count is exact: ties go to the lower index. Nothing is
    rescaled. Unlike `keep_largest`, every tensor keeps the same fraction, norms and biases included.

    Paper: none; mergekit 0.1.5, `magnitude`. With `amplify` by 1 / density it is DARE's magnitude ablation
    (Yu et al., arXiv 2311.03099), whose released code keeps n - int(n * p) elements, p = 1 - density: one
    more where the product is not whole.
    """

    density: Density
    """The fraction kept of each tensor, in (0, 1]."""

    def survey(self, found: Found) -> Survey | None:
        """Ask for the magnitude at which to cut the tensor."""
        return select.next_survey(found.local, scope="tensor", keep=self._count)

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return the delta without what lies below the cut."""
        return select.keep(delta, select.cut(found.local), place)

    def _count(self, total: int) -> int:
        return max(1, int(self.density * total))
