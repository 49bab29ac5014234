"""Amplify: multiply a delta by a factor."""

from __future__ import annotations

import numpy as np

from deltasmith.operation.protocols import Edit, Found, Place
from deltasmith.operation.schedule import Number
from deltasmith.table.checkpoint import Floats

__all__ = ["Amplify"]


class Amplify(Edit):
    """Multiply every element of the delta by `factor`.

    Factors above 1 extrapolate beyond the fine-tuned model, factors between 0 and 1 shrink the change, 0
    removes it, negative ones move away from it. Zeros stay zero. The factor is rounded to float32 first.

    Paper: Zheng et al., "Weak-to-Strong Extrapolation Expedites Alignment" (arXiv 2404.16792): theta_ExPO =
    theta_1 + alpha (theta_1 - theta_0) is `amplify` by 1 + alpha.

    >>> Amplify(factor=1.5).apply(np.array([2.0, -4.0], np.float32), Place("w", (2,)), Found()).tolist()
    [3.0, -6.0]
    """

    factor: Number
    """What the delta is multiplied by; any finite number."""

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Return delta * factor."""
        product: Floats = np.multiply(delta, np.float32(self.factor), dtype=np.float32)
        return product
