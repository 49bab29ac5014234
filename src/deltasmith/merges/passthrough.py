"""One model's cells, unchanged; and how a record's field finds the column of a label."""

from __future__ import annotations

from difflib import get_close_matches
from typing import ClassVar

import numpy as np

from deltasmith.errors import RecipeError
from deltasmith.operation.protocols import Found, Merge, Place, Space
from deltasmith.table.checkpoint import Floats

__all__ = ["Passthrough", "column_of"]


def column_of(place: Place, label: str) -> int:
    """Return the column of the model labelled `label`; RecipeError if there is none."""
    if label in place.labels:
        return place.labels.index(label)
    near = get_close_matches(label, place.labels, n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"the labels are {', '.join(place.labels) or '(none)'}"
    raise RecipeError(f"no model is labelled {label!r}", where="the merge", fix=fix)


class Passthrough(Merge):
    """Copy the weights of the one model labelled `model`; the others and all `weight` values have no say.

    Useful for the tensors of a rule, or as a building block where tensors come from different models.
    """

    space: ClassVar[Space] = "weight"
    spaces: ClassVar[tuple[Space, ...]] = ("weight",)

    model: str
    """The label of the model to copy."""

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return a copy of that model's tile."""
        return np.array(cells[column_of(place, self.model)], np.float32)
