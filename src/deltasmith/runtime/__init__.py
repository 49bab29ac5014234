"""Many fine-tunes over one resident base: y = x W₀ᵀ + Δ-term(x), the term computed from packed storage (torch).

Here is the product and the choice of a delta per request or row; packing is `deltasmith.packing`.
"""

from __future__ import annotations

from deltasmith.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401 - one line for those who have none, before anything else fails
except ModuleNotFoundError as cause:
    raise MissingExtraError("the runtime needs torch", fix='pip install "deltasmith[torch]"') from cause

from deltasmith.runtime.attaching import Runtime, attach
from deltasmith.runtime.deltas import Delta, HeldDelta

__all__ = ["Delta", "HeldDelta", "Runtime", "attach"]
