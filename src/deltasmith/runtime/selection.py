"""Which delta each row of the batch takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deltasmith.errors import RefusedError

__all__ = ["Active", "Group", "Selection"]

Group = tuple[str | None, Any]
"""A label (None: the base), and the indices of its rows."""


class Selection:
    """One label for every row, or a label per row; None is the base."""

    def __init__(self, rows: str | Sequence[str | None] | None) -> None:
        """Take a label, or one label per row; a list of equal labels still fixes the number of rows."""
        self.rows: tuple[str | None, ...] = (rows,) if rows is None or isinstance(rows, str) else tuple(rows)
        self.uniform = rows is None or isinstance(rows, str)
        self._known: dict[tuple[int, Any], list[Group]] = {}

    @property
    def label(self) -> str | None:
        """Return the label of a uniform selection."""
        return self.rows[0]

    def groups(self, length: int, device: Any) -> list[Group]:
        """Split `length` leading indices by label, in order of first appearance.

        A length that is a multiple of the number of rows is a batch whose rows were flattened or repeated (beams),
        each row's entries side by side. Raises RefusedError for any other length.
        """
        key = (length, device)
        if key not in self._known:
            times, left = divmod(length, len(self.rows))
            if left or not times:
                raise RefusedError(
                    f"the batch has {length} rows and {len(self.rows)} labels were given",
                    fix="give one label per row",
                )
            spread = [label for label in self.rows for _ in range(times)]
            self._known[key] = [
                (label, torch.tensor([i for i, own in enumerate(spread) if own == label], device=device))
                for label in dict.fromkeys(self.rows)
            ]
        return self._known[key]


class Active:
    """The selection that the modules of one runtime heed."""

    def __init__(self) -> None:
        """Begin with the base."""
        self.selection = Selection(None)
