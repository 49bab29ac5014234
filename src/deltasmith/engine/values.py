"""What to do about values that are not numbers: refuse them by name, or replace them with zero."""

from __future__ import annotations

import numpy as np

from deltasmith.errors import RefusedError, printable
from deltasmith.kernels.decode import count_nonfinite, first_nonfinite
from deltasmith.table.checkpoint import Floats

__all__ = ["refuse_nonfinite", "zero_nonfinite"]


def refuse_nonfinite(values: Floats, name: str, start: int, label: str) -> None:
    """Raise if a tile holds NaN or infinity, naming the model, the tensor and the first element."""
    if first := count_nonfinite(values):
        index = start + first_nonfinite(values)
        raise RefusedError(
            f"{first} or more values that are not finite numbers, the first at element {index}",
            where=f"{printable(name)} of {printable(label)}",
            fix="repair the model, or set `nonfinite: zero` (or `keep`) in the recipe",
        )


def zero_nonfinite(values: Floats) -> None:
    """Overwrite NaN and infinities with zero."""
    if count_nonfinite(values):
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
