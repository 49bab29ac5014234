"""Memory in which one thread codes one block after the other. What is stored never lies here."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

from deltasmith.codecs.protocol import Array

__all__ = ["scratch"]

_ALIGN = 64


def scratch(*pieces: tuple[int, Any]) -> list[Array]:
    """Return 1-D arrays of these sizes and types, undefined inside, in memory that belongs to the calling thread.

    They are valid until the thread's next call. Touching fresh memory takes as long as a third of coding a block,
    and a decoder per tensor with buffers of its own would hold hundreds of them: hence one per thread.

    >>> [a.dtype.name for a in scratch((3, "u2"), (5, np.float32))]
    ['uint16', 'float32']
    """
    kinds = [np.dtype(kind) for _, kind in pieces]
    widths = [
        -(-size * kind.itemsize // _ALIGN) * _ALIGN for (size, _), kind in zip(pieces, kinds, strict=True)
    ]
    kept = _kept().__dict__
    if kept.get("room") is None or kept["room"].size < sum(widths):
        kept["room"] = np.empty(sum(widths), np.uint8)
    room, at, found = kept["room"], 0, []
    for (size, _), kind, width in zip(pieces, kinds, widths, strict=True):
        found.append(room[at : at + size * kind.itemsize].view(kind))
        at += width
    return found


@cache
def _kept() -> threading.local:
    return threading.local()
