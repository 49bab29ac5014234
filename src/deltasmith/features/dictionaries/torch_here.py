"""torch, or one line that says how to get it. The modules here that need torch import it from this one."""

from __future__ import annotations

from deltasmith.errors import MissingExtraError

try:
    import torch
    from torch import Tensor
except ImportError as cause:
    raise MissingExtraError(
        "torch is not installed", where="sparse autoencoders", fix='pip install "deltasmith[features]"'
    ) from cause

__all__ = ["Tensor", "torch"]
